"""A cache takes no more room than it may, nobody waits for that, and whoever has none left is told how to get some."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import test_build
from debian_archive import Archive, archive

from imagekit import clearing, inuse, removal, room
from imagekit.cli import main
from imagekit.errors import Problem, RigProblem
from imagekit.stores.directory import open_store

pytest_plugins = ("pytester",)

KEY = Path(__file__).parents[1] / "fixtures/keys/test.key"
HOLDER = (
    "import sys; from pathlib import Path; from imagekit.stores.directory import open_store\n"
    "open_store(Path(sys.argv[1])); print('in', flush=True); sys.stdin.read()"
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def size_of(root: Path) -> int:
    with removal.opened(root) as handle:
        return clearing.look(handle).bytes


def filled(root: Path) -> list[str]:
    """Ten objects, the oldest first, in 120 KiB or so."""
    store, digests = open_store(root), []
    for number in range(10):
        digests.append(store.write([bytes([number + 1]) * 12_000]))
        time.sleep(0.01)
    return digests


def test_past_its_size_the_longest_unused_goes_and_it_is_said(root: Path) -> None:
    digests, said = filled(root), list[str]()
    size = size_of(root)
    room.limit(root, size + 8192, say=said.append)
    assert said == []
    (root / room.LOOKED).unlink()
    room.limit(root, size - 1, say=said.append)
    assert size * 0.6 < size_of(root) <= size * room.SHARE
    kept = [open_store(root).has(digest) for digest in digests]
    assert kept == sorted(kept), "the last ones stay"
    assert any(kept)
    assert len(said) == 1
    assert "KiB freed" in said[0]


def test_it_is_looked_at_now_and_then(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(root)
    room.limit(root, 1 << 30, say=print)
    room.limit(root, 0, say=print)
    assert size_of(root) > 100_000, "it was looked at a moment ago"
    now = time.time()
    for wrong in (room.OFTEN + 1, -room.OFTEN - 1):  # also by a clock that was set back
        monkeypatch.setattr(time, "time", lambda wrong=wrong: now + wrong)
        assert room._is_due(root)
        os.utime(root / room.LOOKED, (now, now))


def test_while_others_use_it_nothing_goes_and_nobody_waits(root: Path) -> None:
    filled(root)
    said = list[str]()
    before, pipe = size_of(root), subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], stdin=pipe, stdout=pipe) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"in\n"
        room.limit(root, 1, say=said.append)
        assert holder.poll() is None
        holder.kill()
    assert size_of(root) == before + 4096, "and a file that says when it was looked at"
    assert said[0].endswith("others use it now")


def test_what_is_no_size_is_told_before_anything_is_built(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGEKIT_CACHE_SIZE", "much")
    assert main(["build", "nothing.py"]) == 1
    assert "cache-size (IMAGEKIT_CACHE_SIZE): 'much' is no size" in capsys.readouterr().err
    monkeypatch.delenv("IMAGEKIT_CACHE_SIZE")
    (root.parent / "pyproject.toml").write_text("[tool.imagekit]\ncache-size = [1]\n")
    with pytest.raises(Problem, match=r"pyproject.toml\): '\[1\]' is no size"):
        room.most(root.parent)
    assert not list(root.glob("objects"))


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with archive(tmp_path_factory.mktemp("mirror")) as made:
        test_build.fill(made)  # type: ignore[no-untyped-call]
        yield made


def test_a_build_trims_the_cache_when_it_is_done(
    root: Path, debian: Archive, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    debian.use(monkeypatch)
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEY))
    (root.parent / "motd").write_text("welcome\n")
    (root.parent / "tiny.py").write_text(test_build.DEFINITION)
    assert main(["lock", "tiny.py"]) == 0
    monkeypatch.setenv("IMAGEKIT_CACHE_SIZE", "100 KiB")
    os.close(inuse._HELD.pop((os.getpid(), str(root))))
    words = [sys.executable, "-m", "imagekit.cli", "build", "tiny.py", "--format", "tar"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of 100.0 KiB that it may have: " in done.stderr
    assert size_of(root) <= 80 << 10
    assert main(["verify", str(next(Path("out").glob("*.manifest.json")))]) == 0, "what was built lies elsewhere"
    capsys.readouterr()


def test_a_test_session_trims_the_cache_when_it_is_done(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEKIT_CACHE_SIZE", "100K")
    filled(project.path / "cache")
    os.close(inuse._HELD.pop((os.getpid(), str(project.path / "cache"))))
    done = project.runpytest_subprocess("-k", "test_value", "-p", "no:cacheprovider")
    done.stdout.fnmatch_lines(["the cache had *, of 100.0 KiB that it may have: * freed"])
    assert size_of(project.path / "cache") <= 80 << 10


def test_a_full_disk_is_told_with_how_much_there_is_to_free(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(small)
    store.write([os.urandom(2 << 20)])
    time.sleep(0.02)
    full = r"No space left on device\n  hint: make room: "
    words = full + r"`imagekit store gc` would free {}, with --older-than 0 2.0 MiB; or"
    with pytest.raises(RigProblem, match=words.format("0 B")):
        store.write([os.urandom(2 << 20)])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * clearing.DAY)
    with pytest.raises(RigProblem, match=words.format("2.0 MiB")):
        store.write([os.urandom(2 << 20)])
    os.close(inuse._HELD.pop((os.getpid(), str(small))))
