"""What tests of bundles share: a static root of busybox and links to it, bundles of it, and ways to start them."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from signed_rig import KEY

from imagekit import bundle, signing, toolbox
from imagekit.disk import tar
from imagekit.stores.directory import open_store
from imagekit.tree import Entry, Tree, file

ARCH = os.uname().machine
IS_ROOT = os.getuid() == 0
NOBODY = 65534
APPLETS = (
    "cat",
    "chmod",
    "env",
    "false",
    "id",
    "ls",
    "mkdir",
    "mount",
    "pwd",
    "sh",
    "sleep",
    "stat",
    "touch",
    "true",
    "yes",
)


@contextmanager
def reachable() -> Iterator[Path]:
    """A folder that every user can enter: pytest's own ones are for their owner."""
    with tempfile.TemporaryDirectory(prefix="bundle-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@cache
def busybox() -> bytes:
    """A static busybox for this machine."""
    return toolbox.tools("busybox", store=open_store()).path("busybox").read_bytes()


@cache
def root() -> bytes:
    """The tar of a root in which there is a shell."""
    links = {f"/bin/{name}": Entry("symlink", 0o777, target="busybox") for name in APPLETS}
    others = {
        "/bin/busybox": file(busybox(), mode=0o755),
        "/etc/hello": file(b"from the image\n"),
        "/etc/also": Entry("hardlink", 0o644, target="/etc/hello"),
        "/odd name \u00e9": file(b"x"),
    }
    return b"".join(tar.chunks(Tree({**links, **others}).complete().items())) + tar.END


def about(*argv: str, arch: str = ARCH, env: tuple[str, ...] = (), user: str = "0:0", workdir: str = "/"):
    return signing.About("app", "1", arch, argv, env, user, workdir)


def make(folder: Path, said: signing.About, *, payload: bytes | None = None, read_only: bool = False) -> Path:
    """The bundle of a tar, or of another payload."""
    plain, image, app = folder / "plain", folder / "image", folder / "app"
    plain.write_bytes(root() if payload is None else payload)
    signing.sign(plain, image, about=said, key=KEY)
    bundle.bundle(image, app, keys=[KEY], read_only=read_only)
    return app


def start(app: Path, *words: object, cache: Path | str = "", uid: int = -1, **more: str):
    """Run it to its end; as another user, if one is named."""
    env = {"PATH": "/usr/bin:/bin", "IMAGEKIT_CACHE": str(cache), "IMAGEKIT_EXPLAIN": "1", **more}
    user = {} if uid < 0 or not IS_ROOT else {"user": uid, "group": uid, "extra_groups": []}
    argv = [app, *map(str, words)]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False, **user)


@contextmanager
def running(*argv: object, cache: Path | str = "", **given: object) -> Iterator["subprocess.Popen[bytes]"]:
    """A bundle that goes on meanwhile, with pipes; killed at the end, whatever happened."""
    env = given.pop("env", None) or {"IMAGEKIT_CACHE": str(cache)}
    pipe = subprocess.PIPE
    with subprocess.Popen([str(word) for word in argv], stdin=pipe, stdout=pipe, env=env, **given) as program:
        try:
            yield program
        finally:
            program.kill()


def entries(cache: Path) -> list[Path]:
    """What is kept in a cache."""
    return sorted((cache / "roots").iterdir())


def age(cache: Path) -> Path:
    """Let a minute pass since the files of the only entry were looked at; give the entry."""
    entry = entries(cache)[0]
    for path in entry.glob("seen-*"):
        os.utime(path, (time.time() - 100,) * 2)
    return entry
