"""Store: bytes kept by their sha256, and small notes kept by a key.

A plug in stores/ makes one. Objects are immutable; every read into use is hashed again, so a bad disk or a meddling
neighbour is found, set aside and rebuilt, never used. Notes (kind, key -> bytes) remember what was derived from what;
losing one costs time, never correctness. (But for those that guard against what is older than what was seen: their
kinds are named in SEEN, and nobody removes them.)
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit.errors import RigProblem

CHUNK = 1 << 18  # bytes that are read at a time: malloc gives what larger ones lay in back to the kernel, each time
LARGE = 1 << 16  # bytes of an object from which on it is hashed while it is used, not before
SEEN = ("debian-seen", "highest-")  # how kinds of notes begin that are derived from nothing: what was seen once
GRAIN = 3600.0  # seconds after a use within which another one is not noted


class Spoiled(RigProblem):
    """What was being read of the cache turned out at its end to be other bytes: whatever was made of them is void."""


class Stored(NamedTuple):
    """Bytes that lie in a store, read in order and hashed meanwhile: what is made of them is good once that has ended.

    So the bytes that are used are those that were hashed, and few of them are in memory.
    """

    path: str
    size: int  # bytes
    sha256: str  # of these
    offset: int = 0  # in an object, of which they may be a part

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """Its bytes, at most `size` at a time; raises Spoiled instead of giving the last ones of other bytes."""
        reading = Reading(self)
        try:
            for at in range(0, self.size, size):
                yield reading.take(min(size, self.size - at))
        finally:
            reading.close()


class Reading:
    """A stored object as somebody reads it, from its beginning to its end."""

    def __init__(self, of: Stored) -> None:
        self._of, self._left, self._total = of, of.size, sha256()
        try:
            self._file = open(of.path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
            self._file.seek(of.offset)
        except OSError as error:
            raise self._spoiled() from error

    def take(self, size: int) -> bytes:
        """The next `size` bytes; raises Spoiled where they, or with the last of them all, are not what was stored."""
        try:
            data = self._file.read(size) or b""
            while len(data) < size and (more := self._file.read(size - len(data))):
                data += more  # Linux reads at most 2 GiB at once
        except OSError as error:
            raise self._spoiled() from error
        self._total.update(data)
        self._left -= len(data)
        if len(data) != size or (not self._left and self._total.hexdigest() != self._of.sha256):
            raise self._spoiled()
        return data

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _spoiled(self) -> Spoiled:
        return Spoiled(f"{self._of.path} is not what was stored", "the cache was changed or the disk is failing")


def size_of(content: bytes | Stored) -> int:
    """How many bytes."""
    return len(content) if isinstance(content, bytes) else content.size


def flow(contents: Iterable[bytes | Stored]) -> Iterator[bytes]:
    """Contents one after the other, piece by piece. Raises Spoiled, see Stored."""
    for content in contents:
        if isinstance(content, Stored):
            yield from content.chunks()
        else:
            yield content


@dataclass(frozen=True)
class Store:
    """A place for bytes by digest, as a value of functions; digests are 64 hexadecimal digits of sha256."""

    location: str
    has: Callable[[str], bool]  # is there an object of this digest; its bytes are not looked at
    read: Callable[[str], bytes]  # checked bytes; KeyError when there is none, or when it was bad and is now set aside
    lay: Callable[[str], bytes | Stored]  # the same, or where they lie if they are many: for who reads them all, once
    write: Callable[[Iterable[bytes | memoryview]], str]  # -> digest; a killed writer leaves nothing that can be read
    path: Callable[[str], Path]  # where an object lies, for those who check what they read there
    recall: Callable[[str, str], bytes | None]  # (kind, key) -> note
    remember: Callable[[str, str, bytes], None]  # (kind, key, note)
    folder: Callable[[str], Path]  # a private folder of the same cache, for what is no object: trees, locks, templates


def touch(path: str | Path) -> None:
    """Note that something of a cache is used now, for those who remove what nobody uses.

    Its ctime says so: reading, backups and mount options do not move that, and a file's size and mtime, by which it is
    known to be untouched, stay.
    """
    with suppress(OSError):  # it is not there, or not ours to change
        found = os.stat(path, follow_symlinks=False)  # noqa: PTH116
        if abs(time.time() - found.st_ctime) > GRAIN:  # also one of a clock that went wrong
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def wary(store: Store) -> Store:
    """The same store, which hashes whatever is read before it is used: what is bad is found by this, and set aside."""
    return replace(store, lay=store.read)


def forgetful(store: Store, folder: Path, *, keep: Callable[[str], bool]) -> Store:
    """The same objects with folders of their own and a memory of only those kinds of notes that `keep` accepts.

    What is built with it is derived anew, which is how a rebuild is compared with what is kept.
    """
    notes: dict[tuple[str, str], bytes] = {}

    def recall(kind: str, key: str) -> bytes | None:
        return store.recall(kind, key) if keep(kind) else notes.get((kind, key))

    def remember(kind: str, key: str, note: bytes) -> None:
        if keep(kind):
            store.remember(kind, key, note)
        else:
            notes[kind, key] = note

    def own(name: str) -> Path:
        made = folder / name
        made.mkdir(mode=0o700, parents=True, exist_ok=True)
        return made

    return replace(store, recall=recall, remember=remember, folder=own)
