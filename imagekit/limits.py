"""How much a run may take of the machine: memory, processors and processes, by control groups where one can be made.

A group stays when its last process ends, and the program has taken our place: so a small process of ours waits for that
and removes the group. If that is killed, too, the next run with limits does it.

Where no group can be made, limits of processes take their place, which are weaker; that is said.
"""

# ruff: noqa: PTH106, PTH120, PTH208 - as in namespace.py: pathlib costs as much as the rest of a start

import os

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Say = Callable[[str], None]

PERIOD = 100_000  # microseconds in which a group has its share of the processors
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
NAME = "imagekit-"
LEAST_MEMORY = 1 << 20
RATE = 0.2  # seconds between two looks whether a group is empty


class Limit:
    """A resource: what is written to which file of a group in version 2 and 1 (cgroups(7)), and what else there is."""

    def __init__(self, option: str, *, controller: str, files: dict[int, list[tuple[str, str]]], weaker: str) -> None:
        self.option, self.controller, self.files, self.weaker = option, controller, files, weaker


def apply(*, memory: str, cpus: str, pids: str, say: "Say") -> None:
    """Hold this process, and all that it starts, to limits; raises OSError for a limit that is none."""
    wanted = [(limit, value) for limit, value in (_memory(memory), _cpus(cpus), _pids(pids)) if value]
    groups = list[str]()
    for limit, value in wanted:
        group = _group(limit)
        if group:
            groups += [group] if group not in groups else []
        else:
            say(f"{limit.option}: no control group can be made here: {limit.weaker}")
            WEAKER[limit.controller](value)
    if not groups:
        return
    _watch(groups)
    for group in groups:
        _put(f"{group}/cgroup.procs", "0")  # whoever writes


def _memory(text: str) -> tuple[Limit, float]:
    number, unit = text.removesuffix("iB").removesuffix("B"), ""
    if number[-1:] in UNITS:
        number, unit = number[:-1], number[-1:]
    value = _number("--memory", text, number, least=1) * (1 << UNITS[unit])
    if text and value < LEAST_MEMORY:
        raise OSError(0, f"--memory {text}: no program runs in less than 1M")
    files = {2: [("memory.max", f"{value:.0f}")], 1: [("memory.limit_in_bytes", f"{value:.0f}")]}
    weaker = "each process may have so much (RLIMIT_DATA), not all together"
    return Limit("--memory", controller="memory", files=files, weaker=weaker), value


def _cpus(text: str) -> tuple[Limit, float]:
    value = _number("--cpus", text, text, least=0.01)
    quota = f"{value * PERIOD:.0f}"
    files = {
        2: [("cpu.max", f"{quota} {PERIOD}")],
        1: [("cpu.cfs_period_us", str(PERIOD)), ("cpu.cfs_quota_us", quota)],
    }
    return Limit("--cpus", controller="cpu", files=files, weaker="it has whole processors, rounded up"), value


def _pids(text: str) -> tuple[Limit, float]:
    value = _number("--pids", text, text, least=1)
    files = {version: [("pids.max", f"{value:.0f}")] for version in (1, 2)}
    weaker = "counted are all processes of this user (RLIMIT_NPROC), and root's are not limited"
    return Limit("--pids", controller="pids", files=files, weaker=weaker), value


def _number(option: str, text: str, number: str, *, least: float) -> float:
    if not text:
        return 0.0
    whole, _, part = number.partition(".")
    if not (whole + part).isdigit() or not (whole + part).isascii() or len(number) > 15 or float(number) < least:
        raise OSError(0, f"{option} {text}: that is no such number (as in --memory 512M --cpus 1.5 --pids 100)")
    return float(number)


# --- groups -----------------------------------------------------------------------------------------------------------


def _group(limit: Limit) -> str:
    """A group of our own that holds to a limit; empty where none can be made."""
    for version, parent in _parents(limit.controller):
        _sweep(parent)
        group = f"{parent}/{NAME}{os.getpid()}"
        try:
            if version == 2 and not os.path.exists(f"{parent}/{limit.files[2][0][0]}"):  # noqa: PTH110
                _put(f"{parent}/cgroup.subtree_control", f"+{limit.controller}")
            os.makedirs(group, exist_ok=True)  # noqa: PTH103
            for name, text in limit.files[version]:
                _put(f"{group}/{name}", text)
        except OSError:
            _remove(group)
            continue
        return group
    return ""


def _parents(controller: str) -> "Iterator[tuple[int, str]]":
    """Where a group may be made: below our own; or beside it, since in version 2 one with processes divides nothing."""
    places = dict(_own())
    for root, kind, options in _mounts():
        if kind == "cgroup2" and "" in places:
            own = f"{root}{places['']}".rstrip("/")
            yield 2, own
            if own != root:
                yield 2, os.path.dirname(own)
        elif kind == "cgroup" and controller in options.split(","):
            yield from (
                (1, f"{root}{path}".rstrip("/")) for kinds, path in places.items() if controller in kinds.split(",")
            )


def _own() -> "Iterator[tuple[str, str]]":
    """(controllers, path) of the groups that we are in; no controllers for version 2."""
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, kinds, path = line.rstrip("\n").split(":", 2)
            yield kinds, path


def _mounts() -> "Iterator[tuple[str, str, str]]":
    """(place, type, options) of the file systems of groups: proc_pid_mountinfo(5)."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.rstrip("\n").partition(" - ")
            kind, _, options = right.split(" ", 2)
            if kind in ("cgroup", "cgroup2"):
                yield left.split(" ")[4], kind, options


def _put(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


# --- and their end ----------------------------------------------------------------------------------------------------


def _watch(groups: list[str]) -> None:
    """Start what removes the groups when they are empty; it is no child of the program that we become."""
    life = os.pidfd_open(os.getpid())
    child = os.fork()
    if child == 0:
        try:
            if os.fork() == 0:
                _wait(life, groups)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(life)


def _wait(life: int, groups: list[str]) -> None:
    """Hold nothing of the caller's open; wait for the program's end, and for what it left running."""
    import select
    import time

    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.closerange(3, life)
    os.closerange(life + 1, os.sysconf("SC_OPEN_MAX"))
    waiting = select.poll()  # which knows numbers above 1024, too
    waiting.register(life, select.POLLIN)
    waiting.poll()
    while groups := [group for group in groups if not _remove(group)]:
        time.sleep(RATE)


def _sweep(parent: str) -> None:
    """Remove the empty groups of runs that have ended."""
    try:
        names = [name for name in os.listdir(parent) if name.startswith(NAME)]
    except OSError:
        return
    for name in names:
        if name != f"{NAME}{os.getpid()}":
            _remove(f"{parent}/{name}")


def _remove(group: str) -> bool:
    """Whether it is gone; the kernel keeps one that has processes."""
    try:
        os.rmdir(group)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


# --- where no group can be made ---------------------------------------------------------------------------------------


def _less(name: str, value: float) -> None:
    import resource

    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    most = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
    resource.setrlimit(kind, (most, most))


def _fewer_processors(value: float) -> None:
    ours = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, ours[: max(1, -int(-value // 1))])


WEAKER: "dict[str, Callable[[float], None]]" = {
    "memory": lambda value: _less("RLIMIT_DATA", value),
    "cpu": _fewer_processors,
    "pids": lambda value: _less("RLIMIT_NPROC", value),
}
