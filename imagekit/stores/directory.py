"""A folder of one user, under the XDG cache: objects by digest, notes by key."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path

from imagekit import host, inuse, shared
from imagekit.beside import Buffer, gathered, summed
from imagekit.errors import RigProblem
from imagekit.stamp import cache_location
from imagekit.store import LARGE, Store, Stored, touch

HOLE = 1 << 16  # bytes of zeros from which on they are left out of a file
ZEROS = bytes(1 << 20)


def open_store(location: Path | None = None) -> Store:
    """The store at `location`, made (mode 0700) if it is not there; raises RigProblem when others can change it.

    It is in use from now on, as long as this process lives: nobody removes anything from it.
    """
    root = Path(location or cache_location()).absolute()
    _private(root)
    inuse.enter(root)
    _sweep(root)
    at = _Directory(root)
    return Store(str(root), at.has, at.read, at.lay, at.write, at.path, at.recall, at.remember, at.folder)


class _Directory:
    """What a store does, by its names."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._used = set[str]()
        self._others = list[shared.Shared | None]()

    def path(self, digest: str) -> Path:
        if len(digest) != 64 or not digest.isalnum():
            raise KeyError(digest)
        found = self._root / "objects" / digest[:2] / digest
        if digest not in self._used:
            self._used.add(digest)
            touch(found)
        return found

    def read(self, digest: str) -> bytes:
        data = self._own(digest)
        if data is None and self._adopted(digest):
            data = self._own(digest)
        if data is None:
            raise KeyError(digest)
        return data

    def lay(self, digest: str) -> bytes | Stored:
        place = self.path(digest)
        if not self.has(digest):
            raise KeyError(digest)
        size = place.stat().st_size
        return Stored(str(place), size, digest) if size >= LARGE else self.read(digest)

    def has(self, digest: str) -> bool:
        return self.path(digest).exists() or self._adopted(digest)

    def write(self, chunks: Iterable[Buffer]) -> str:
        with _atomic(self._root) as (put, publish), summed() as total:
            for chunk in gathered(chunks):
                total.update(chunk)
                put(chunk)
            digest = total.hexdigest()
            publish(self.path(digest))
        return digest

    def recall(self, kind: str, key: str) -> bytes | None:
        place = self._root / "notes" / kind / key
        try:
            digest, _, note = place.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        touch(place)
        return note if sha256(note).hexdigest().encode() == digest else None  # a torn note is no note

    def remember(self, kind: str, key: str, note: bytes) -> None:
        with _atomic(self._root) as (put, publish):
            put(sha256(note).hexdigest().encode() + b"\n" + note)
            publish(self._root / "notes" / kind / key)

    def folder(self, name: str) -> Path:
        made = self._root / name
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        return made

    def _own(self, digest: str) -> bytes | None:
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            return None
        if sha256(data).hexdigest() != digest:
            set_aside(self.path(digest), self._root)
            return None
        return data

    def _adopted(self, digest: str) -> bool:
        """Whether others had it in the shared cache, and we have it now."""
        if not self._others:
            self._others.append(shared.find(self._root))
        return self._others[0] is not None and _adopted(self._others[0], digest, self.path(digest), self._root)


def lend(location: Path, to: Path, *, keep: Callable[[str], bool], folders: Iterable[str]) -> None:
    """Make a second cache at `to`, for another process: the same objects, and the kinds of notes that `keep` accepts.

    folders: those of the first that it has too, by name. What is built with it is derived anew.
    """
    (to / "notes").mkdir(mode=0o700, parents=True)
    kinds = (kind for kind in (location / "notes").glob("*") if keep(kind.name))
    for one in ("objects", *(f"notes/{kind.name}" for kind in kinds), *folders):
        (location / one).mkdir(mode=0o700, parents=True, exist_ok=True)
        (to / one).symlink_to(location / one)


def _private(root: Path) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.stat()
    except OSError as error:
        raise RigProblem(
            f"cannot use the cache {root}: {error.strerror}", "set IMAGEKIT_CACHE to a folder of yours"
        ) from error
    if found.st_uid != os.getuid():
        raise RigProblem(
            f"the cache {root} belongs to user {found.st_uid}, not to you", "set IMAGEKIT_CACHE to a folder of your own"
        )
    if found.st_mode & 0o002:
        raise RigProblem(f"everybody can write to the cache {root}", f"chmod go-w {root}, or set IMAGEKIT_CACHE")


def _sweep(root: Path) -> None:
    """Remove the drafts of writers that were killed."""
    with suppress(FileNotFoundError):
        for name in os.listdir(root / "drafts"):  # noqa: PTH208 - iterdir makes a Path of each, and there is rarely any
            host.remove_abandoned(root / "drafts" / name)


def _adopted(others: shared.Shared, digest: str, final: Path, root: Path) -> bool:
    """Whether the bytes that others have under a digest are those; the copy that was hashed is kept, and no other."""
    try:
        with closing(others.chunks(digest)) as chunks, summed() as total:
            first = next(chunks, b"")  # mostly there is none, and no draft is begun
            with _atomic(root) as (put, publish):
                for chunk in chain([first], chunks):
                    total.update(chunk)
                    put(chunk)
                found = total.hexdigest()
                if found != digest:
                    raise shared.Refused(f"hashes to {found}")
                publish(final)
    except KeyError:
        return False
    except shared.Refused as refused:
        others.refuse(digest, str(refused))
        return False
    return True


@contextmanager
def _atomic(root: Path) -> Iterator[tuple[Callable[[Buffer], object], Callable[[Path], None]]]:
    """Functions to write to a draft and to publish it by rename; whatever goes wrong, the draft is removed.

    No fsync: every object is hashed when it is read, so what a power cut tears is found and made again.
    """
    draft = root / "drafts" / f"{os.getpid()}-{os.urandom(8).hex()}"

    def put(data: Buffer) -> None:
        with _told(root):  # only our own writing: a mirror that fails in `chunks` is another matter
            # a disk may be larger than what there is room for
            if len(data) >= HOLE and not data[0] and data == ZEROS[: len(data)]:
                file.seek(len(data), os.SEEK_CUR)
            else:
                file.write(data)

    def publish(final: Path) -> None:
        with _told(root):
            file.truncate()  # to where we are, for the last bytes may have been zeros
            os.fchmod(file.fileno(), 0o444)
            final.parent.mkdir(parents=True, exist_ok=True)
            draft.replace(final)

    with _told(root):
        draft.parent.mkdir(exist_ok=True)
        file = host.open_draft(draft)
    try:
        yield put, publish
    finally:
        with suppress(OSError):  # what it still holds was to be thrown away
            file.close()
        with suppress(FileNotFoundError):
            draft.unlink()


@contextmanager
def _told(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        from imagekit import room

        raise RigProblem(f"cannot write to the cache {root}: {error.strerror}", room.hint(root, error)) from error


def set_aside(bad: Path, root: Path) -> None:
    """Move what is not what its name says out of use, to where it can be looked at."""
    aside = root / "bad" / bad.name
    aside.parent.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):  # another process saw it too and was first
        bad.replace(aside)


STORE = open_store
