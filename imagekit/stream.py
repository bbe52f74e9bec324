"""Stream: a command in a guest whose output is taken as it comes, and that can be told more. Bounded and escaped."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from imagekit.console import WIDTH, escape
from imagekit.errors import GuestProblem
from imagekit.patience import Stopwatch, wall_watch

MAX_UNREAD = 1 << 20  # bytes that `expect` looks back at
LOOK = 5.0  # seconds of a wait until it is looked at anew


class Chunk(NamedTuple):
    """What a command printed, and how it ended once it did."""

    stdout: bytes
    stderr: bytes
    code: int | None


@dataclass
class Stream:
    """A running command; `with stream:` stops it at the end. Iterate it for its lines."""

    argv: tuple[str, ...]
    take: Callable[[float], Chunk] = field(repr=False)  # wait so many seconds at most for news
    send: Callable[[bytes], None] = field(repr=False)  # bytes for its stdin
    close_input: Callable[[], None] = field(repr=False)  # the end of its stdin
    stop: Callable[[], None] = field(repr=False)  # it is killed; twice is once
    stopwatch: Stopwatch = field(repr=False, default=wall_watch)
    code: int | None = None  # how it ended
    stderr: bytes = b""  # the end of what it complained of
    _unread: bytes = b""

    def chunks(self) -> Iterator[bytes]:
        """Its stdout as it comes, until it ends."""
        while True:
            if self._unread:
                data, self._unread = self._unread, b""
                yield data
            elif not self._more(LOOK) and self.code is not None:
                return

    def __iter__(self) -> Iterator[str]:
        rest = b""
        for data in self.chunks():
            *lines, rest = (rest + data).split(b"\n")
            yield from (line.decode("utf-8", "backslashreplace") for line in lines)
            rest = rest[-MAX_UNREAD:]
        if rest:
            yield rest.decode("utf-8", "backslashreplace")

    def expect(self, pattern: str, *, timeout: float = 60.0) -> re.Match[bytes]:
        """Wait until stdout has a match, and take all up to its end; raises GuestProblem when that never comes."""
        wanted, seconds = re.compile(pattern.encode(), re.MULTILINE), self.stopwatch()
        while not (found := wanted.search(self._unread)):
            self._unread = self._unread[-MAX_UNREAD:]
            if self.code is not None:
                raise GuestProblem(f"{self._name} ended with {self.code} before {pattern!r} came{self._last()}")
            if (left := timeout - seconds()) <= 0:
                raise GuestProblem(f"{self._name}: {pattern!r} did not come within {timeout:g} s{self._last()}")
            self._more(min(left, LOOK))
        self._unread = self._unread[found.end() :]
        return found

    def finished(self, *, timeout: float = 60.0) -> int:
        """Wait for its end and return the exit code; what it prints meanwhile can still be read."""
        seconds = self.stopwatch()
        while self.code is None:
            if (left := timeout - seconds()) <= 0:
                raise GuestProblem(f"{self._name} did not end within {timeout:g} s{self._last()}")
            self._more(min(left, LOOK))
            self._unread = self._unread[-MAX_UNREAD:]
        return self.code

    def poll(self, seconds: float = 0.0) -> int | None:
        """Look for news, or wait so long for some; the exit code once it has ended."""
        self._more(seconds)
        self._unread = self._unread[-MAX_UNREAD:]
        return self.code

    @property
    def last(self) -> str:
        """The last line that came and was not read, escaped."""
        lines = escape(self._unread[-4 * WIDTH :] or self.stderr[-4 * WIDTH :]).strip().splitlines()
        return lines[-1][:WIDTH] if lines else ""

    def _more(self, seconds: float) -> bool:
        if self.code is not None:
            return False
        chunk = self.take(seconds)
        self._unread += chunk.stdout
        self.stderr = (self.stderr + chunk.stderr)[-MAX_UNREAD:]
        self.code = chunk.code
        return bool(chunk.stdout)

    @property
    def _name(self) -> str:
        return " ".join(self.argv[:2])

    def _last(self) -> str:
        return f"; last seen: {self.last or 'nothing'}"

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
