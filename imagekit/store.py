"""Store: bytes kept by their sha256, and small notes kept by a key.

A plug in stores/ makes one. Objects are immutable; every read into use is hashed again, so a bad disk or a meddling
neighbour is found, set aside and rebuilt, never used. Notes (kind, key -> bytes) remember what was derived from what;
losing one costs time, never correctness. (But for those that guard against what is older than what was seen: their
kinds are named in SEEN, and nobody removes them.)
"""

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

SEEN = ("debian-seen", "highest-")  # how kinds of notes begin that are derived from nothing: what was seen once
GRAIN = 3600.0  # seconds after a use within which another one is not noted


@dataclass(frozen=True)
class Store:
    """A place for bytes by digest, as a value of functions; digests are 64 hexadecimal digits of sha256."""

    location: str
    has: Callable[[str], bool]  # is there an object of this digest; its bytes are not looked at
    read: Callable[[str], bytes]  # checked bytes; KeyError when there is none, or when it was bad and is now set aside
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
