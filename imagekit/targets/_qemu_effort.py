"""What a QEMU did with the host's processors: it worked, it was idle, or it was kept waiting for one.

The kernel counts for each thread how long it ran and how long it was runnable and did not run (the first two fields of
/proc/PID/task/TID/schedstat, Documentation/scheduler/sched-stats.rst), so that load on the host is taken neither for
work of the guest nor for idleness. While our own thread is kept waiting, or a thread of QEMU waits for a disk, the
guest may sleep because of that, and is not called idle either.
"""

import os
import time
from collections.abc import Callable
from threading import get_native_id

from imagekit.patience import Spent

SOON = 0.02  # seconds within which a second look tells nothing new
NOT_IDLE = (["R"], ["D"], ["T"], ["t"])  # states of proc(5): runs or would, waits for a disk, was stopped


class Effort:
    """The sums since it was made; to be asked by one thread."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._threads: dict[str, tuple[float, float]] = {}  # as they were at the last look: seconds run and waited
        self._own, self._ticks = _own_wait(), 0.0
        self._looked_at = time.monotonic()
        self._has_news = False
        self._worked = self._waited = self._idle = self._idle_at_news = self._wall = 0.0
        self._count()

    def news(self) -> None:
        """The machine said something."""
        self._has_news = True

    def look(self) -> Spent:
        """What was spent until now; `silent` is counted from the last news."""
        passed = time.monotonic() - self._looked_at
        if passed >= SOON:
            self._looked_at += passed
            self._wall += passed
            worked, waited, is_busy = self._count()
            own = _own_wait()
            waited, self._own = waited + own - self._own, own
            self._worked += worked
            self._waited += waited
            idle = passed - worked - waited  # may be negative: a wait is counted when it is over
            self._idle += min(idle, 0.0) if is_busy else idle
            if self._has_news:
                self._has_news, self._idle_at_news = False, self._idle
        silent = max(0.0, self._idle - self._idle_at_news)
        return Spent(self._worked, self._idle, silent, self._wall, self._waited)

    def since(self, begin: Spent) -> Spent:
        """What was spent since an earlier look."""
        now = self.look()
        idle = max(0.0, now.idle - begin.idle)
        worked, waited = now.worked - begin.worked, now.waited - begin.waited
        return Spent(worked, idle, min(idle, now.silent), now.wall - begin.wall, waited)

    def _count(self) -> tuple[float, float, bool]:
        """Seconds that all threads ran and waited since the last time, and whether one of them does not sleep now."""
        before, self._threads = self._threads, {}
        worked = waited = 0.0
        is_busy = False
        for thread in _threads(self._pid):
            ran, was_kept = _schedstat(f"/proc/{self._pid}/task/{thread}")
            last_ran, last_was_kept = before.get(thread, (0.0, 0.0))
            worked += ran - last_ran
            waited += was_kept - last_was_kept
            self._threads[thread] = ran, was_kept
            is_busy |= _stat(f"/proc/{self._pid}/task/{thread}")[:1] in NOT_IDLE
        if not any(ran for ran, _ in self._threads.values()):  # a kernel that does not count so
            return self._worked_by_ticks(), 0.0, True
        return worked, waited, is_busy

    def _worked_by_ticks(self) -> float:
        fields = _stat(f"/proc/{self._pid}")
        before, self._ticks = self._ticks, sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
        return max(0.0, self._ticks - before)


def stopwatch(pid: int, scale: float = 1.0) -> Callable[[], float]:
    """Tells the seconds since it was made, less those in which the host kept the process waiting; for one thread."""
    effort = Effort(pid)
    begin = effort.look()

    def passed() -> float:
        spent = effort.since(begin)
        return (spent.wall - spent.waited) / scale

    return passed


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 - names are all that is wanted, every time
    except OSError:  # it has ended
        return []


def _schedstat(folder: str) -> tuple[float, float]:
    """Seconds that a thread ran, and that it was kept waiting for a processor; zeros when it is gone."""
    try:
        with open(f"{folder}/schedstat") as file:
            ran, waited, _ = file.read().split()
    except (OSError, ValueError):
        return 0.0, 0.0
    return int(ran) / 1e9, int(waited) / 1e9


def _own_wait() -> float:
    return _schedstat(f"/proc/self/task/{get_native_id()}")[1]


def _stat(folder: str) -> list[str]:
    """The fields of stat from the third on (proc(5)); the name before them may contain anything."""
    try:
        with open(f"{folder}/stat") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []
