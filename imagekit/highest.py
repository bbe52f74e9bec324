"""Highest: the highest version of each package that was taken in here, by the key that signed it: none goes back.

An old package has a right signature for ever; only who saw a newer one can tell. Losing the note (with the cache) costs
this protection until the next one is seen, and nothing else.
"""

from hashlib import sha256

from imagekit import host, order
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.store import Store

NOTE = "highest-1"


def check(name: str, version: str, architecture: str, *, by: Key, store: Store) -> None:
    """Raise Problem for a version lower than the highest one of this name and architecture that this key signed."""
    seen = store.recall(NOTE, _key(name, architecture, by))
    if seen and order.debian(version) < order.debian(seen.decode()):
        raise Problem(
            f"{name} {version} is older than {seen.decode()}, which was taken in here before: a downgrade",
            "--allow-rollback takes it all the same",
        )


def remember(name: str, version: str, architecture: str, *, by: Key, store: Store) -> None:
    """This version was taken in: a lower one is not any more. The highest stays the highest."""
    key = _key(name, architecture, by)
    with host.once(store.folder("locks"), f"highest-{key}"):
        seen = store.recall(NOTE, key)
        if not seen or order.debian(version) > order.debian(seen.decode()):
            store.remember(NOTE, key, version.encode())


def _key(name: str, architecture: str, by: Key) -> str:
    return sha256(f"{name} {architecture} {by.public.hex()}".encode()).hexdigest()
