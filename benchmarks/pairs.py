"""Two commands in turn, A B A B ..., judged by the ratio of each pair: machines are noisy, pairs are not."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Run = Callable[[], float]


@dataclass(frozen=True)
class Ratio:
    """A measured ratio against what it was promised to be."""

    what: str
    seconds: Sequence[float]
    floor_seconds: Sequence[float]
    limit: float

    @property
    def median(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(a / b for a, b in zip(self.seconds, self.floor_seconds, strict=True))

    def line(self) -> str:
        """One line for people."""
        pairs = sorted(a / b for a, b in zip(self.seconds, self.floor_seconds, strict=True))
        verdict = "within" if self.median <= self.limit else "OVER"
        own, floor = (f"{statistics.median(s) * 1000:.0f} ms" for s in (self.seconds, self.floor_seconds))
        return (
            f"{self.what}: {self.median:.2f} (of {self.limit:g}, {verdict}); "
            f"pairs {pairs[0]:.2f} to {pairs[-1]:.2f}; median {own} against {floor}"
        )


def alternate(what: str, run: Run, floor: Run, *, rounds: int, limit: float) -> Ratio:
    """Run both in turn after one warm-up each."""
    run(), floor()
    pairs = [(run(), floor()) for _ in range(rounds)]
    return Ratio(what, [a for a, _ in pairs], [b for _, b in pairs], limit)


def timed(argv: Sequence[str], *, env: dict[str, str] | None = None, cwd: str | None = None) -> float:
    """Wall seconds of a whole process; raises CalledProcessError when it fails."""
    started = time.perf_counter()
    usual = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as for a user
    done = subprocess.run(argv, env={**usual, **(env or {})}, cwd=cwd, capture_output=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {done.returncode}\n{done.stderr.decode()}")
    return seconds
