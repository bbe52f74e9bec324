"""Tars are unpacked into a folder of their own, safely: nothing in an archive can reach out of that folder.

How, disk/newtree.py says. A folder gets its name when all is there: whoever is killed before leaves a draft that the
next one removes.
"""

import ctypes
import os
from collections.abc import Iterator
from errno import EEXIST, ENOTEMPTY
from fcntl import LOCK_EX, LOCK_NB, flock

from imagekit.disk import tarread
from imagekit.disk.newtree import FOLDER, PASSED, SIGNED, NewTree, Policy
from imagekit.disk.tarread import shown
from imagekit.errors import RigProblem

MAX_BYTES = 64 << 30  # of the tar
MALLOC = {-8: 1, -3: 64 << 20, -1: 256 << 20}  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD: mallopt(3)
_libc = ctypes.CDLL(None, use_errno=True)


class Unpacked:
    """What was unpacked, and how much of it was left out: by policy, or because an ordinary user may not."""

    __slots__ = ("entries", "left_out")

    def __init__(self, entries: int, left_out: dict[str, int]) -> None:
        self.entries, self.left_out = entries, left_out


def unpack(
    pieces: Iterator[bytes], into: str, *, policy: Policy = SIGNED, most: int = MAX_BYTES, durable: bool = True
) -> Unpacked:
    """Unpack a tar into a new folder, whose own folder is private; it gets its name when all is there.

    most: bytes that the tar may have. durable: all is on the disk before the folder has its name.
    When another was faster, theirs stays. Raises Problem for what is no good tar, RigProblem when it cannot be written.
    """
    parent, name = os.path.split(os.path.abspath(into))  # noqa: PTH100 - pathlib takes longer than small trees
    try:
        within = os.open(parent, FOLDER)
    except OSError as error:
        raise RigProblem(f"cannot unpack in {parent}: {error.strerror}") from error
    try:
        _sweep(name, within)
        draft, handle = _draft(within, name)
        try:
            done = fill(pieces, handle, policy=policy, most=most)
            if durable and _libc.syncfs(handle):
                raise RigProblem(f"cannot write {into}: {os.strerror(ctypes.get_errno())}", "look at the disk")
            _rename(draft, name, within)
        except BaseException:
            remove(draft, within)
            raise
        finally:
            os.close(handle)
    finally:
        os.close(within)
    return done


def reuse_memory() -> None:
    """Let chunks lie where others lay, not in fresh pages each: for a process that does little else than unpack."""
    if hasattr(_libc, "mallopt"):  # glibc's; musl has none
        for option, value in MALLOC.items():
            _libc.mallopt(option, value)


def fill(pieces: Iterator[bytes], handle: int, *, policy: Policy = SIGNED, most: int = MAX_BYTES) -> Unpacked:
    """Unpack a tar into an empty folder, by its descriptor, that nobody else writes in."""
    reader = tarread.Reader(pieces, most=most)
    tree = NewTree(handle, reader, policy)
    member = None
    try:
        while (member := reader.member()) is not None:
            tree.add(member)
        tree.finish()
    except OSError as error:
        what = shown(member.name) if member else "a folder"
        raise RigProblem(f"cannot unpack {what}: {error.strerror}", "make room, or unpack elsewhere") from error
    finally:
        tree.close()
        if close := getattr(pieces, "close", None):
            close()  # ends its threads, before anybody closes what they read
    return Unpacked(tree.entries, tree.left_out)


def remove(name: str, within: int) -> None:
    """Remove a folder that was unpacked, and what lies in it."""
    handle = _opened(name, within)
    try:
        os.fchmod(handle, 0o700)
        for entry in os.listdir(handle):  # noqa: PTH208 - by its descriptor
            try:
                os.unlink(entry, dir_fd=handle)
            except IsADirectoryError:
                remove(entry, handle)
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=within)


def _opened(name: str, within: int) -> int:
    """The descriptor of a folder, also of one that its owner may not look into; OSError for a link."""
    try:
        return os.open(name, FOLDER, dir_fd=within)
    except PermissionError:
        passed = os.open(name, PASSED, dir_fd=within)
        try:
            os.chmod(f"/proc/self/fd/{passed}", 0o700)  # noqa: PTH101
        finally:
            os.close(passed)
        return os.open(name, FOLDER, dir_fd=within)


def _sweep(name: str, within: int) -> None:
    """Remove the drafts of this name that nobody writes any more."""
    for entry in os.listdir(within):
        if entry.startswith(f".{name}.") and entry.endswith(".draft"):
            _remove_abandoned(entry, within)


def _draft(within: int, name: str) -> tuple[str, int]:
    """A new private folder, locked as long as its descriptor is open: the kernel frees a lock with its holder."""
    while True:
        draft = f".{name}.{os.urandom(8).hex()}.draft"
        try:
            os.mkdir(draft, 0o700, dir_fd=within)
            handle = _locked(draft, within)
        except OSError as error:
            raise RigProblem(f"cannot unpack {name}: {error.strerror}", "make room, or unpack elsewhere") from error
        if os.fstat(handle).st_nlink:
            return draft, handle
        os.close(handle)  # somebody took it for abandoned before it was locked


def _locked(draft: str, within: int) -> int:
    handle = os.open(draft, FOLDER, dir_fd=within)
    try:
        flock(handle, LOCK_EX)
    except OSError:  # of NFS, where only what can be written to is locked
        os.close(handle)
        os.rmdir(draft, dir_fd=within)
        raise
    return handle


def _remove_abandoned(name: str, within: int) -> None:
    try:
        handle = _opened(name, within)
    except OSError:
        return  # no folder of ours, or gone meanwhile
    try:
        flock(handle, LOCK_EX | LOCK_NB)
        remove(name, within)
    except BlockingIOError:
        pass  # somebody writes it
    finally:
        os.close(handle)


def _rename(draft: str, name: str, within: int) -> None:
    try:
        os.rename(draft, name, src_dir_fd=within, dst_dir_fd=within)
    except OSError as error:
        if error.errno not in (EEXIST, ENOTEMPTY):
            raise RigProblem(f"cannot name {name}: {error.strerror}") from error
        remove(draft, within)  # another was faster, and has the same
