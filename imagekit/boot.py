"""Boot: how a boot went, stage by stage, and by which clock.

The instruction clock counts what the guest's processor executes (QEMU's -icount), so that the same artifact gives the
same figure on an idle and on a busy host. Its seconds are virtual: those of a machine that executes 500 million
instructions in each.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any, NamedTuple

from imagekit.errors import Problem

Stage = tuple[float, str]  # seconds since the kernel's start, and the words of an event (early.py lists them)
SHIFT = 1  # QEMU's: an instruction takes 2 ** SHIFT ns of the instruction clock
CLOCKS = {
    "instructions": f"virtual seconds of {1000 // 2**SHIFT} million instructions each",
    "executed": f"virtual seconds of {1000 // 2**SHIFT} million instructions each, without those it waited",
    "guest": "the guest's own clock, which under emulation runs with the host's",
}
EXACT, INEXACT = 0.01, 0.02  # shares of its time by which a boot may differ from the recorded one: see decision 0005
COLUMNS, BAR, NAME = 100, 40, 30  # characters of a chart's lines, bars and names
MAX_STAGES, MAX_WORDS, MAX_SECONDS = 4000, 400, 1e6  # of what is read from a file


class Span(NamedTuple):
    """A part of a boot, in seconds since the kernel's start."""

    name: str
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


@dataclass(frozen=True)
class Boot:
    """One boot as it was measured, or the median of several where a single one is not exact."""

    stages: tuple[Stage, ...]
    clock: str = "guest"  # a name of CLOCKS
    firmware_seconds: float = 0.0  # before the kernel's start
    runs: tuple[float, ...] = ()  # seconds of every boot that was measured
    about: Mapping[str, str] = field(default_factory=dict)  # what two boots must share to be compared

    @property
    def seconds(self) -> float:
        """From the kernel's start until everything was ready."""
        return next(seconds for seconds, words in self.stages if words == "ready")

    @property
    def is_exact(self) -> bool:
        """Whether another boot of the same bytes gives the same figure."""
        return self.clock == "instructions" and len(self.runs) <= 1

    @property
    def tolerance(self) -> float:
        """The share of its time by which another boot may differ before that means anything."""
        return EXACT if self.is_exact else INEXACT

    @property
    def spread(self) -> float:
        """How far the runs lie apart, as a share of their median."""
        from statistics import median  # brings fractions and decimals, which no build needs

        return (max(self.runs) - min(self.runs)) / median(self.runs) if self.runs else 0.0

    @property
    def spans(self) -> tuple[Span, ...]:
        """What took time, in the order of its beginning; services and their first request overlap others."""
        firmware = (Span("firmware", -self.firmware_seconds, 0.0),) if self.firmware_seconds else ()
        return (*firmware, *_early(self.stages), *sorted(_named(self.stages), key=lambda span: span.begin))

    def critical_path(self, after: Mapping[str, Sequence[str]] | None = None) -> tuple[Span, ...]:
        """The chain of spans that `ready` waited for; `after` says which services a service waits for, where known."""
        spans = list(self.spans)
        path: list[Span] = []
        end = self.seconds
        while earlier := [span for span in spans if _may_precede(span, end, path[0] if path else None, after)]:
            found = max(earlier, key=lambda span: (span.end, -span.begin))
            if path and path[0].begin - found.end > 0:
                path.insert(0, Span("(between)", found.end, path[0].begin))
            path.insert(0, found)
            end = found.begin
            spans.remove(found)
        return tuple(path)

    @property
    def words(self) -> str:
        """The figure for people, with its clock, and with its spread where it is not exact."""
        text = f"{self.seconds:.3f} s ({CLOCKS[self.clock]}"
        if len(self.runs) > 1:
            each = ", ".join(f"{seconds:.3f}" for seconds in self.runs)
            text += f"; median of {each}, spread {self.spread:.2%}, tolerance {self.tolerance:.0%}"
        return f"{text})"

    def chart(self) -> list[str]:
        """The spans as bars over time, for a terminal of 100 columns."""
        first = -self.firmware_seconds
        scale = BAR / max(self.seconds - first, 1e-9)
        lines = wrap(f"booted in {self.words}", COLUMNS, subsequent_indent="  ")
        for span in self.spans:
            begin = min(int((span.begin - first) * scale), BAR - 1)
            end = max(begin + 1, min(round((span.end - first) * scale), BAR))
            bar = (" " * begin + "#" * (end - begin)).ljust(BAR)
            lines.append(f"  {span.name[:NAME]:{NAME}} |{bar}| {span.begin:8.3f} +{span.seconds:.3f} s")
        return lines

    def growth(self, before: "Boot") -> list[str]:
        """Which spans take another time than in an earlier boot, the largest difference first."""
        old = {span.name: span.seconds for span in before.spans}
        new = {span.name: span.seconds for span in self.spans}
        changes = {name: new.get(name, 0.0) - old.get(name, 0.0) for name in {**old, **new}}
        rows = sorted(((name, by) for name, by in changes.items() if abs(by) >= 0.0005), key=lambda row: -abs(row[1]))
        return [f"  {by:+8.3f} s  {name}{_came(name, old, new)}" for name, by in rows]

    def incomparable(self, other: "Boot") -> str:
        """Why two figures cannot be compared, in words; "" when they can."""
        if self.clock != other.clock:
            return f"its clock is {other.clock}, not {self.clock}"
        names = sorted({*self.about, *other.about})
        changed = [name for name in names if self.about.get(name) != other.about.get(name)]
        return ", ".join(f"{name} {other.about.get(name, 'unknown')}, not {self.about.get(name)}" for name in changed)

    def plain(self) -> dict[str, Any]:
        """As a value of JSON."""
        stages = [[round(seconds, 6), words] for seconds, words in self.stages]
        runs = [round(seconds, 6) for seconds in self.runs]
        return {"about": dict(self.about), "clock": self.clock, "firmware_seconds": round(self.firmware_seconds, 6),
                "runs": runs, "seconds": round(self.seconds, 6), "stages": stages}  # fmt: skip


def parse(found: Any) -> Boot:
    """The inverse of `plain`; raises Problem for anything that is none."""
    try:
        stages = tuple((_seconds(at), _words(words)) for at, words in found["stages"][:MAX_STAGES])
        about = {_words(name): _words(value) for name, value in found["about"].items()}
        runs = tuple(map(_seconds, found["runs"][:MAX_STAGES]))
        boot = Boot(stages, _words(found["clock"]), _seconds(found["firmware_seconds"]), runs, about)
        if boot.clock not in CLOCKS:
            raise ValueError(f"no clock {boot.clock!r}")
        _ = boot.seconds
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
        raise Problem(f"not a recorded boot: {type(error).__name__} {error}") from error
    return boot


def _seconds(found: Any) -> float:
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < MAX_SECONDS:
        raise ValueError(f"{found!r} is no number of seconds")
    return float(found)


def _words(found: Any) -> str:
    if not isinstance(found, str) or len(found) > MAX_WORDS or not found.isprintable():
        raise ValueError(f"{found!r:.60} is no text of a line")
    return found


def _early(stages: Iterable[Stage]) -> list[Span]:
    """The spans between the kernel's start and the first step or service."""
    spans: list[Span] = []
    last = 0.0
    for seconds, words in stages:
        name = {"early": "kernel", "modules": "modules", "root": "root"}.get(words.partition(" ")[0])
        if name is None and words.startswith(("onboot start ", "service start ", "ready")):
            return [*spans, Span("init", last, seconds)]
        if name:
            spans.append(Span(name, last, seconds))
            last = seconds
    return spans


def _named(stages: Iterable[Stage]) -> list[Span]:
    """The spans of steps, services and first requests."""
    begun: dict[str, float] = {}
    spans = []
    for seconds, words in stages:
        match words.split():
            case ["onboot", "start", name]:
                begun[f"onboot {name}"] = seconds
            case ["service", "start", name]:
                begun.setdefault(f"service {name}", seconds)
            case ["service", "open", name]:
                begun.setdefault(f"first request of {name}", seconds)
            case ["onboot", "done" | "failed", name, *_] if f"onboot {name}" in begun:
                spans.append(Span(f"onboot {name}", begun.pop(f"onboot {name}"), seconds))
            case ["service", "ready", name]:
                for what in (f"service {name}", f"first request of {name}"):
                    if what in begun:
                        spans.append(Span(what, begun.pop(what), seconds))
    return spans


def _may_precede(span: Span, end: float, later: Span | None, after: Mapping[str, Sequence[str]] | None) -> bool:
    """Whether what follows may have waited for this span: it ended by then, and is no service that nobody names."""
    if span.end > end or span.name.startswith("first request of "):
        return False
    kind, _, name = span.name.partition(" ")
    if kind != "service" or later is None or after is None:
        return True
    return name in after.get(later.name.partition(" ")[2], ())


def _came(name: str, old: Mapping[str, float], new: Mapping[str, float]) -> str:
    return " (new)" if name not in old else " (gone)" if name not in new else ""
