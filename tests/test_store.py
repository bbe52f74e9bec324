"""A store gives back the bytes that were put in, or none; no kill and no full disk leaves anything wrong in it."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from imagekit.errors import RigProblem
from imagekit.store import Store
from imagekit.stores.directory import open_store

DATA = b"some bytes"
DIGEST = sha256(DATA).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root)


def files(root: Path, folder: str) -> list[Path]:
    return [path for path in (root / folder).rglob("*") if path.is_file()]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full after so many bytes of a file, for anybody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_is_written_is_read(store: Store) -> None:
    assert store.write([DATA[:4], b"", DATA[4:]]) == DIGEST
    assert store.has(DIGEST)
    assert store.read(DIGEST) == DATA
    assert store.path(DIGEST).read_bytes() == DATA


def test_an_object_cannot_be_written_to_by_mistake(store: Store) -> None:
    store.write([DATA])
    assert store.path(DIGEST).stat().st_mode & 0o777 == 0o444


def test_what_was_never_written_is_not_there(store: Store) -> None:
    assert not store.has(DIGEST)
    with pytest.raises(KeyError):
        store.read(DIGEST)


@pytest.mark.parametrize("bad", [b"same bytes", b"some byte", b"some bytes!", b""])
def test_a_bad_object_is_set_aside_and_can_be_written_again(root: Path, store: Store, bad: bytes) -> None:
    store.write([DATA])
    store.path(DIGEST).unlink()
    store.path(DIGEST).write_bytes(bad)
    with pytest.raises(KeyError):
        store.read(DIGEST)
    assert not store.has(DIGEST)
    assert [path.name for path in files(root, "bad")] == [DIGEST]
    store.write([DATA])
    assert store.read(DIGEST) == DATA


@pytest.mark.parametrize("digest", ["", "ab", "../" * 21 + "a", "/" * 64, DIGEST + "/"])
def test_what_is_no_digest_names_no_path(store: Store, digest: str) -> None:
    with pytest.raises(KeyError):
        store.read(digest)


def test_notes_are_kept_and_replaced(store: Store) -> None:
    assert store.recall("kind", "key") is None
    store.remember("kind", "key", b"1")
    store.remember("kind", "key", b"2")
    assert store.recall("kind", "key") == b"2"
    assert store.recall("other", "key") is None


def test_folders_are_private_to_the_user(root: Path, store: Store) -> None:
    assert store.folder("trees").is_dir()
    assert store.folder("trees").stat().st_mode & 0o777 == 0o700
    assert root.stat().st_mode & 0o777 == 0o700


def test_a_source_that_fails_leaves_nothing_and_its_own_words(root: Path, store: Store) -> None:
    def chunks() -> Iterator[bytes]:
        yield DATA
        raise ConnectionResetError("the mirror hung up")

    with pytest.raises(ConnectionResetError, match="the mirror hung up"):
        store.write(chunks())
    assert not files(root, "objects")
    assert not files(root, "drafts")


@pytest.mark.parametrize("size", [100, 100_000])  # below and above a write buffer
def test_a_full_disk_is_a_problem_of_the_rig_and_leaves_nothing(root: Path, store: Store, size: int) -> None:
    with largest_file(64), pytest.raises(RigProblem, match=r"cannot write to the cache .*\n  hint: make room"):
        store.write([bytes(size)])
    with largest_file(64), pytest.raises(RigProblem, match="cannot write to the cache"):
        store.remember("kind", "key", bytes(size))
    assert not files(root, "objects")
    assert not files(root, "drafts")
    assert store.recall("kind", "key") is None
    assert store.write([bytes(size)])


def test_a_killed_writer_leaves_nothing_that_can_be_read(root: Path, store: Store) -> None:
    code = (
        "import itertools, sys; from pathlib import Path; from imagekit.stores.directory import open_store\n"
        "def chunks():\n"
        "    for n in range(64): yield bytes(65536)\n"
        "    print('busy', flush=True); sys.stdin.read()\n"
        f"open_store(Path({str(root)!r})).write(chunks())"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"busy\n"
        writer.kill()
    assert not files(root, "objects")
    assert not store.has(sha256(bytes(65536 * 64)).hexdigest())


def test_many_writers_of_the_same_bytes_agree(root: Path, store: Store) -> None:
    data = bytes(range(256)) * 1000
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda _: open_store(root).write([data]), range(32)))
    assert set(digests) == {sha256(data).hexdigest()}
    assert store.read(digests[0]) == data
    assert not files(root, "drafts")


def test_many_readers_of_a_bad_object_all_miss_it(store: Store) -> None:
    store.write([DATA])
    store.path(DIGEST).unlink()
    store.path(DIGEST).write_bytes(b"bad")

    def read(_: int) -> bool:
        try:
            store.read(DIGEST)
        except KeyError:
            return True
        return False

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(32)))


def test_a_cache_that_is_a_file_is_a_problem_of_the_rig(root: Path) -> None:
    root.write_text("")
    with pytest.raises(RigProblem, match=r"cannot use the cache .*\n  hint: set IMAGEKIT_CACHE"):
        open_store(root)


def test_a_cache_that_everybody_can_change_is_refused(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(RigProblem, match=r"everybody can write to the cache .*\n  hint: chmod go-w"):
        open_store(root)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_cache_of_another_user_is_refused(root: Path) -> None:
    root.mkdir()
    os.chown(root, 12345, 12345)
    with pytest.raises(RigProblem, match="belongs to user 12345, not to you"):
        open_store(root)


def test_the_environment_names_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "own"))
    assert open_store().location == str(tmp_path / "own")
    monkeypatch.delenv("IMAGEKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert open_store().location == str(tmp_path / "xdg/imagekit")
