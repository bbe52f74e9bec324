"""Damage: what became of a machine between two looks at it, such as before and after a test."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from imagekit.checks import console
from imagekit.errors import Problem
from imagekit.guest import Guest

if TYPE_CHECKING:
    from imagekit.health import Health, ServiceState

NAMES = {  # what is judged beside the console; a marker allows it by these names
    "gone": "the machine is no longer there",
    "silent": "its agent answers no more",
    "rebooted": "it was started anew",
    "taint": "the kernel is tainted",
    "oom": console.BY_NAME["oom"].words,
    "read-only": console.BY_NAME["read-only"].words,
    "service": "a service failed",
    "power-off": "it did not power off cleanly",
}
KNOWN = tuple(sorted({*NAMES, *console.BY_NAME}))
OF_THE_KERNEL = {*console.BY_NAME, "taint", "oom"}  # what nobody does to a machine on purpose
SETTLING = 25  # looks, until a service that was just killed is one that its supervisor knows to have ended
ASKED_TO_END = (0, 128 + 1, 128 + 2, 128 + 15)  # codes of a service that somebody restarted: it went, or was told to


class Look(NamedTuple):
    """A machine at one moment."""

    console: int  # bytes that it has printed
    health: "Health | None"  # None: it cannot be asked
    why: str = ""  # it could not


class Damage(NamedTuple):
    """Something that broke."""

    name: str  # one of KNOWN
    words: str

    def __str__(self) -> str:
        return f"{self.name}: {self.words}"


def look(guest: Guest) -> Look:
    """A machine as it is now: one question to its agent."""
    try:
        health = guest.health() if guest.is_alive() else None
    except Problem as problem:
        return Look(guest.console.total, None, problem.message.partition("\n")[0])
    return Look(guest.console.total, health, "" if health else "it is gone")


def since(before: Look, guest: Guest) -> tuple[list[Damage], Look]:
    """What broke since a look, and the look that told so."""
    after = look(guest)
    for _ in range(SETTLING):
        if not _is_settling(before.health, after.health):
            break
        after = look(guest)
    found = [*_of_console(guest, before), *_of_state(guest, before, after)]
    return [*{damage.name: damage for damage in reversed(found)}.values()][::-1], after


def _is_settling(before: "Health | None", after: "Health | None") -> bool:
    """Whether a service has lost its program, and nobody has told yet."""
    if before is None or after is None:
        return False
    told = before.services
    return any(
        now.pid is None and name in told and told[name].pid is not None and now.state == told[name].state
        for name, now in after.services.items()
    )


def _of_console(guest: Guest, before: Look) -> Iterator[Damage]:
    for name, lines in console.complaints(guest, since=before.console).items():
        more = f" (and {len(lines) - 1} lines more)" if len(lines) > 1 else ""
        yield Damage(name, f"{console.BY_NAME[name].words}: {lines[0]}{more}")


def _of_state(guest: Guest, before: Look, after: Look) -> Iterator[Damage]:
    if not guest.is_alive():
        yield Damage("gone", NAMES["gone"])
    elif before.health is None:
        return  # it could not be asked then either
    elif after.health is None:
        yield Damage("silent", f"{NAMES['silent']}: {after.why}")
    elif after.health.boot_id != before.health.boot_id:
        yield Damage("rebooted", NAMES["rebooted"])
    else:
        yield from _of_health(guest, before.health, after.health)


def _of_health(guest: Guest, before: "Health", after: "Health") -> Iterator[Damage]:
    fresh = after.taint & ~before.taint
    if fresh:
        new = [words for words in after.taints if words not in before.taints]
        words = f"{', '.join(new) or 'see tainted-kernels.rst'}{_said(guest)}"
        yield Damage("taint", f"{NAMES['taint']} with {fresh}: {words}")
    if after.oom_kills > before.oom_kills:
        yield Damage("oom", f"{NAMES['oom']}: {after.oom_kills - before.oom_kills} programs were killed")
    if places := sorted({*after.read_only} - {*before.read_only}):
        yield Damage("read-only", f"{NAMES['read-only']}: {', '.join(places)}")
    broken = [str(now) for name, now in after.services.items() if _is_broken(before.services.get(name), now)]
    broken += [f"{name}: no longer known" for name in before.services.keys() - after.services.keys()]
    if broken:
        yield Damage("service", f"{NAMES['service']}: {'; '.join(sorted(broken))}")


def _said(guest: Guest) -> str:
    """What the kernel's log says of it, which a quiet boot keeps from the console; "" where nothing shows the log."""
    try:
        told = guest.run("dmesg").stdout
    except Problem:  # that it is damaged is told already
        return ""
    lines = [line for named in console.found(told).values() for line in named]
    return f": {lines[-1].strip()}" if lines else ""


def _is_broken(was: "ServiceState | None", now: "ServiceState") -> bool:
    if was == now:
        return False
    if now.state in ("failed", "ended") or (now.is_looping and not (was and was.is_looping)):
        return not (was and was.state == now.state)
    return now.restarts > (was.restarts if was else 0) and now.code not in ASKED_TO_END
