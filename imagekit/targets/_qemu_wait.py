"""What a boot is waited for: that everything is up, that the guest powers off, words on its console, or nothing."""

import re
from collections.abc import Callable

from imagekit.errors import Problem, unknown
from imagekit.guest import GuestProblem, Rig
from imagekit.patience import Patience
from imagekit.targets._machine import Machine

WAITS = ("ready", "shutdown", "nothing", "console:REGEX")
SETTLE, GOING_DOWN = 0.3, 3.0  # seconds for the console's last words after a failure; the latter ends with QEMU
CARRY = 1 << 14  # bytes before the news that a pattern may reach back to


def check(wait: str) -> None:
    """Raise Problem when that is nothing that can be waited for."""
    kind, colon, pattern = wait.partition(":")
    if kind != "console" or not colon:
        if wait not in WAITS[:3]:
            raise unknown("thing to wait for", wait, WAITS)
        return
    try:
        re.compile(pattern.encode())
    except re.error as error:
        raise Problem(
            f"console:{pattern} is no regular expression: {error}", "Python's `re` says how they are"
        ) from None


async def boot(machine: Machine, name: str, rig: Rig, *, wait: str = "") -> None:
    """Wait for what the rig says; raises GuestProblem as soon as it will not be."""
    kind, _, pattern = (wait or rig.wait).partition(":")
    match kind:
        case "ready":
            await ready(machine, name, rig)
        case "shutdown":
            await _shutdown(machine, name, rig)
        case "console":
            await _console(machine, name, rig, pattern)


async def ready(machine: Machine, name: str, rig: Rig) -> None:
    """Wait until the guest says that everything is up; raises GuestProblem as soon as it will not be."""
    told = machine.progress
    tick = _ticker(machine, lambda: f"{name}: waiting for {told.awaited}")
    outcome = await machine.until(lambda: told.is_ready or told.failure or told.panic, _patience(rig), tick)
    if told.is_ready:
        return
    await _check_failure(machine, name)
    if machine.ending:
        raise machine.gone(f"before it was ready; {name} waited for {told.awaited}; last: {told.last}")
    agent = "" if machine.agent.hello or not rig.channel else "; its agent never spoke"
    raise await _late(machine, f"{name} is not ready: {outcome.limit}; it waits for {told.awaited}", agent)


async def _shutdown(machine: Machine, name: str, rig: Rig) -> None:
    told = machine.progress
    tick = _ticker(machine, lambda: f"{name}: waiting until it powers off")
    outcome = await machine.until(lambda: told.failure or told.panic, _patience(rig), tick)
    await _check_failure(machine, name)
    if machine.ending is None:
        raise await _late(machine, f"{name} has not powered off: {outcome.limit}")
    if not machine.ending.is_power_off:
        raise machine.gone(f"where {name} should power off; last: {told.last}")


async def _console(machine: Machine, name: str, rig: Rig, pattern: str) -> None:
    seek, shown = Seeker(machine, pattern), _shown(pattern)
    tick = _ticker(machine, lambda: f"{name}: waiting for {shown} on its console")
    outcome = await machine.until(seek.has_found, _patience(rig), tick)
    if outcome:
        return
    if machine.ending:
        raise machine.gone(f"before its console showed {shown}; last: {machine.progress.last}")
    raise await _late(machine, f"{name} did not print {shown} on its console: {outcome.limit}")


def _shown(pattern: str) -> str:
    """What is awaited, in the words of the comment that the pattern begins with: "(?#its name)..."."""
    found = re.match(r"\(\?#([^)]+)\)", pattern)
    return found[1] if found else f"/{pattern}/"


class Seeker:
    """Looks for a pattern in what a console prints in this life of its machine, each byte a few times at most."""

    def __init__(self, machine: Machine, pattern: str) -> None:
        self._machine, self._pattern = machine, re.compile(pattern.encode(), re.MULTILINE)
        self._found, self._seen = False, machine.began_at

    def has_found(self) -> bool:
        """Whether it was printed by now."""
        console = self._machine.console
        news = console.total - self._seen
        if news and not self._found:
            back = min(CARRY, self._seen - self._machine.began_at)
            self._found = self._pattern.search(console.last(news + back)) is not None
            self._seen = console.total
        return self._found


def _patience(rig: Rig) -> Patience:
    return Patience(work=rig.ready_timeout, idle=rig.ready_timeout, silent=rig.ready_timeout / 4)


def _ticker(machine: Machine, words: Callable[[], str]) -> Callable[[], None]:
    """What is done between two looks: every few seconds, say what is awaited."""
    tell = machine.teller(lambda: (words(), machine.progress.last))

    def tick() -> None:
        if machine.progress.is_in_step:  # which the guest itself ends when its time is up: it may sleep in silence
            machine.excuse()
        tell()

    return tick


async def _check_failure(machine: Machine, name: str) -> None:
    told = machine.progress
    if told.failure or told.panic:
        await machine.until(bool, GOING_DOWN if told.is_going_down else SETTLE)
        raise machine.problem(f"{name}: {told.failure or f'the guest panicked ({told.panic})'}")


async def _late(machine: Machine, words: str, more: str = "") -> GuestProblem:
    silence = f"its console has been silent for {machine.silence:.0f} s{await machine.pause()}"
    return machine.problem(f"{words}; last: {machine.progress.last}{more}; {silence}")
