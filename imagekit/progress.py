"""Progress: one line that changes on a terminal, plain lines elsewhere."""

import re
import time
from collections.abc import Callable

EVERY = 10.0  # seconds between two plain lines that differ in numbers only
BLINK = 0.05  # seconds that a number stays on a terminal at least
CLEAR = "\r\x1b[K"


class Lines:
    """Says what is going on through `put`, which writes text as it is; `columns` is 0 where there is no terminal."""

    def __init__(self, put: Callable[[str], object], *, columns: int) -> None:
        self._put = put
        self._columns = columns
        self._said: dict[str, float] = {}  # a plain line, less its numbers -> when it was said last
        self._is_shown = False
        self._shown_at = 0.0

    def say(self, line: str) -> None:
        """Show a line: on a terminal in place of the one before it."""
        if self._columns:
            self._show(line)
        elif self._is_news(line):
            self._put(line + "\n")

    def clear(self) -> None:
        """Take the line off the terminal, before anybody else writes there."""
        if self._is_shown:
            self._put(CLEAR)
            self._is_shown = False

    def _show(self, line: str) -> None:
        now = time.monotonic()
        if line.endswith("%") and now - self._shown_at < BLINK:
            return
        self._put(CLEAR + line[: self._columns - 1])
        self._is_shown, self._shown_at = True, now

    def _is_news(self, line: str) -> bool:
        what = line.partition(": ")[0] if line.endswith("%") else line  # whatever it has got to
        words, now = re.sub(r"[0-9]+", "", what), time.monotonic()
        if now - self._said.get(words, -EVERY) < EVERY:
            return False
        self._said[words] = now
        return True
