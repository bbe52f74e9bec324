"""Patience: how long a machine is waited for, in what it did instead of what the clock on the wall showed.

A machine on a busy host is slow, not broken: while it waits for a processor of the host, no limit comes nearer but the
last net. Three things are told apart: it works, it sleeps of its own accord (is idle), it is kept waiting.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

NET, MORE_NET = 10.0, 60.0  # the last net is that many times the nearest limit, and that many seconds more
SHORTEST = 0.01  # seconds between two looks


class Spent(NamedTuple):
    """What a machine did while it was waited for, in seconds."""

    worked: float = 0.0  # processor time of its QEMU
    idle: float = 0.0  # it used no processor and waited for none
    silent: float = 0.0  # of these, since it said anything
    wall: float = 0.0
    waited: float = 0.0  # the host kept it waiting for a processor


Stopwatch = Callable[[], Callable[[], float]]  # start one, and it tells the seconds since then


def wall_watch() -> Callable[[], float]:
    """A stopwatch for what is no machine of its own: the clock on the wall."""
    began = time.monotonic()
    return lambda: time.monotonic() - began


@dataclass(frozen=True)
class Patience:
    """How long to wait for a machine; the first limit that is reached ends the wait."""

    work: float  # seconds that it may work
    idle: float = inf  # seconds that it may be idle in all
    silent: float = inf  # seconds that it may be idle without a word
    wall: float = 0.0  # seconds on the wall, the last net; 0: far beyond the other limits

    @classmethod
    def of(cls, seconds: float) -> "Patience":
        """That many seconds of the machine's own: as many as on an idle host, where nothing keeps it waiting."""
        return cls(work=seconds, idle=seconds)

    def __mul__(self, scale: float) -> "Patience":
        return Patience(self.work * scale, self.idle * scale, self.silent * scale, self.wall * scale)

    @property
    def net(self) -> float:
        """Seconds on the wall after which a wait ends whatever the machine does."""
        return self.wall or NET * min(self.work, self.idle) + MORE_NET

    def over(self, spent: Spent) -> str:
        """Which limit was reached, in words; "" while none is."""
        if spent.worked >= self.work:
            return f"the guest worked {self.work:g} s"
        if spent.silent >= self.silent:
            return f"the guest is idle, not slow: nothing for {self.silent:g} s, and its processor sleeps"
        if spent.idle >= self.idle:
            return f"the guest was idle for {self.idle:g} s"
        if spent.wall >= self.net:
            kept = f"the host kept it waiting for {spent.waited:.0f} s"
            return f"the wall limit of {self.net:g} s was reached; the guest worked {spent.worked:.1f} s, {kept}"
        return ""

    def left(self, spent: Spent) -> float:
        """Seconds on the wall that pass at least until a limit can be reached."""
        rests = (self.work - spent.worked, self.idle - spent.idle, self.silent - spent.silent, self.net - spent.wall)
        return max(SHORTEST, min(rests))


class Outcome(NamedTuple):
    """How a wait ended: it is true when what was awaited came."""

    came: bool
    limit: str = ""  # which limit ended it, in words; "" when the machine ended
    spent: Spent = Spent()

    def __bool__(self) -> bool:
        return self.came
