"""Nobody removes anything from a cache while others use it, and who begins meanwhile waits."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cache_rig import names

from imagekit import clearing, inuse
from imagekit.cli import main
from imagekit.errors import RigProblem
from imagekit.store import Store
from imagekit.stores.directory import open_store

HOLDER = (
    "import sys; from pathlib import Path; from imagekit.stores.directory import open_store\n"
    "open_store(Path(sys.argv[1])); print('in', flush=True); sys.stdin.read()"
)
ALONE = (
    "import sys; from pathlib import Path; from imagekit import inuse\n"
    "with inuse.alone(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
)


is_root = pytest.mark.skipif(os.getuid() != 0, reason="takes root")


def start(code: str, root: Path) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdin=pipe, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stdout.readline() == b"in\n"
    return process


def gc(*words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "imagekit.cli", "store", "gc", "--keep=0", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_nothing_goes_while_a_build_runs_and_it_is_named(
    store: Store, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = store.write([b"x"])
    with start(HOLDER, root) as holder:
        assert main(["store", "gc", "--keep", "0"]) == 1
        told = capsys.readouterr().err
        assert f"is in use: process {holder.pid} ({sys.executable} -c import sys; " in told
        assert "hint: --wait" in told
        assert store.has(digest)
        assert main(["store", "gc", "--keep", "0", "--dry-run"]) == 0
        holder.kill()
    assert main(["store", "gc", "--keep", "0"]) == 0, "the kernel frees the lock of who was killed"
    assert not store.has(digest)


def test_it_waits_when_told_to_and_a_build_waits_for_it(root: Path) -> None:
    with start(HOLDER, root) as holder, gc("--wait") as waiting:
        assert waiting.stderr is not None
        assert f"waiting for process {holder.pid} " in waiting.stderr.readline()
        holder.communicate()
        assert waiting.wait(300) == 0
    with start(ALONE, root) as alone:
        code = HOLDER.replace("print", "sys.stderr.close(); print")
        with subprocess.Popen(
            [sys.executable, "-c", code, str(root)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        ) as build_:  # fmt: skip
            assert build_.stderr is not None
            assert build_.stdout is not None
            assert f"waiting for process {alone.pid} " in build_.stderr.readline()
            assert build_.poll() is None
            alone.communicate()
            assert build_.stdout.readline() == "in\n"


def test_two_at_once_end_well(store: Store, root: Path) -> None:
    for number in range(300):
        store.write([b"%d" % number])
    os.close(inuse._HELD.pop((os.getpid(), str(root))))
    both = [gc("--wait"), gc("--wait")]
    assert [(process.wait(300), process.communicate()[1].partition("waiting")[0]) for process in both] == [(0, "")] * 2
    assert names(root) == set()


def test_a_cache_that_is_made_anew_is_locked_anew(store: Store, root: Path) -> None:
    shutil.rmtree(root)
    open_store(root)
    with start(HOLDER, root) as holder:
        with pytest.raises(inuse.InUse, match=f"process {holder.pid} "), inuse.alone(root):
            pass
        holder.communicate()
    with inuse.alone(root):
        pass
    assert store.location == str(root)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/passwd")])
def test_a_lock_that_is_no_file_is_a_problem(root: Path, make: Callable[[Path], object]) -> None:
    root.mkdir(mode=0o700)
    make(root / inuse.NAME)
    with pytest.raises(RigProblem, match=r"in-use"):
        open_store(root)


@is_root
def test_another_user_removes_nothing(store: Store, root: Path) -> None:
    store.write([b"x"])
    os.chown(root, 12345, 12345)
    assert main(["store", "gc", "--keep", "0"]) == 1
    with pytest.raises(RigProblem, match="not yours"):
        clearing.clear(root, keep=0)
    assert len(names(root)) == 1


def test_a_template_that_a_machine_lives_on_stays(store: Store, root: Path) -> None:
    import fcntl

    (store.folder("templates") / "key").mkdir()
    (root / "templates/key/ram").write_text("memory")
    handle = os.open(root / "templates/key", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    done = clearing.clear(root, keep=0)
    os.close(handle)
    assert (done.counts, done.failures) == ({}, ["templates/key: somebody holds it locked"])
    assert (root / "templates/key/ram").exists()
