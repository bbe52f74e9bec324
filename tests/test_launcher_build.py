"""The shipped launchers are what their sources make, byte by byte; and what the sources are."""

import os
import re
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from imagekit import bundle

FOLDER = bundle.LAUNCHERS.parent
OURS = sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")])
MACHINES = {"x86_64": 62, "aarch64": 183, "armhf": 40, "riscv64": 243}  # e_machine


def test_there_is_one_for_every_architecture_and_nothing_else() -> None:
    assert {path.name for path in bundle.LAUNCHERS.iterdir()} == {f"launcher.{arch}" for arch in bundle.ARCHES}


def test_they_are_what_the_sources_make(tmp_path: Path) -> None:
    if find_spec("ziglang") is None and not os.environ.get("CI"):
        pytest.skip("the compiler is not installed: pip install 'imagekit[dev]'")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(FOLDER.parents[2])}
    if not os.access(Path.home(), os.W_OK):  # the compiler keeps its C library, once built
        environment["ZIG_GLOBAL_CACHE_DIR"] = str(tmp_path / "cache")
    (tmp_path / "sources").mkdir()
    for words in (
        [sys.executable, "fetch.py", tmp_path / "sources"],
        ["sh", "build.sh", tmp_path / "sources", tmp_path / "made"],
    ):
        done = subprocess.run(words, env=environment, cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    names = [f"launcher.{arch}" for arch in bundle.ARCHES]
    different = [n for n in names if (tmp_path / "made" / n).read_bytes() != (bundle.LAUNCHERS / n).read_bytes()]
    assert not different, f"{different} are not what the sources make: run inside/launcher/build.sh and commit"


def test_a_source_that_was_changed_is_not_built(tmp_path: Path) -> None:
    for line in (FOLDER / "sources.sha256").read_text().splitlines():
        (tmp_path / Path(line.split()[1]).name).write_bytes(b"other bytes")
    argv = ["sh", "build.sh", str(tmp_path), str(tmp_path / "made")]
    done = subprocess.run(
        argv, cwd=FOLDER, env={**os.environ, "PYTHON": "/bin/false"}, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"FAILED" in done.stdout
    assert not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize("arch", bundle.ARCHES)
def test_a_launcher_is_static_small_and_of_its_architecture(arch: str) -> None:
    data = (bundle.LAUNCHERS / f"launcher.{arch}").read_bytes()
    is_64 = data[4] == 2  # ELF header: EI_CLASS
    table = struct.unpack_from("<Q" if is_64 else "<I", data, 32 if is_64 else 28)[0]
    size, count = struct.unpack_from("<HH", data, 54 if is_64 else 42)
    kinds = {struct.unpack_from("<I", data, table + number * size)[0] for number in range(count)}
    assert struct.unpack_from("<H", data, 18)[0] == MACHINES[arch]
    assert not kinds & {2, 3}  # PT_DYNAMIC, PT_INTERP
    assert len(data) < 112 << 10
    assert not re.search(rb"/(home|root/|usr/src|tmp/tmp)", data)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_sources_are_short_and_say_what_they_are(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("/* ")
    assert len(lines) < 400
    assert max(map(len, lines)) <= 120
