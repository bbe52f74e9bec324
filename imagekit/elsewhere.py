"""Run a module as it would run elsewhere: another user and host, hour, processor and order of folders.

    python -m imagekit.elsewhere FILE MODULE WORD...

writes into FILE which of these this machine let it change. Whoever starts it changes what a process inherits: variables
and time zone. What a format writes must depend on none of it.
"""

import ctypes
import datetime
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CLONE_NEWUSER, CLONE_NEWUTS = 0x10000000, 0x04000000
USER, HOST = 4321, b"elsewhere"
LATER = 400 * 86400 + 7 * 3600 + 83  # seconds: another year, day and hour


def user_and_host() -> None:
    """Be user 4321 of a machine called "elsewhere", in namespaces of our own."""
    uid, gid, parent = os.getuid(), os.getgid(), os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWUTS) or libc.sethostname(HOST, len(HOST)):
        raise OSError(ctypes.get_errno(), "no user namespace")
    Path("/proc/self/setgroups").write_text("deny")  # user_namespaces(7): before gid_map
    Path("/proc/self/uid_map").write_text(f"{USER} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{USER} {gid} 1")
    from imagekit import namespace

    namespace.die_with(parent)  # new credentials cleared it


def mask() -> None:
    """Another umask."""
    os.umask(0o077 if os.umask(0o022) != 0o077 else 0o022)


def processors() -> None:
    """One processor where there are several."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    os.cpu_count = lambda: 1


def clock() -> None:
    """A later time of day, for Python; programs that it starts see the machine's."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + LATER
    time.time_ns = lambda: now_ns() + LATER * 10**9
    for name in ("localtime", "gmtime", "ctime"):
        setattr(time, name, _of_now(getattr(time, name), lambda: now() + LATER))
    strftime, asctime = time.strftime, time.asctime
    time.strftime = lambda form, when=None: strftime(form, when or time.localtime())
    time.asctime = lambda when=None: asctime(when or time.localtime())
    datetime.datetime, datetime.date = _Datetime, _Date  # type: ignore[misc]


def order() -> None:
    """Folders list what they hold from the last name to the first."""
    listdir, scandir = os.listdir, os.scandir
    setattr(os, "listdir", lambda *where: sorted(listdir(*where), reverse=True))  # noqa: B010 - typed as overloads
    setattr(os, "scandir", lambda *where: _Scanned(scandir(*where)))  # noqa: B010


CONDITIONS: dict[str, Callable[[], None]] = {
    "user and host name": user_and_host,
    "umask": mask,
    "number of processors": processors,
    "time": clock,
    "order of folders": order,
}


def main() -> None:
    """Change what can be changed, tell it, and become the module."""
    told, module, *words = sys.argv[1:]
    Path(told).write_text("\n".join(name for name, change in CONDITIONS.items() if _changes(change)))
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _changes(change: Callable[[], None]) -> bool:
    try:
        change()
    except OSError:  # a machine without user namespaces
        return False
    return True


def _of_now(function: Callable[..., Any], now: Callable[[], float]) -> Callable[..., Any]:
    return lambda when=None: function(now() if when is None else when)


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "_Datetime":
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def today(cls) -> "_Datetime":
        return cls.now()

    @classmethod
    def utcnow(cls) -> "_Datetime":
        return cls.now(datetime.UTC).replace(tzinfo=None)


class _Date(datetime.date):
    @classmethod
    def today(cls) -> "_Date":
        return cls.fromtimestamp(time.time())


class _Scanned:
    """What os.scandir gives, in another order."""

    def __init__(self, entries: Any) -> None:
        with entries:
            self._entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._entries)

    def __enter__(self) -> "_Scanned":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is open any more."""


if __name__ == "__main__":
    main()
