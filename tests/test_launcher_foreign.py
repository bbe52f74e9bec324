"""The launchers of armhf and riscv64, run by QEMU's user mode; the program that they enter is this machine's."""

import os
import subprocess
from pathlib import Path

import pytest
from bundle_rig import IS_ROOT, about, entries, make, start

from imagekit import toolbox
from imagekit.stores.directory import open_store

RUN_BY = {"armhf": "qemu-arm", "riscv64": "qemu-riscv64"}


@pytest.fixture(scope="module")
def emulators() -> toolbox.Tools:
    return toolbox.tools(*RUN_BY.values(), store=open_store())


@pytest.mark.skipif(not IS_ROOT, reason="the emulator has threads, which no user namespace takes in")
@pytest.mark.parametrize("arch", RUN_BY)
def test_it_verifies_unpacks_and_runs(emulators: toolbox.Tools, tmp_path: Path, arch: str) -> None:
    app = make(tmp_path, about("/bin/sh", "-c", arch=arch))
    emulator = emulators.path(RUN_BY[arch])

    def run(*words: object, cache: str = "", file: Path = app) -> "subprocess.CompletedProcess[str]":
        env = {"PATH": os.environ["PATH"], "IMAGEKIT_CACHE": cache}
        argv = [str(word) for word in (emulator, file, *words)]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=False)

    (tmp_path / "own").mkdir()
    own = make(tmp_path / "own", about("/bin/sh", "-c"))
    assert run("--bundle-verify").stdout == start(own, "--bundle-verify").stdout
    start(own, "--bundle-extract", tmp_path / "oracle")
    assert run("--bundle-extract", tmp_path / "new").returncode == 0
    same = ["diff", "-r", "--no-dereference", tmp_path / "new", tmp_path / "oracle"]
    assert subprocess.run(same, check=False).returncode == 0
    for cache in ("", tmp_path / "cache", tmp_path / "cache"):
        done = run("cat /etc/hello; ls /home 2> /dev/null; exit 7", cache=str(cache))
        assert (done.returncode, done.stdout) == (7, "from the image\n"), done.stderr
    assert len(entries(tmp_path / "cache")) == 1
    data = bytearray(app.read_bytes())
    for at in (len(data) - 50, len(data) // 2):
        data[at] ^= 1
        (tmp_path / "evil").write_bytes(data)
        (tmp_path / "evil").chmod(0o755)
        done = run("true", file=tmp_path / "evil")
        assert (done.returncode, "damaged or was changed" in done.stderr) == (125, True)
        data[at] ^= 1
