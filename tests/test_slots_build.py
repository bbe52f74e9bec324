"""The program of updates is what its sources make, byte by byte."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from imagekit import early
from imagekit.arch import ARCHES

FOLDER = Path(early.__file__).with_name("inside") / "slots"


def test_it_is_what_the_sources_make(tmp_path: Path) -> None:
    if find_spec("ziglang") is None and not os.environ.get("CI"):
        pytest.skip("the compiler is not installed: pip install 'imagekit[dev]'")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(FOLDER.parents[2])}
    if not os.access(Path.home(), os.W_OK):  # the compiler keeps its C library, once built
        environment["ZIG_GLOBAL_CACHE_DIR"] = str(tmp_path / "cache")
    (tmp_path / "sources").mkdir()
    for words in (
        [sys.executable, "../launcher/fetch.py", tmp_path / "sources"],
        ["sh", "build.sh", tmp_path / "sources", tmp_path / "made"],
    ):
        done = subprocess.run(words, env=environment, cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    names = [f"slots.{arch}" for arch in ARCHES]
    different = [n for n in names if (tmp_path / "made" / n).read_bytes() != (FOLDER.parent / "bin" / n).read_bytes()]
    assert not different, f"{different} are not what the sources make: run inside/slots/build.sh and commit"
