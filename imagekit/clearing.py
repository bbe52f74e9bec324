"""What nobody used for long is removed from a cache, and what killed processes left there.

The caller uses the cache alone (inuse.py). Nothing is followed out of it: folders are opened one by one, links never,
and neither what belongs to others nor another file system is entered.
"""

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from imagekit import removal
from imagekit.errors import Problem
from imagekit.removal import Inode, Thing, entries
from imagekit.store import GRAIN, SEEN

DAY = 86400.0
FILES, SHARDS, TREES = "files", "files in folders", "folders"
KINDS = {  # what is removed when nobody used it for long, in this order: notes before what they name
    "stamps": FILES,
    "catalogues": FILES,
    "notes": SHARDS,
    "artifacts": TREES,
    "images": FILES,
    "templates": TREES,
    "roots": TREES,
    "tools": TREES,
    "bad": FILES,
    "objects": SHARDS,
}
LEFTOVERS = (  # where killed processes leave things, and how the names begin and end
    *(("drafts", "", ""), ("drafts-of-roots", "", ""), ("drafts-of-disks", "", ""), ("opened", "", "")),
    *(
        ("disks", "", ""),
        ("drafts-of-images", "", ""),
        ("compared", "", ""),
        ("rebuilt", "", ""),
        ("locks", "", ".lock"),
    ),
    *(("artifacts", ".", ""), ("templates", "draft-", ""), ("tools", "draft-", ""), ("roots", "", ".draft")),
)
UNITS = {"": 1, "B": 1, **dict.fromkeys(("K", "KiB"), 1 << 10), **dict.fromkeys(("M", "MiB"), 1 << 20)}
UNITS |= {**dict.fromkeys(("G", "GiB"), 1 << 30), **dict.fromkeys(("T", "TiB"), 1 << 40)}
UNITS |= {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass
class Found:
    """What lies in a cache."""

    things: list[Thing] = field(default_factory=list)
    blocks: dict[Inode, int] = field(default_factory=dict)  # bytes on the disk
    links: dict[Inode, int] = field(default_factory=dict)  # how many names, here and elsewhere
    strange: list[str] = field(default_factory=list)  # what was not entered, and why

    @property
    def bytes(self) -> int:
        """On the disk, of all files; what has two names counts once."""
        return sum(self.blocks.values())


@dataclass
class Cleared:
    """What was removed, or would be."""

    counts: dict[str, int] = field(default_factory=dict)  # by kind
    freed: int = 0  # bytes
    left: int = 0  # bytes
    failures: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)


def size_of(text: str) -> int:
    """Bytes, as somebody wrote them: "20 GiB", "500M"; raises Problem when that is no size."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", text.strip())
    if not match or match[2] not in UNITS:
        raise Problem(f"{text!r} is no size", f"a number and one of {', '.join(filter(None, UNITS))}")
    return int(float(match[1]) * UNITS[match[2]])


def clear(root: Path, *, keep: int | None = None, days: float | None = None, dry_run: bool = False) -> Cleared:
    """Remove what was left behind; what was not used for some days; the longest unused, until the cache has `keep`."""
    now = time.time()
    with removal.opened(root) as handle:
        if not dry_run:
            removal.empty(handle)
        found = look(handle)
        chosen = choose(found, now, keep=keep, days=days)
        if dry_run:
            return _sum(found, [thing for thing in chosen if not removal.is_held(handle, thing)])
        _heal(handle, found.things, now)
        failures = list[str]()
        stayed = set(removal.remove(handle, chosen, failures))
        removal.empty(handle)
    done = _sum(found, [thing for thing in chosen if thing not in stayed])
    return replace(done, failures=failures)


def look(root: int) -> Found:
    """Everything in a cache, by a descriptor of its folder."""
    found = Found()
    for entry, state in entries(root):
        if not stat.S_ISDIR(state.st_mode):
            _count(found, state)
            if entry in KINDS:
                found.strange.append(f"{entry}: is no folder; left as it is")
            continue
        with _entered(root, entry, found) as handle:
            if handle is not None:
                _look_into(handle, entry, found)
    _join(found)
    return found


def choose(found: Found, now: float, *, keep: int | None, days: float | None) -> list[Thing]:
    """What is to be removed, in the order in which that is done."""
    chosen = [thing for thing in found.things if thing.rank < 0]
    rest = sorted(thing for thing in found.things if thing.rank >= 0)
    if days is not None:
        chosen += [thing for thing in rest if thing.used < now - days * DAY]
    elif keep is not None:
        names, left = _names(found.things), found.bytes
        for thing in (*chosen, *rest):
            if left <= keep and thing.rank >= 0:
                break
            left -= _taken(thing, names, found.blocks)
            if thing.rank >= 0:
                chosen.append(thing)
    return sorted(chosen, key=lambda thing: (thing.rank, thing.folder, thing.name))


def _look_into(handle: int, folder: str, found: Found) -> None:
    """One folder of the cache, whichever it is."""
    shape = KINDS.get(folder)
    for entry, state in entries(handle):
        used, is_folder = state.st_ctime, stat.S_ISDIR(state.st_mode)
        if any(folder == of and entry.startswith(a) and entry.endswith(b) for of, a, b in LEFTOVERS):
            found.things.append(Thing(used, -1, folder, entry, _tree(handle, entry, state, found)))
        elif shape == SHARDS and is_folder:
            _look_into_shard(handle, folder, entry, found)
        elif shape == FILES or (shape == TREES and is_folder):
            found.things.append(Thing(used, _rank(folder), folder, entry, _tree(handle, entry, state, found)))
        else:
            _tree(handle, entry, state, found)  # counted, and nobody's to remove
            if shape:
                found.strange.append(f"{folder}/{entry}: is no folder; left as it is")


def _look_into_shard(parent: int, folder: str, name: str, found: Found) -> None:
    is_kept = folder == "notes" and name.startswith(SEEN)
    with _entered(parent, name, found, folder) as handle:
        if handle is None:
            return
        for entry, state in entries(handle):
            inodes = _tree(handle, entry, state, found)
            if not is_kept:
                found.things.append(Thing(state.st_ctime, _rank(folder), f"{folder}/{name}", entry, inodes))


def _join(found: Found) -> None:
    """An object is used whenever an artifact is that it is a part of: removing it alone would free nothing."""
    used: dict[Inode, float] = {}
    for thing in found.things:
        if thing.kind == "artifacts":
            for inode in thing.inodes:
                used[inode] = max(used.get(inode, 0.0), thing.used)
    found.things[:] = [
        thing._replace(used=max(thing.used, used.get(thing.inodes[0], 0.0)))
        if thing.kind == "objects" and thing.inodes
        else thing
        for thing in found.things
    ]


def _rank(folder: str) -> int:
    return list(KINDS).index(folder)


def _tree(parent: int, name: str, state: os.stat_result, found: Found) -> tuple[Inode, ...]:
    """The inode of a file, or those of all files in a folder."""
    if not stat.S_ISDIR(state.st_mode):
        return (_count(found, state),)
    inodes, waiting = [], [name]
    while waiting:
        path = waiting.pop()
        try:
            handle = os.open(path, removal.FOLDER, dir_fd=parent)
        except OSError:
            continue  # it is closed to us, and removing it will tell
        try:
            for entry, inner in entries(handle):
                if stat.S_ISDIR(inner.st_mode):
                    waiting.append(f"{path}/{entry}")
                else:
                    inodes.append(_count(found, inner))
        finally:
            os.close(handle)
    return tuple(inodes)


def _count(found: Found, state: os.stat_result) -> Inode:
    inode = (state.st_dev, state.st_ino)
    found.blocks[inode], found.links[inode] = state.st_blocks * 512, state.st_nlink  # stat(2): in units of 512 bytes
    return inode


def _names(things: Iterable[Thing]) -> dict[Inode, int]:
    names: dict[Inode, int] = {}
    for thing in things:
        for inode in thing.inodes:
            names[inode] = names.get(inode, 0) + 1
    return names


def _taken(thing: Thing, names: dict[Inode, int], blocks: dict[Inode, int]) -> int:
    """Bytes that have no name any more when this thing is gone; its names are taken away."""
    size = 0
    for inode in thing.inodes:
        names[inode] -= 1
        size += 0 if names[inode] else blocks[inode]
    return size


def _sum(found: Found, chosen: list[Thing]) -> Cleared:
    counts: dict[str, int] = {}
    for thing in chosen:
        kind = thing.kind if thing.rank >= 0 else "leftovers"
        counts[kind] = counts.get(kind, 0) + 1
    names, held = _names(found.things), _names(chosen)
    gone = [inode for inode in held if held[inode] == names[inode]]
    freed = sum(found.blocks[inode] for inode in gone if held[inode] >= found.links[inode])  # else it lives elsewhere
    left = found.bytes - sum(found.blocks[inode] for inode in gone)
    return Cleared(counts, freed, left, strange=found.strange)


def _heal(root: int, things: list[Thing], now: float) -> None:
    """What was used in the future, by a clock that was wrong, is used now: else it would never grow old."""
    for thing in things:
        if thing.used > now + GRAIN:
            with suppress(OSError):
                path = f"{thing.folder}/{thing.name}"
                state = os.stat(path, dir_fd=root, follow_symlinks=False)
                os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns), dir_fd=root, follow_symlinks=False)


# --- opening ----------------------------------------------------------------------------------------------------------


@contextmanager
def _entered(parent: int, name: str, found: Found, above: str = "") -> Iterator[int | None]:
    """A folder of ours; None, and a word of it, for another's, and for one that lies elsewhere."""
    shown = f"{above}/{name}".lstrip("/")
    try:
        handle = os.open(name, removal.FOLDER, dir_fd=parent)
    except OSError as error:
        found.strange.append(f"{shown}: {error.strerror}; left as it is")
        yield None
        return
    try:
        why = _why_not(os.fstat(handle), os.fstat(parent))
        if why:
            found.strange.append(f"{shown}: {why}; left as it is")
        yield None if why else handle
    finally:
        os.close(handle)


def _why_not(state: os.stat_result, above: os.stat_result) -> str:
    if state.st_uid != os.getuid():
        return f"belongs to user {state.st_uid}, not to you"
    return "is another file system" if state.st_dev != above.st_dev else ""
