"""What tests of `imagekit run` share: the command line, and a signed image to run."""

import os
import shutil
import sys
from pathlib import Path

import small_root

from imagekit import key
from imagekit.artifact import SIGNATURE_SUFFIX, Job, canonical
from imagekit.formats import tar
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

HOME = Path(__file__).parent.parent
KEYS = HOME / "fixtures/keys"
ARCH = os.uname().machine
IS_ROOT = os.getuid() == 0


def words(*given) -> list[str]:
    return [sys.executable, "-m", "imagekit.cli", "run", *map(str, given)]


def environment(cache: Path, **more: str) -> dict[str, str]:
    own = {"IMAGEKIT_CACHE": str(cache), "IMAGEKIT_KEY": str(KEYS / "test.pub"), "PYTHONPATH": str(HOME)}
    return {**own, "PATH": os.environ["PATH"], **more}


def make_image(folder: Path, *, arch: str = ARCH, more: str = "") -> Path:
    """A signed artifact of the small root, with one more file if one is named; its manifest."""
    store = open_store(folder / "store")
    tree = Tree({**small_root.tree(), **({more: file(b"")} if more else {})})
    written = tar.write(tree, job=Job("small", "0", arch, store))["root"]
    shutil.copy(store.path(written.sha256), folder / "small.tar.gz")
    part = {"role": "root", "file": "small.tar.gz", "size": written.size, "sha256": written.sha256}
    text = canonical({"name": "small", "arch": arch, "format": "tar", "kind": "root", "parts": [part]})
    manifest = folder / "small.manifest.json"
    manifest.write_bytes(text)
    signature = key.read(KEYS / "test.key").sign(text, comment="small")
    manifest.with_name(manifest.name + SIGNATURE_SUFFIX).write_text(signature)
    return manifest
