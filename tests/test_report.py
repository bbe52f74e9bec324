"""Facts to rows: pure functions, by tables."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagekit import report
from imagekit.report import Row

WEB = Path("images/web.py")
GUEST = (WEB, "x86_64", "raw", "qemu")
ARTIFACT = (WEB, "x86_64", "raw", "")


def facts() -> dict[Any, dict[str, Any]]:
    return {
        ARTIFACT: {"size_bytes": 10, "size_budget_bytes": None},
        GUEST: {"boot_seconds": 1.5, "stages": [(0.5, "early")], "accelerator": "tcg"},
    }


def test_the_first_test_of_a_place_tells_all_and_the_others_where_they_ran() -> None:
    already: set[Any] = set()
    first = report.told("web", GUEST, facts(), already)
    where = [
        ("imagekit.image", "web"),
        ("imagekit.arch", "x86_64"),
        ("imagekit.format", "raw"),
        ("imagekit.target", "qemu"),
    ]
    assert first == [
        *where,
        ("imagekit.size_bytes", 10),
        ("imagekit.boot_seconds", 1.5),
        ("imagekit.accelerator", "tcg"),
        ("imagekit.details", '{"stages": [[0.5, "early"]]}'),
    ]
    assert report.told("web", GUEST, facts(), already) == where
    assert ("imagekit.size_bytes", 10) in report.told("web", ARTIFACT, facts(), already)


def test_a_place_of_which_nothing_is_known_yet_tells_it_later() -> None:
    already: set[Any] = set()
    assert len(report.told("web", GUEST, {}, already)) == 4
    assert len(report.told("web", GUEST, facts(), already)) > 4


def test_properties_are_plain_values_that_travel_between_processes() -> None:
    told = report.told("web", GUEST, facts(), set())
    assert all(isinstance(value, str | int | float) for _, value in told)


def seen(test: str, *told: tuple[str, object]) -> Any:
    return SimpleNamespace(nodeid=test, user_properties=[("other", 1), *told])


def place(target: str = "") -> list[tuple[str, object]]:
    return report.told("web", (WEB, "x86_64", "raw", target), {}, set())


def test_rows_gather_what_was_told_at_one_place() -> None:
    outcomes = {
        "passed": [seen("a", *report.told("web", GUEST, facts(), set())), seen("b", *place("qemu")), seen("unit")],
        "failed": [seen("c", *place("qemu"))],
        "error": [SimpleNamespace(nodeid="not collected"), seen("d", *place())],
        "warnings": [seen("w", *place("other"))],
        "": [seen("setup", *place("other"))],
    }
    first, second = report.rows(outcomes)
    assert first == Row(("web", "x86_64", "raw", ""), {}, {"error": 1}, ["d"])
    assert second.point == ("web", "x86_64", "raw", "qemu")
    assert second.results == {"failed": 1, "passed": 2}
    assert second.failures == ["c"]
    assert second.facts["stages"] == [[0.5, "early"]]


def test_no_facts_no_rows() -> None:
    assert report.rows({"passed": [seen("unit")]}) == []
    assert report.table([]) == []
    assert report.json_lines([]) == ""


def row(**facts: Any) -> Row:
    return Row(("web", "x86_64", "raw", "qemu"), facts, {"passed": 1})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({}, "qemu                1 passed"),
        ({"size_bytes": 10}, "10 B"),
        ({"size_bytes": 10 << 20, "size_budget_bytes": 20 << 20}, "10.0 MiB of 20.0 MiB  "),
        ({"size_bytes": 21 << 20, "size_budget_bytes": 20 << 20}, "21.0 MiB of 20.0 MiB OVER"),
        ({"size_bytes": 0, "size_budget_bytes": 0}, "0 B of 0 B "),
        ({"boot_seconds": 1.234, "boot_budget_seconds": 1.0}, " ~1.23 s "),  # the host's hurry is no budget's business
        ({"boot_seconds": 9.0, "boot": {"seconds": 3.5}, "boot_budget_seconds": 3.0}, "3.500 s of 3.000 s OVER"),
    ],
)
def test_the_table_holds_measures_against_budgets(facts: dict[str, Any], words: str) -> None:
    head, line = report.table([row(**facts)])
    assert head.split() == ["image", "arch", "format", "target", "size", "boot", "result"]
    assert words in line
    assert line.endswith("1 passed")


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ({"passed": 3}, "3 passed"),
        ({"passed": 2, "failed": 1, "error": 4}, "1 failed, 4 error, 2 passed"),
        ({"skipped": 1, "xfailed": 2}, "1 skipped, 2 xfailed"),
        ({}, ""),
    ],
)
def test_the_worst_is_told_first(results: dict[str, int], words: str) -> None:
    assert report.result(Row(("", "", "", ""), {}, results)) == words


def test_columns_are_as_wide_as_their_widest_word() -> None:
    assert report.columns([("a", "bb", "c"), ("aaa", "b", "")]) == ["a    bb  c", "aaa  b"]


def test_json_lines_hold_everything_sorted() -> None:
    lines = report.json_lines([row(size_bytes=10, odd={1, 2}.__class__)]).splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert (found["image"], found["target"], found["size_bytes"]) == ("web", "qemu", 10)
    assert found["results"] == {"passed": 1}
    assert list(found) == sorted(found)


def test_notes_say_once_per_machine_what_was_emulated_and_why() -> None:
    rows = [
        row(accelerator="tcg", accelerator_why="no /dev/kvm"),
        row(accelerator="tcg", accelerator_why="no /dev/kvm"),
    ]
    assert report.notes([*rows, Row(("web", "x", "y", "pretend"))]) == ["qemu: tcg, no /dev/kvm"]
    assert report.notes([row(accelerator="kvm")]) == ["qemu: kvm"]
