"""How much room a cache may take on the disk, and how to make some when that is full."""

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from imagekit import clearing, inuse, options, removal
from imagekit.disk.parts import size
from imagekit.errors import Problem

OPTION = "cache-size"
SHARE = 0.8  # of what a cache may have is left to it when it has grown past that
OFTEN = 300.0  # seconds after which its size is looked at again
LOOKED = "looked"  # a file of the cache: when that was last done
DAYS = 30.0  # after which what nobody used goes, if nothing else is said
FULL = (errno.ENOSPC, errno.EDQUOT)


def most(folder: Path | None = None) -> int:
    """Bytes that the cache may have, without limit where nobody said so. Raises Problem when that is no size."""
    given, where = options.origin(OPTION, folder=folder, default=f"{1 << 20} T")
    try:
        return clearing.size_of(str(given))
    except Problem as problem:
        raise Problem(f"{OPTION} ({where}): {problem.message}", problem.hint) from problem


def limit(root: Path, most: int, *, say: Callable[[str], None]) -> None:
    """Remove the longest unused from a cache that has grown past a size; not while others use it, nobody is waited for.

    To be called last: what was found in the cache before may be gone afterwards.
    """
    if not root.is_dir() or not _is_due(root):
        return
    with removal.opened(root) as handle:
        total = clearing.look(handle).bytes
    if total <= most:
        return
    try:
        with inuse.alone(root):
            done = clearing.clear(root, keep=int(most * SHARE))
    except inuse.InUse:
        say(f"the cache has {size(total)}, of {size(most)} that it may have; others use it now")
    else:
        say(f"the cache had {size(total)}, of {size(most)} that it may have: {size(done.freed)} freed")


def hint(root: Path, error: OSError) -> str:
    """What to do when the cache cannot be written to: on a full disk, also how much there is to be removed."""
    short = "make room, or set IMAGEKIT_CACHE"
    if error.errno not in FULL:
        return short
    with suppress(OSError, Problem):
        unused, all_ = (clearing.clear(root, days=days, dry_run=True).freed for days in (DAYS, 0.0))
        return (
            f"make room: `imagekit store gc` would free {size(unused)}, with --older-than 0 {size(all_)}; "
            "or set IMAGEKIT_CACHE"
        )
    return short


def _is_due(root: Path) -> bool:
    """Whether it was not looked at for a while, which is noted: looking takes longer than a small build."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(root / LOOKED, flags, 0o600)
    except OSError:  # there is no room even for that
        return True
    try:
        found = os.fstat(handle)
        is_due = not found.st_size or abs(time.time() - found.st_mtime) > OFTEN or not stat.S_ISREG(found.st_mode)
        if is_due:
            with suppress(OSError):
                os.pwrite(handle, b"\n", 0)
                os.utime(handle)
        return is_due
    finally:
        os.close(handle)
