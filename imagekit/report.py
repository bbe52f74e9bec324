"""Facts to report: what was measured while images were built, booted and judged, as table, JSON lines and properties.

A fact travels with a test's report as user properties, which pytest hands on between processes and writes into JUnit
files; here they become one row per machine. Everything is a pure function.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagekit.boot import CLOCKS, parse

if TYPE_CHECKING:  # only their names: the end of every run of pytest asks whether there is anything to report
    from imagekit.artifact import Artifact
    from imagekit.guest import Guest
    from imagekit.image import Image

PREFIX = "imagekit."
POINT = ("image", "arch", "format", "target")
OUTCOMES = ("failed", "error", "passed", "skipped", "xfailed", "xpassed")  # in the order that they are told
BOOT = PREFIX + "boot"  # a property of JSON: see boot.py
FRESH = PREFIX + "fresh"  # a property of text: why a machine was not restored
COMPARED = PREFIX + "compared"  # a property of text: see comparison.py
DETAILS = "details"  # a property of JSON: what is too long for a property of its own

Property = tuple[str, object]
Place = tuple[Path, str, str, str]  # definition, arch, format, target


@dataclass
class Row:
    """All that is known of one machine, or of what one is made of: a format or a target may be empty."""

    point: tuple[str, ...]  # as POINT names it
    facts: dict[str, Any] = field(default_factory=dict)
    results: dict[str, int] = field(default_factory=dict)  # outcome -> number of tests
    failures: list[str] = field(default_factory=list)  # node ids


def of_artifact(artifact: Artifact, image: Image) -> dict[str, Any]:
    """What is known of an image as it was written."""
    budget = image.budget.size_bytes
    return {
        "artifact": artifact.digest,
        "size_bytes": artifact.size,
        "size_budget_bytes": budget,
    }


def of_guest(guest: Guest, image: Image) -> dict[str, Any]:
    """What was measured while it booted."""
    return {**guest.facts, "boot_budget_seconds": image.budget.boot_seconds}


def told(image: str, place: Place, facts: dict[Place, dict[str, Any]], already: set[Place]) -> list[Property]:
    """Where a test ran, as user properties, and by the first test there all that is known of it."""
    path, arch, format, _ = place
    found: list[Property] = [(PREFIX + name, word) for name, word in zip(POINT, (image, *place[1:]), strict=True)]
    known = {**facts.get((path, arch, format, ""), {}), **facts.get(place, {})}
    if not known or place in already:
        return found
    already.add(place)
    plain = {name: value for name, value in known.items() if isinstance(value, str | int | float)}
    long = {name: value for name, value in known.items() if name not in plain and value is not None}
    found += [(PREFIX + name, value) for name, value in plain.items()]
    return [*found, (PREFIX + DETAILS, json.dumps(long, default=str))] if long else found


def booted(facts: dict[str, Any]) -> list[Property]:
    """How a guest booted by the instruction clock, if a test asked for it: with the report of the first that did."""
    if "boot" not in facts or facts.get("boot told"):
        return []
    facts["boot told"] = True
    return [(BOOT, json.dumps(facts["boot"].plain()))]


def not_restored(guests: Mapping[str, Any]) -> list[Property]:
    """Why a machine that was to be restored was booted in full."""
    words = {str(guest.facts.get("fresh", "")) for guest in guests.values()}
    return [(FRESH, word) for word in sorted(words) if word.startswith("booted")]


def rows(outcomes: Mapping[str, Iterable[Any]]) -> list[Row]:
    """One row per machine, from pytest's reports by outcome; those of other tests are passed by."""
    found: dict[tuple[str, ...], Row] = {}
    for outcome in OUTCOMES:
        for report in outcomes.get(outcome, ()):
            told = getattr(report, "user_properties", ())  # a file that could not be collected has none
            facts = {name: value for name, value in told if name.startswith(PREFIX)}
            if PREFIX + "image" in facts:
                _add(found, report.nodeid, outcome, {name.removeprefix(PREFIX): facts[name] for name in facts})
    return [found[point] for point in sorted(found)]


def _add(found: dict[tuple[str, ...], Row], test: str, outcome: str, facts: dict[str, Any]) -> None:
    point = tuple(str(facts.pop(name, "")) for name in POINT)
    if "boot" in facts:
        facts["boot"] = json.loads(str(facts["boot"]))
    row = found.setdefault(point, Row(point))
    row.facts |= json.loads(str(facts.pop(DETAILS, "{}"))) | facts
    row.results[outcome] = row.results.get(outcome, 0) + 1
    if outcome in ("failed", "error"):
        row.failures.append(test)


def json_lines(rows: Iterable[Row]) -> str:
    """One JSON object a line for each row: for dashboards, and to compare runs."""
    lines = []
    for row in rows:
        about = dict(zip(POINT, row.point, strict=True))
        whole = {**about, **row.facts, "results": row.results, "failures": sorted(row.failures)}
        lines.append(json.dumps(whole, sort_keys=True, default=str) + "\n")
    return "".join(lines)


def table(rows: Iterable[Row]) -> list[str]:
    """The rows for people: sizes and boot times against their budgets, and what became of the tests."""
    head = (*POINT, "size", "boot", "result")
    body = [(*row.point, _size(row.facts), _boot(row.facts), result(row)) for row in rows]
    return columns([head, *body]) if body else []


def charts(rows: Iterable[Row]) -> list[str]:
    """The boots that took longer than their budgets allow, stage by stage."""
    lines = []
    for row in rows:
        budget = row.facts.get("boot_budget_seconds")
        if "boot" in row.facts and budget is not None and row.facts["boot"]["seconds"] > budget:
            lines += ["", " ".join(row.point), *parse(row.facts["boot"]).chart()]
    return lines


def comparisons(rows: Iterable[Row]) -> list[str]:
    """What --compare found, a table for each machine."""
    return [line for row in rows if "compared" in row.facts for line in ["", *str(row.facts["compared"]).splitlines()]]


def notes(rows: Sequence[Row]) -> list[str]:
    """Which clocks the boots were measured by, what was emulated and why: a boot time means little without it."""
    clocks = dict.fromkeys(row.facts["boot"]["clock"] for row in rows if "boot" in row.facts)
    by_itself = any("boot_seconds" in row.facts and "boot" not in row.facts for row in rows)
    lines = [f"boot: {CLOCKS[name]}" for name in clocks] + ["boot ~: " + CLOCKS["guest"]] * by_itself
    said = {row.point[3]: row.facts for row in rows if "accelerator" in row.facts}
    words = {name: (facts["accelerator"], facts.get("accelerator_why")) for name, facts in sorted(said.items())}
    lines += [f"fresh: {words}" for words in dict.fromkeys(row.facts["fresh"] for row in rows if "fresh" in row.facts)]
    return lines + [f"{name}: {', '.join(filter(None, both))}" for name, both in words.items()]


def result(row: Row) -> str:
    """ "3 passed", or what went wrong first: "1 failed, 2 passed"."""
    return ", ".join(f"{row.results[name]} {name}" for name in OUTCOMES if row.results.get(name))


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Words in columns, as wide as the widest."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _size(facts: Mapping[str, Any]) -> str:
    from imagekit.checks.size import text as bytes_text

    return _against(facts.get("size_bytes"), facts.get("size_budget_bytes"), bytes_text)


def _boot(facts: Mapping[str, Any]) -> str:
    """Virtual seconds against the budget where a test had the boot measured; else what the guest's own clock said."""
    if "boot" in facts:
        return _against(facts["boot"]["seconds"], facts.get("boot_budget_seconds"), lambda seconds: f"{seconds:.3f} s")
    seconds = facts.get("boot_seconds")
    return "" if seconds is None else f"~{seconds:.2f} s"


def _against(value: float | None, budget: float | None, text: Any) -> str:
    if value is None:
        return ""
    over = " OVER" if budget is not None and value > budget else ""
    return f"{text(value)} of {text(budget)}{over}" if budget is not None else str(text(value))
