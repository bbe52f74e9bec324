"""Health: how a running guest is: its kernel, its mounts, its memory, its services; a value, and the parser for it.

The agent tells it in lines (inside/health.c). They are a guest's words: each must make sense, and there is an end.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imagekit.boot import Stage
from imagekit.console import WIDTH, escape
from imagekit.errors import GuestProblem

MAX_LINES, TAIL = 1024, 20  # lines that are read, events that are kept
LOOP = 2  # restarts of a service from which it is said to restart in a loop
TAINTS = {  # bits of /proc/sys/kernel/tainted (admin-guide/tainted-kernels.rst) that tell of a failure
    4: "a processor reported an error (machine check)",
    5: "bad memory pages",
    7: "the kernel died (oops or BUG)",
    9: "the kernel warned (WARNING)",
    14: "a lockup",
}


@dataclass(frozen=True)
class ServiceState:
    """A service as it is now, from what the guest told of it and what its supervisor says."""

    name: str
    state: str  # "started", "ready", "ended" or "failed"
    code: int | None = None  # with which it ended last; 128 + signal where a signal ended it
    reason: str = ""  # why it failed for good
    restarts: int = 0
    pid: int | None = None  # None: it does not run, or its supervisor was not asked

    @property
    def is_looping(self) -> bool:
        """Whether it ends and is started again and again."""
        return self.restarts >= LOOP

    def __str__(self) -> str:
        end = "" if self.code is None else f", last ended with {self.code}"
        again = f", restarted {self.restarts} times" if self.restarts else ""
        return f"{self.name}: {self.state}{': ' + self.reason if self.reason else ''}{end}{again}"


@dataclass(frozen=True)
class Health:
    """A guest at one moment."""

    uptime: float  # seconds since the kernel's start
    boot_id: str  # another one after a reboot
    taint: int
    memory: int  # bytes
    memory_available: int  # bytes
    processes: int  # programs; the kernel's own threads do not count
    zombies: int
    oom_kills: int
    read_only: tuple[str, ...] = ()  # mount points
    services: Mapping[str, ServiceState] = field(default_factory=dict)
    events: tuple[Stage, ...] = ()  # the last that the guest told

    @property
    def taints(self) -> tuple[str, ...]:
        """What the kernel's taint tells of failures, in words."""
        return tuple(words for bit, words in TAINTS.items() if self.taint >> bit & 1)

    @property
    def failed(self) -> tuple[ServiceState, ...]:
        """Services that failed for good, ended with a code that is not 0, or restart in a loop."""
        return tuple(
            s for s in self.services.values() if s.state == "failed" or (s.state == "ended" and s.code) or s.is_looping
        )


def parse(told: bytes, events: Iterable[Stage] = ()) -> Health:
    """What the agent's lines say; raises GuestProblem for one that makes no sense, or is missing."""
    values: dict[str, Any] = {}
    read_only: list[str] = []
    pids: dict[str, int] = {}
    lines = told.decode("utf-8", "backslashreplace").split("\n")
    if len(lines) > MAX_LINES or lines[-2:] != ["end", ""]:
        raise GuestProblem(f"the guest's health has {len(lines)} lines and no end, or more than {MAX_LINES}")
    for line in lines[:-2]:
        word, _, rest = line.partition(" ")
        if word == "read_only" and rest:
            read_only.append(escape(rest.encode())[:WIDTH])
        elif word == "service" and (found := _SERVICE.fullmatch(rest)):
            pids[found[1]] = int(found[2])
        elif word in _ONCE and word not in values and (found := _ONCE[word][0].fullmatch(rest)):
            values[word] = _ONCE[word][1](found)
        else:
            raise GuestProblem(f"the guest's health has a line that makes no sense: {escape(line.encode())[:WIDTH]}")
    if missing := _ONCE.keys() - values.keys():
        raise GuestProblem(f"the guest's health says nothing of {', '.join(sorted(missing))}")
    (memory, available), (processes, zombies) = values.pop("memory"), values.pop("processes")
    kept = tuple(events)
    return Health(
        **values, memory=memory, memory_available=available, processes=processes, zombies=zombies,
        read_only=tuple(read_only), services=states(kept, pids), events=kept[-TAIL:],
    )  # fmt: skip


def states(events: Iterable[Stage], pids: Mapping[str, int] | None = None) -> dict[str, ServiceState]:
    """Every service that the guest's events name; `pids` are those of the supervisors, 0 where nothing runs."""
    found: dict[str, ServiceState] = {}
    ready: set[str] = set()
    for _, words in events:
        match words.split():
            case ["service", verb, name, *rest]:
                found[name] = _next(found.get(name), name, verb, rest, ready)
    return {
        name: ServiceState(s.name, s.state, s.code, s.reason, s.restarts, (pids or {}).get(name) or None)
        for name, s in found.items()
    }


def _next(was: ServiceState | None, name: str, verb: str, rest: list[str], ready: set[str]) -> ServiceState:
    """A service after one more event; one that was ready and runs again is ready: that is told only once."""
    code, reason, restarts = (was.code, was.reason, was.restarts) if was else (None, "", 0)
    match verb:
        case "start":
            return ServiceState(name, "ready" if name in ready else "started", code, "", restarts + bool(was))
        case "ready":
            ready.add(name)
            return ServiceState(name, "ready", code, "", restarts)
        case "exit":
            last = int(rest[0]) if rest and re.fullmatch(r"[0-9]{1,3}", rest[0]) else None
            return ServiceState(name, "failed" if reason else "ended", last, reason, restarts)
        case "failed":
            return ServiceState(name, "failed", code, " ".join(rest) or "no reason given", restarts)
    return was or ServiceState(name, "started")


_NUMBER = r"([0-9]{1,19})"
_SERVICE = re.compile(rf"(\S{{1,255}}) {_NUMBER} ([01]) ([01])")
_One = tuple[re.Pattern[str], Callable[[re.Match[str]], Any]]
_ONCE: dict[str, _One] = {
    "taint": (re.compile(_NUMBER), lambda m: int(m[1])),
    "uptime": (re.compile(r"([0-9]{1,12}\.[0-9]{9})"), lambda m: float(m[1])),
    "boot_id": (re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"), lambda m: m[1]),
    "memory": (re.compile(f"{_NUMBER} {_NUMBER}"), lambda m: (int(m[1]) << 10, int(m[2]) << 10)),
    "processes": (re.compile(f"{_NUMBER} {_NUMBER}"), lambda m: (int(m[1]), int(m[2]))),
    "oom_kills": (re.compile(_NUMBER), lambda m: int(m[1])),
}
