"""Parts of an archive, one per owner, each compressed once and kept in the store.

A change of one file then costs one small part: every other is found by the digest of its entries.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from imagekit.store import Store, Stored
from imagekit.tree import Tree

T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """A compressed part, and what is remembered of it beside its bytes."""

    data: bytes
    facts: tuple[int, ...]


def parts(tree: Tree) -> Iterator[Tree]:
    """All directories first, then every owner's files, by name: concatenated, parents come before children.

    Hard links stay with the file that they share bytes with, which an owner always has in its own part.
    """
    yield Tree(((path, entry) for path, entry in tree.items() if entry.kind == "dir"), whole=tree)
    files = Tree(((path, entry) for path, entry in tree.items() if entry.kind != "dir"), whole=tree)
    yield from files.by_owner().values()


def size(store: Store, recipe: str, part: Tree) -> int | None:
    """Bytes of the part as it was compressed before, without reading it; None if it was not."""
    note = store.recall("segments", _key(recipe, part))
    try:
        return store.path(json.loads(note)[0]).stat().st_size if note is not None else None
    except (OSError, ValueError):
        return None  # lost or damaged, as below


def kept(store: Store, recipe: str, part: Tree, make: Callable[[Tree], Kept]) -> Kept:
    """The part as `make` compresses it, from the store if it was ever made by this recipe (program, version, level)."""
    data, facts = _found(store, recipe, part, make, store.read)
    return Kept(data, facts)


def laid(store: Store, recipe: str, part: Tree, make: Callable[[Tree], Kept]) -> bytes | Stored:
    """The bytes of the same, or where many of them lie: see Stored."""
    return _found(store, recipe, part, make, store.lay)[0]


def _found(
    store: Store, recipe: str, part: Tree, make: Callable[[Tree], Kept], take: Callable[[str], T]
) -> tuple[bytes | T, tuple[int, ...]]:
    key = _key(recipe, part)
    note = store.recall("segments", key)
    if note is not None:
        try:
            digest, *facts = json.loads(note)
            return take(digest), tuple(facts)
        except (KeyError, ValueError):
            pass  # lost or damaged, which costs no more than making it again
    made = make(part)
    store.remember("segments", key, json.dumps([store.write([made.data]), *made.facts]).encode())
    return made.data, made.facts


def _key(recipe: str, part: Tree) -> str:
    return sha256(f"{recipe}\n{part.digest}".encode()).hexdigest()
