"""Who uses a cache: any number of processes at once, or one alone, who removes things from it.

A lock of the kernel's on the file `in-use` of the cache, freed with its holder however that ends. It is a file and no
folder, because NFS locks only files between hosts (flock(2), "NFS details").
"""

import errno
import os
import stat
from _thread import allocate_lock
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imagekit import host
from imagekit.errors import RigProblem

NAME = "in-use"
MOST_WORDS = 120  # characters of a command line that are shown
UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
Say = Callable[[str], None]

_HELD: dict[tuple[int, str], int] = {}  # (process, cache) -> descriptor: a child that was forked locks for itself
_TURN = allocate_lock()


class InUse(RigProblem):
    """Others use the cache now."""


def enter(root: Path, *, say: Say | None = None) -> None:
    """Use a cache from now on, as long as this process lives; whoever removes things from it is waited for.

    What cannot be written to cannot be cleared either, and is used without a lock.
    """
    mine, path = (os.getpid(), str(root)), f"{root}/{NAME}"
    with _TURN:
        if mine in _HELD and _is(path, _HELD[mine]):
            return
        if mine in _HELD:
            os.close(_HELD.pop(mine))  # of a cache that was removed, and made again
        handle = _locked(path, say or _tell)
        if handle is not None:
            _HELD[mine] = handle


@contextmanager
def alone(root: Path, *, wait: bool = False, say: Say | None = None) -> Iterator[None]:
    """Use a cache alone for a while. Raises InUse when others use it, unless they are to be waited for.

    Nothing that was found in the cache before counts any more: another may have removed it meanwhile.
    """
    import fcntl

    enter(root)
    handle = _HELD.get((os.getpid(), str(root)))
    if handle is None:
        raise RigProblem(f"cannot write to the cache {root}", "nothing can be removed from it")
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            users = ", ".join(holders(root)) or "a process of another host or container"
            if not wait:
                raise InUse(f"the cache {root} is in use: {users}", "--wait waits until it is not") from None
            (say or _tell)(f"waiting for {users}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:  # changing a lock gives up the old one first, also where it fails: flock(2)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:  # another removes things now: whoever opens the cache again waits for that
            with _TURN:
                os.close(_HELD.pop((os.getpid(), str(root))))


def outlive(root: Path) -> None:
    """Use a cache also after this process became another program, and as long as what that starts.

    They get a descriptor by which nothing can be written.
    """
    import fcntl

    with suppress(OSError):  # there is none where nothing can be removed either
        handle = os.open(root / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        fcntl.flock(handle, fcntl.LOCK_SH)
        os.set_inheritable(handle, True)


def holders(root: Path) -> list[str]:
    """The other processes that use a cache, in words; those of other hosts and containers cannot be seen."""
    found = []
    with suppress(OSError):
        state = os.stat(root / NAME)  # noqa: PTH116
        pids = {int(row[-4]) for row in _rows() if row[-3].endswith(f":{state.st_ino}")}  # proc_locks(5)
        for pid in sorted(pids - {os.getpid()}):
            if _has_open(pid, state):
                found.append(f"process {pid} ({_words(pid)})")
    return found


def _rows() -> Iterator[list[str]]:
    for line in Path("/proc/locks").read_text().splitlines():
        row = line.split()
        if "FLOCK" in row and "->" not in row and row[-4].isdigit():  # an arrow is one who waits
            yield row


def _has_open(pid: int, state: os.stat_result) -> bool:
    """Whether it is this file: other file systems have inodes of the same number."""
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208
            with suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), state):  # noqa: PTH116
                    return True
    return False


def _words(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = host.printable(file.read(4096).replace(b"\0", b" ")).replace("\n", " ").strip()
    except OSError:
        return "which has ended"
    return words if len(words) <= MOST_WORDS else words[:MOST_WORDS] + "..."


def _locked(path: str, say: Say) -> int | None:
    import fcntl

    while True:
        handle = _open(path)
        if handle is None:
            return None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                users = ", ".join(holders(Path(path).parent)) or "another process"
                say(f"waiting for {users}, which removes from the cache what nobody uses")
                fcntl.flock(handle, fcntl.LOCK_SH)
        except OSError as error:
            os.close(handle)
            raise RigProblem(
                f"cannot lock {path}: {error.strerror}", "set IMAGEKIT_CACHE to a folder of another file system"
            ) from error
        except BaseException:
            os.close(handle)
            raise
        if _is(path, handle):
            return handle
        os.close(handle)  # somebody removed the cache while we waited


def _open(path: str) -> int | None:
    """The file of the lock, made if need be; None where there is none and nothing can be written."""
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags | os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            hint = "make room, or set IMAGEKIT_CACHE"
            raise RigProblem(f"cannot use the cache: {path}: {error.strerror}", hint) from error
        try:
            handle = os.open(path, flags | os.O_RDONLY)
        except OSError:
            return None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise RigProblem(f"{path} is no file", "remove it, or set IMAGEKIT_CACHE")
    return handle


def _is(path: str, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))  # noqa: PTH116
    except OSError:
        return False


def _tell(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)
