"""Seen: the newest of each image that was verified here, by the key that signed it: an older one is told from then on.

An old image has a right signature for ever; only who saw a newer one can tell. Losing the note (with the cache) costs
this protection until the next one is seen, and nothing else.
"""

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from imagekit import host, order
from imagekit.artifact import Artifact
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.store import Store

NOTE = "highest-image-1"
TAKE_IT = "when going back is what you want: --allow-rollback"


def check(made: Artifact, *, by: Key, store: Store) -> None:
    """Raise Problem for an image that is older than one of its name that was remembered, or has an older package."""
    note = store.recall(NOTE, _key(made, by))
    if note is None:
        return
    seen, version = json.loads(note), str(made.manifest.get("version", ""))
    who = f"{made.name} {version} {made.arch} {made.format}"
    if _is_older(version, seen["version"], order.debian):
        raise Problem(f"{who} is a replay of an older image: {seen['version']} was verified here before", TAKE_IT)
    if version != seen["version"]:
        return  # whoever signs a newer image says that its packages are the right ones
    for name, (source, found) in _packages(made.manifest).items():
        if name in seen["packages"] and _is_older(found, seen["packages"][name], order.of(source)):
            before = seen["packages"][name]
            raise Problem(f"{who} is a downgrade: it has {name} {found}, and had {before} when it was verified here "
                          "before", TAKE_IT)  # fmt: skip


def remember(made: Artifact, *, by: Key, store: Store) -> None:
    """This image was verified: an older one is not any more. One that was taken though it is older changes nothing."""
    try:
        check(made, by=by, store=store)
    except Problem:
        return
    packages = {name: version for name, (_, version) in _packages(made.manifest).items()}
    note = json.dumps({"version": str(made.manifest.get("version", "")), "packages": packages}, sort_keys=True)
    key = _key(made, by)
    with host.once(store.folder("locks"), f"seen-{key}"):
        store.remember(NOTE, key, note.encode())


def _packages(manifest: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Source and version of each package that the image has in one version."""
    found: dict[str, tuple[str, str]] = {}
    several = set()
    for row in manifest.get("packages", ()):
        name = f"{row['source']}:{row['name']}" if row.get("source", "debian") != "debian" else str(row["name"])
        several |= {name} & found.keys()
        found[name] = str(row.get("source", "debian")), str(row["version"])
    return {name: found[name] for name in found.keys() - several}


def _is_older(one: str, other: str, key: Callable[[str], Any]) -> bool:
    if one == other:
        return False
    try:
        return bool(key(one) < key(other))
    except Problem:  # a version that has no order: neither is the older
        return False


def _key(made: Artifact, by: Key) -> str:
    return sha256(f"{made.name} {made.arch} {made.format} {by.public.hex()}".encode()).hexdigest()
