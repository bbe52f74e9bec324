"""Boot as a value: its spans and critical path, its chart, its difference to another boot, and what files may say."""

import json
from itertools import pairwise
from typing import Any

import pytest

from imagekit.boot import EXACT, INEXACT, Boot, Span, parse
from imagekit.errors import Problem

STAGES = (
    (1.0, "early"), (1.25, "modules"), (1.5, "onboot start 00-fetch"), (2.0, "onboot done 00-fetch"),
    (2.0, "network up"), (2.25, "service start db"), (2.25, "service start log"), (2.5, "service ready log"),
    (3.0, "service ready db"), (3.0, "service start web"), (3.5, "service open web"), (4.0, "service ready web"),
    (4.0, "ready"),
)  # fmt: skip
BOOT = Boot(STAGES, "instructions", 0.5, (4.0,), {"qemu": "10.0.2"})
AFTER = {"web": ("db",), "db": (), "log": ()}


def test_spans_are_what_took_time_in_the_order_of_their_beginning() -> None:
    assert BOOT.spans == (
        Span("firmware", -0.5, 0.0), Span("kernel", 0.0, 1.0), Span("modules", 1.0, 1.25), Span("init", 1.25, 1.5),
        Span("onboot 00-fetch", 1.5, 2.0), Span("service log", 2.25, 2.5), Span("service db", 2.25, 3.0),
        Span("service web", 3.0, 4.0), Span("first request of web", 3.5, 4.0),
    )  # fmt: skip
    assert Boot(((1.0, "early"), (1.5, "ready"))).spans == (Span("kernel", 0.0, 1.0), Span("init", 1.0, 1.5))
    on_disk = ((1.0, "early"), (1.5, "modules"), (2.0, "root vda2 squashfs"), (2.1, "grown 7"), (3.0, "ready"))
    assert Boot(on_disk).spans[1:] == (Span("modules", 1.0, 1.5), Span("root", 1.5, 2.0), Span("init", 2.0, 3.0))


def test_the_critical_path_goes_by_what_a_service_waited_for() -> None:
    names = [span.name for span in BOOT.critical_path(AFTER)]
    early = ["firmware", "kernel", "modules", "init", "onboot 00-fetch", "(between)"]
    assert names == [*early, "service db", "service web"]
    alone = [span.name for span in BOOT.critical_path({"web": (), "db": ()})]
    assert "service db" not in alone
    assert alone[-1] == "service web"


@pytest.mark.parametrize("after", [AFTER, None, {}])
def test_the_critical_path_has_no_hole_and_ends_with_ready(after: Any) -> None:
    path = BOOT.critical_path(after)
    assert path[0].begin == -0.5
    assert all(one.end == other.begin for one, other in pairwise(path))
    assert path[-1].end == BOOT.seconds


def test_a_service_that_starts_again_counts_from_its_first_start() -> None:
    stages = ((1.0, "early"), (1.0, "service start a"), (2.0, "service exit a 1"), (2.5, "service start a"),
              (3.0, "service ready a"), (3.0, "ready"))  # fmt: skip
    assert Boot(stages).spans[-1] == Span("service a", 1.0, 3.0)


def test_a_chart_fits_a_terminal_and_shows_each_span_where_it_was() -> None:
    stages = (*STAGES[:-1], (4.0, f"service start {'x' * 200}"), (9.0, f"service ready {'x' * 200}"), (9.0, "ready"))
    lines = Boot(stages, "instructions", 0.5, (9.0,)).chart()
    assert max(map(len, lines)) <= 100
    assert len({line.rindex("|") for line in lines[1:]}) == 1
    assert "virtual seconds of 500 million instructions each" in lines[0]
    several = Boot(STAGES, "executed", 0.5, (4.0, 3.9, 4.1)).chart()
    assert max(map(len, several)) <= 100
    assert "spread 5.00%, tolerance 2%)" in "".join(several[:2])
    bars = [line.split("|")[1] for line in BOOT.chart()[1:]]
    assert bars[0].startswith("#")
    assert bars[-1].rstrip().endswith("#")
    assert len(bars[-1].rstrip()) == len(bars[-1])


def test_where_a_boot_is_not_exact_its_runs_their_spread_and_the_tolerance_are_told() -> None:
    assert (BOOT.is_exact, BOOT.tolerance, BOOT.spread) == (True, EXACT, 0.0)
    several = Boot(STAGES, "instructions", 0.0, (4.0, 3.9, 4.1))
    assert (several.is_exact, several.tolerance) == (False, INEXACT)
    assert several.spread == pytest.approx(0.05)
    assert f"median of 4.000, 3.900, 4.100, spread 5.00%, tolerance {INEXACT:.0%}" in several.words
    assert not Boot(STAGES).is_exact


def test_growth_names_what_grew_and_what_came_and_went() -> None:
    stages = tuple((at + (0.75 if at > 3.4 else 0), words) for at, words in STAGES if "00-fetch" not in words)
    lines = Boot(stages).growth(BOOT)
    assert lines[:2] == ["    +0.750 s  init", "    +0.750 s  service web"]
    assert "    -0.500 s  onboot 00-fetch (gone)" in lines
    assert "    -0.500 s  firmware (gone)" in lines
    assert BOOT.growth(BOOT) == []


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (BOOT, ""),
        (Boot(STAGES, "instructions", about={"qemu": "7.2"}), "qemu 7.2, not 10.0.2"),
        (Boot(STAGES, "instructions"), "qemu unknown, not 10.0.2"),
        (Boot(STAGES, "guest", about=BOOT.about), "its clock is guest, not instructions"),
    ],
)
def test_boots_of_other_machines_are_not_compared(other: Boot, why: str) -> None:
    assert BOOT.incomparable(other) == why


def test_what_is_written_is_read_again() -> None:
    assert parse(json.loads(json.dumps(BOOT.plain()))) == BOOT


GOOD = BOOT.plain()
HOSTILE: list[Any] = [
    None, [], "boot", 7, {},
    *({name: value for name, value in GOOD.items() if name != lost} for lost in ("stages", "clock", "about", "runs")),
    *({**GOOD, "stages": stages} for stages in (None, 3, "ab", [], [[1, "early"]], [[True, "ready"]], [["1", "ready"]],
                                               [[1, "ready", 2]], [[float("nan"), "ready"]], [[1e300, "ready"]],
                                               [[1, "ready"], [2, "\x1b[2J"]], [[1, "ready"], [2, "x" * 999]])),
    {**GOOD, "clock": "sundial"}, {**GOOD, "clock": 1}, {**GOOD, "runs": [None]}, {**GOOD, "runs": 4},
    {**GOOD, "about": ["qemu"]}, {**GOOD, "about": {"qemu": 10}}, {**GOOD, "about": {"a\nb": "c"}},
    {**GOOD, "firmware_seconds": "long"}, {**GOOD, "firmware_seconds": float("inf")},
]  # fmt: skip


@pytest.mark.parametrize("found", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_recorded_boot_is_a_problem(found: Any) -> None:
    with pytest.raises(Problem, match="not a recorded boot"):
        parse(found)
