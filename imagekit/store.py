"""Store: bytes kept by their sha256, and small notes kept by a key.

A plug in stores/ makes one. Objects are immutable; every read into use is hashed again, so a bad disk or a meddling
neighbour is found, set aside and rebuilt, never used. Notes (kind, key -> bytes) remember what was derived from what;
losing one costs time, never correctness.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Store:
    """A place for bytes by digest, as a value of functions; digests are 64 hexadecimal digits of sha256."""

    location: str
    has: Callable[[str], bool]  # is there an object of this digest; its bytes are not looked at
    read: Callable[[str], bytes]  # checked bytes; KeyError when there is none, or when it was bad and is now set aside
    write: Callable[[Iterable[bytes]], str]  # -> digest; atomic: a killed writer leaves nothing that can be read
    path: Callable[[str], Path]  # where an object lies, for those who check what they read there
    recall: Callable[[str, str], bytes | None]  # (kind, key) -> note
    remember: Callable[[str, str, bytes], None]  # (kind, key, note)
    folder: Callable[[str], Path]  # a private folder of the same cache, for what is no object: trees, locks, templates


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
