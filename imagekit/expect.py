"""Wait for what a guest is to become: looked at every 10 ms inside it, and given up at once when it can never be.

A condition is "tcp:80", "http:80/health", "file:/run/x", "command:LINE of a shell", "log:PATH:REGEX", all judged in the
guest; "service:NAME" (ready) and "console:REGEX", judged by what it told. "not " before it turns it around.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from imagekit.console import WIDTH, escape
from imagekit.errors import GuestProblem, Problem

INSIDE = ("tcp", "http", "file", "command", "log")
LOOK = 0.1  # seconds between two looks at what the guest told meanwhile
ENDS = 2  # of a service while it is waited for: it will not come

Look = Callable[[float], tuple[bool, str]]  # wait that long at most; whether it holds, and what was seen last


def wait(guest: Any, condition: str, *, by: str, timeout: float, states: Callable[[], Mapping[str, Any]]) -> str:
    """Wait until a condition holds and return what was seen; raises GuestProblem when it does not, or never will."""
    words, is_not = condition.removeprefix("not "), condition.startswith("not ")
    kind, _, rest = words.partition(":")
    if kind not in (*INSIDE, "service", "console") or not rest:
        raise Problem(
            f"expect: {condition!r} is no condition", "one of tcp: http: file: command: log: service: console:"
        )
    can_fail = _Ends(guest, states, by or (rest if kind == "service" else "")) if not is_not else None
    seconds, last = guest.stopwatch(), "nothing"
    with _looks(guest, kind, words, rest, is_not, states) as look:
        while True:
            holds, seen = look(min(LOOK, max(timeout - seconds(), 0.0)))
            last = seen or last
            if holds:
                return last
            never = can_fail.words() if can_fail else ""
            if never or seconds() >= timeout:
                why = f"it will not come: {never}" if never else f"not within {timeout:g} s"
                raise GuestProblem(f"expected {condition}: {why}; last seen: {last}\n{guest.console.end()}")


@contextmanager
def _looks(
    guest: Any, kind: str, words: str, rest: str, is_not: bool, states: Callable[[], Mapping[str, Any]]
) -> Iterator[Look]:
    if kind in INSIDE:
        with guest.stream_argv(("@wait", *(["not"] if is_not else []), words)) as stream:

            def inside(seconds: float) -> tuple[bool, str]:
                code = stream.poll(seconds)
                if code:
                    raise Problem(f"expect: {escape(stream.stderr).strip()[:WIDTH] or f'@wait ended with {code}'}")
                return code == 0, stream.last

            yield inside
        return
    pattern = re.compile(rest if kind == "console" else "", re.MULTILINE)

    def told(seconds: float) -> tuple[bool, str]:
        if kind == "console":
            text = guest.console.text
            holds, seen = pattern.search(text) is not None, (text.strip().splitlines() or [""])[-1]
        else:
            state = states().get(rest)
            holds, seen = state is not None and state.state == "ready", str(state or f"no service {rest}")
        if holds == is_not:
            if not guest.is_alive():
                raise GuestProblem(
                    f"expected {words}: the guest is gone; last seen: {seen[:WIDTH]}\n{guest.console.end()}"
                )
            time.sleep(seconds)
        return holds != is_not, seen[:WIDTH]

    yield told


class _Ends:
    """Services that ended since now: all, or the one that brings what is awaited."""

    def __init__(self, guest: Any, states: Callable[[], Mapping[str, Any]], by: str) -> None:
        self._guest, self._by = guest, by
        known = states()
        if by and by not in known:
            raise Problem(f"expect: there is no service {by}", f"there are {', '.join(sorted(known)) or 'none'}")
        self._known_failures = {name for name, state in known.items() if state.state == "failed" and name != by}
        self._before = self._count()

    def words(self) -> str:
        """The service whose end means that the wait is for nothing."""
        for _, words in self._guest.events():
            if words.startswith("service failed "):
                name = words.split()[2]
                if name not in self._known_failures and self._by in ("", name):
                    return f"{words.removeprefix('service failed ').replace(' ', ' failed: ', 1)} (a service)"
        for name, ends in self._count().items():
            if ends - self._before.get(name, 0) >= ENDS and self._by in ("", name):
                return f"the service {name} ended {ENDS} times meanwhile"
        return ""

    def _count(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for _, words in self._guest.events():
            match words.split():
                case ["service", "exit", name, *_]:
                    counts[name] = counts.get(name, 0) + 1
        return counts


def listening(tables: bytes) -> set[int]:
    """The ports that something listens on, from /proc/net/tcp and tcp6."""
    lines = [line.split() for line in tables.decode("ascii", "replace").splitlines()]
    return {int(words[1].rpartition(":")[2], 16) for words in lines if len(words) > 3 and words[3] == "0A"}
