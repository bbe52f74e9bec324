"""What others have in a cache is used when it is what was asked for; nothing that they do costs more than time."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from threading import Event, Thread

import pytest
from debian_archive import Archive
from debian_shop import NGINX, check_store, obtain, resolve, stocked

from imagekit import care, inuse, shared
from imagekit.store import Store
from imagekit.stores.directory import open_store

GOOD = b"good" * 100_000
DIGEST = sha256(GOOD).hexdigest()


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """A cache of others, with an object."""
    made = open_store(tmp_path / "others")
    made.write([GOOD])
    made.remember("kind", "key", b"believe me")
    return tmp_path / "others"


@pytest.fixture
def store(tmp_path: Path, others: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Our own, which is empty."""
    monkeypatch.setenv("IMAGEKIT_SHARED_CACHE", str(others))
    return open_store(tmp_path / "own")


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """All that shows that something was written."""
    return {
        str(path): (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode, found.st_nlink)
        for path in (folder, *folder.rglob("*"))
        if (found := path.lstat())
    }


def place(cache: Path, digest: str = DIGEST) -> Path:
    return cache / "objects" / digest[:2] / digest


@pytest.mark.parametrize("use", [lambda store: store.read(DIGEST) == GOOD, lambda store: store.has(DIGEST)])
def test_what_others_have_becomes_our_own_and_nothing_is_written_there(
    store: Store, others: Path, use: Callable[[Store], bool], capfd: pytest.CaptureFixture[str]
) -> None:
    before = state(others)
    assert use(store)
    assert state(others) == before
    assert store.path(DIGEST).read_bytes() == GOOD
    assert not store.path(DIGEST).samefile(place(others)), "a copy: they can change theirs"
    assert store.path(DIGEST).stat().st_mode & 0o777 == 0o444
    place(others).unlink()
    assert store.read(DIGEST) == GOOD
    assert capfd.readouterr() == ("", "")


def test_notes_of_others_are_not_believed(store: Store) -> None:
    assert store.recall("kind", "key") is None


def test_what_nobody_has_is_silently_missed(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    absent = sha256(b"absent").hexdigest()
    assert not store.has(absent)
    with pytest.raises(KeyError):
        store.read(absent)
    with pytest.raises(KeyError):
        store.read("../" * 21 + "a")
    assert capfd.readouterr() == ("", "")
    assert not list(Path(store.location).glob("drafts/*"))


def _bytes(data: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(data)

    return make


def _sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(b"")
        os.truncate(path, size)

    return make


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{os.open(path.parent, os.O_PATH)}/{path.name}")


HOSTILE: list[tuple[str, Callable[[Path], object], str]] = [
    ("other bytes", _bytes(GOOD[:-1] + b"x"), f"hashes to {sha256(GOOD[:-1] + b'x').hexdigest()}"),
    ("cut", _bytes(GOOD[:-1]), "hashes to"),
    ("longer", _bytes(GOOD + b"\0"), "hashes to"),
    ("empty", _bytes(b""), "hashes to"),
    ("a pipe that nobody writes to", os.mkfifo, "is no file"),
    ("a link to the right bytes", lambda path: path.symlink_to("/dev/zero"), "is no file"),
    ("a folder", Path.mkdir, "is no file"),
    ("a socket", _socket, "is no file"),
    ("more bytes than there are", _sparse(1 << 42), "more than any object"),
    ("zeros", _sparse(1 << 26), "hashes to"),
]


@pytest.mark.parametrize(("make", "words"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_what_is_not_what_it_is_called_is_said_and_missed(
    store: Store, others: Path, make: Callable[[Path], object], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place(others).unlink()
    make(place(others))
    with pytest.raises(KeyError):
        store.read(DIGEST)
    said = capfd.readouterr().err
    assert said.startswith(f"imagekit: the shared cache {others}: objects/{DIGEST[:2]}/{DIGEST} ")
    assert words in said
    assert said.count("\n") == 1
    own = Path(store.location)
    assert [path for path in own.rglob("*") if path.is_file()] == [own / inuse.NAME], "no wrong byte is kept"
    assert store.write([GOOD]) == DIGEST
    assert store.read(DIGEST) == GOOD


@pytest.mark.skipif(os.getuid() != 0, reason="making a device takes root")
def test_a_device_is_not_opened(store: Store, others: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place(others).unlink()
    os.mknod(place(others), 0o020666, os.makedev(1, 5))  # /dev/zero has no end
    assert not store.has(DIGEST)
    assert "is no file" in capfd.readouterr().err


def test_after_some_bad_ones_no_more_are_asked_for(
    store: Store, others: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = open_store(others)
    digests = [theirs.write([b"%d" % number]) for number in range(9)]
    for digest in digests[:5]:
        place(others, digest).unlink()
        place(others, digest).write_bytes(b"wrong")
    assert [store.has(digest) for digest in digests] == [False] * 9
    said = capfd.readouterr().err.splitlines()
    assert len(said) == shared.STRIKES
    assert said[-1].endswith("nothing more is taken from there")


@pytest.mark.parametrize("other", ["a file", "nothing", "objects elsewhere", "ours"])
def test_a_cache_that_is_none_is_said_once_and_not_used(
    store: Store, tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").write_text("")
    (tmp_path / "objects elsewhere").mkdir()
    (tmp_path / "objects elsewhere/objects").symlink_to(tmp_path / "others/objects")
    named = store.location if other == "ours" else str(tmp_path / other)
    monkeypatch.setenv("IMAGEKIT_SHARED_CACHE", named)
    assert not store.has(DIGEST)
    assert not store.has(DIGEST)
    assert capfd.readouterr().err.count(f"the shared cache {named} is not used: objects: ") == int(other != "ours")


def test_a_file_that_grows_without_end_is_left(
    store: Store, others: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared, "MOST", 1 << 22)
    monkeypatch.setattr(shared, "CHUNK", 1 << 16)
    real = os.read

    def growing(handle: int, size: int) -> bytes:
        with open(place(others), "ab") as file:
            file.write(bytes(size))
        return real(handle, size)

    place(others).chmod(0o644)
    monkeypatch.setattr(os, "read", growing)
    assert not store.has(DIGEST)
    assert "grows while it is read" in capfd.readouterr().err


def test_a_file_that_comes_too_slowly_is_left(
    store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock, real = [0.0], os.read

    def slow(handle: int, _: int) -> bytes:
        clock[0] += 1.0
        return real(handle, 10)

    monkeypatch.setattr(shared.time, "monotonic", lambda: clock[0])  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "read", slow)
    assert not store.has(DIGEST)
    assert "takes too long to be read" in capfd.readouterr().err
    assert clock[0] < 10


def test_a_file_that_changes_all_the_while_gives_the_right_bytes_or_none(
    store: Store, others: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "STRIKES", 10**6)
    monkeypatch.setattr(shared, "CHUNK", 1 << 12)
    place(others).chmod(0o644)
    over, evil = Event(), b"evil" * 100_000

    def change() -> None:
        with open(place(others), "r+b", buffering=0) as file:
            while not over.is_set():
                for data in (GOOD, evil, GOOD, GOOD):
                    os.pwrite(file.fileno(), data, 0)

    changing = Thread(target=change)
    changing.start()
    try:
        found = 0
        for _ in range(60):
            if store.has(DIGEST):
                found += 1
                assert store.path(DIGEST).read_bytes() == GOOD
                store.path(DIGEST).unlink()
    finally:
        over.set()
        changing.join()
    assert care.verify(Path(store.location)) == (0, [])
    assert found < 60, "it was changed while it was read"


def test_a_bad_object_of_our_own_is_replaced_by_theirs(store: Store) -> None:
    store.write([GOOD])
    store.path(DIGEST).unlink()
    store.path(DIGEST).write_bytes(b"rotten")
    assert store.read(DIGEST) == GOOD
    assert (Path(store.location) / "bad" / DIGEST).read_bytes() == b"rotten"


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with stocked(tmp_path, monkeypatch) as made:
        yield made


def _fetched(debian: Archive) -> list[str]:
    return [path for path in debian.mirror.requests if path.endswith(".deb")]


def test_packages_that_others_fetched_are_not_fetched_again(debian: Archive, store: Store, others: Path) -> None:
    pins = resolve(store, "nginx")
    obtain(pins, open_store(others))
    debian.mirror.requests.clear()
    before = state(others)
    (nginx,) = (one for one in obtain(pins, store) if one.name == "nginx")
    assert nginx.tree.read("/usr/bin/nginx") == NGINX
    assert _fetched(debian) == []
    assert state(others) == before
    check_store(store)


def test_packages_that_others_spoilt_are_fetched(
    debian: Archive, store: Store, others: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pins = resolve(store, "nginx")
    obtain(pins, open_store(others))
    for number, path in enumerate(sorted((others / "objects").rglob("?" * 64))):
        path.unlink()
        HOSTILE[number % len(HOSTILE)][1](path)
    debian.mirror.requests.clear()
    (nginx,) = (one for one in obtain(pins, store) if one.name == "nginx")
    assert nginx.tree.read("/usr/bin/nginx") == NGINX
    assert len(_fetched(debian)) == len(pins)
    assert len(re.findall("the shared cache", capfd.readouterr().err)) <= shared.STRIKES + 1
    check_store(store)


@pytest.mark.skipif(os.getuid() != 0, reason="being two users takes root")
def test_two_users_share_without_trust(tmp_path: Path, others: Path) -> None:
    own = tmp_path / "of another"
    own.mkdir()
    os.chown(own, 12345, 12345)
    others.chmod(0o755)
    code = (  # all that is imported later: the other cannot read Python everywhere
        "import fcntl, os, queue, sys, threading; from pathlib import Path\n"
        "from imagekit.stores.directory import open_store\n"
        "os.chdir(sys.argv[1]); os.setgroups([]); os.setgid(12345); os.setuid(12345)\n"
        "os.environ['IMAGEKIT_SHARED_CACHE'] = '../others'\n"
        f"assert not os.access('../others/objects', os.W_OK); assert open_store(Path()).has('{DIGEST}')"
    )
    parents = [folder for folder in (tmp_path, *tmp_path.parents) if folder.stat().st_mode & 0o005 != 0o005]
    modes = {folder: folder.stat().st_mode & 0o7777 for folder in parents}
    try:
        for folder in parents:
            folder.chmod(modes[folder] | 0o005)
        done = subprocess.run([sys.executable, "-c", code, own], capture_output=True, text=True, check=False)
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert done.returncode == 0, done.stderr
    assert place(own).read_bytes() == GOOD
    assert place(own).stat().st_uid == 12345
