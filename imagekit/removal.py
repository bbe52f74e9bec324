"""Things are removed from a cache, so that it is right whenever this is killed.

A folder first gets a name that nobody looks for; a note or an object that is missing is made again by whoever needs it.
All is done by descriptors of folders, each opened in the one above it and none through a link: who changes a name
meanwhile leads nobody out of the cache.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from imagekit.errors import RigProblem

LOCK = "lock"
GONE = "gone"  # what was taken out of use, and is being removed
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
Inode = tuple[int, int]


class Thing(NamedTuple):
    """Something in a cache that can be removed by itself."""

    used: float  # when it was last used: ctime
    rank: int  # what is removed first; -1 for what was left behind
    folder: str  # below the cache
    name: str
    inodes: tuple[Inode, ...]

    @property
    def kind(self) -> str:
        """The folder of the cache that it lies in."""
        return self.folder.partition("/")[0]


@contextmanager
def opened(root: Path) -> Iterator[int]:
    """The descriptor of a cache's folder; raises RigProblem when it is not ours."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(handle).st_uid != os.getuid():
            raise RigProblem(f"the cache {root} is not yours", "its owner can remove things from it")
        yield handle
    finally:
        os.close(handle)


def entries(handle: int) -> Iterator[tuple[str, os.stat_result]]:
    """What lies in a folder, by its descriptor; links are not followed."""
    with os.scandir(handle) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)


def remove(root: int, chosen: Iterable[Thing], failures: list[str]) -> Iterator[Thing]:
    """Remove things, those of a folder one after another, and yield those that stay; why is added to the failures."""
    for place, things in groupby(chosen, key=lambda thing: thing.folder):
        with ExitStack() as own:
            folder = root
            for name in place.split("/"):
                folder = os.open(name, FOLDER, dir_fd=folder)
                own.callback(os.close, folder)
            for thing in things:
                try:
                    _remove(root, folder, thing)
                except FileNotFoundError:
                    pass
                except BlockingIOError:
                    yield thing
                    failures.append(f"{place}/{thing.name}: somebody holds it locked")
                except OSError as error:
                    yield thing
                    failures.append(f"{place}/{thing.name}: {error.strerror}")


def is_held(root: int, thing: Thing) -> bool:
    """Whether somebody lives on it or writes it now."""
    try:
        if _may_be_held(thing):
            _check_unlocked(root, f"{thing.folder}/{thing.name}")
    except BlockingIOError:
        return True
    return False


def _may_be_held(thing: Thing) -> bool:
    return thing.rank < 0 or thing.kind in ("templates", "roots")


def _remove(root: int, folder: int, thing: Thing) -> None:
    if _may_be_held(thing):
        _check_unlocked(folder, thing.name)
    try:
        os.unlink(thing.name, dir_fd=folder)
    except IsADirectoryError:
        _take_out(root, folder, thing.name)


def _check_unlocked(folder: int, name: str) -> None:
    """Raises BlockingIOError when somebody holds it: drafts and locks, templates and roots in use are locked."""
    import fcntl

    with ExitStack() as stack:
        above = folder
        for path in (name, LOCK):  # the thing itself; or a file in it, as a root has
            try:
                above = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
            except OSError:
                return  # a link, or what cannot be opened, is nobody's draft
            stack.callback(os.close, above)
            fcntl.flock(above, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _take_out(root: int, folder: int, name: str) -> None:
    """Give a folder a name that nobody looks for; it is removed at the end, or by the next who clears."""
    with suppress(FileExistsError):
        os.mkdir(GONE, 0o700, dir_fd=root)
    gone = os.open(GONE, FOLDER, dir_fd=root)
    try:
        os.rename(name, _free(name), src_dir_fd=folder, dst_dir_fd=gone)
    except PermissionError:  # its own ".." changes, which a read-only folder does not let us
        os.chmod(name, 0o700, dir_fd=folder)
        os.rename(name, _free(name), src_dir_fd=folder, dst_dir_fd=gone)
    finally:
        os.close(gone)


def _free(name: str) -> str:
    return f"{name[:64]}-{os.urandom(8).hex()}"


def empty(root: int) -> None:
    """Remove what was taken out. Folders in folders are lifted out one by one: no depth is too deep for that."""
    try:
        gone = os.open(GONE, FOLDER, dir_fd=root)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RigProblem(f"cannot remove what lies in {GONE}: {error.strerror}", "remove it by hand") from error
    try:
        waiting = os.listdir(gone)  # noqa: PTH208 - by its descriptor
        while waiting:
            waiting += _flattened(gone, waiting.pop())
    except OSError as error:
        raise RigProblem(f"cannot remove {GONE}/{error.filename}: {error.strerror}", "remove it by hand") from error
    finally:
        os.close(gone)


def _flattened(gone: int, name: str) -> list[str]:
    """Remove a file, or a folder whose own folders come to lie beside it; their new names."""
    with suppress(IsADirectoryError):
        os.unlink(name, dir_fd=gone)
        return []
    with suppress(PermissionError):  # it is another's
        os.chmod(name, 0o700, dir_fd=gone)
    lifted, handle = [], os.open(name, FOLDER, dir_fd=gone)
    try:
        for entry in os.listdir(handle):  # noqa: PTH208 - by its descriptor
            try:
                os.unlink(entry, dir_fd=handle)
            except IsADirectoryError:
                lifted.append(_free(""))
                with suppress(PermissionError):
                    os.chmod(entry, 0o700, dir_fd=handle)
                os.rename(entry, lifted[-1], src_dir_fd=handle, dst_dir_fd=gone)
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=gone)
    return lifted
