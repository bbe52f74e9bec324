"""Baselines: what is written is read again, and what is no baseline is told and loses nothing."""

import json
from multiprocessing import Process
from pathlib import Path

import pytest

from imagekit import baseline
from imagekit.boot import Boot
from imagekit.errors import Problem, RigProblem

STAGES = ((0.5, "early"), (1.25, "ready"))
BOOT = Boot(STAGES, "instructions", 0.125, (1.25,), {"qemu": "10.0"})


def test_what_is_recorded_is_read_again_and_other_places_stay(tmp_path: Path) -> None:
    web = tmp_path / "web.py"
    assert baseline.recorded(web, "a").boot is None
    baseline.record(web, "b", BOOT, locks=tmp_path.parent)
    baseline.record(web, "a", Boot(STAGES, "instructions"), locks=tmp_path.parent)
    baseline.record(web, "a", Boot(STAGES, "guest"), locks=tmp_path.parent)
    assert baseline.read(tmp_path / "web.baseline.json") == {"a": Boot(STAGES, "guest"), "b": BOOT}
    assert baseline.recorded(web, "b").boot == BOOT
    assert [path.name for path in tmp_path.iterdir()] == ["web.baseline.json"]


def test_the_file_has_a_line_for_each_place_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name, order in (("one", "ab"), ("other", "ba")):
        for place in order:
            baseline.record(tmp_path / f"{name}.py", place, BOOT, locks=tmp_path.parent)
    text = (tmp_path / "one.baseline.json").read_text()
    assert text == (tmp_path / "other.baseline.json").read_text()
    assert [line[:4] for line in text.splitlines()] == ["{", '"a":', '"b":', "}"]


def _record_many(web: Path, place: str) -> None:
    for n in range(20):
        baseline.record(web, f"{place}{n}", BOOT, locks=web.parent.parent)


def test_workers_that_record_at_once_lose_nothing(tmp_path: Path) -> None:
    workers = [Process(target=_record_many, args=(tmp_path / "web.py", place)) for place in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(baseline.read(tmp_path / "web.baseline.json")) == 60


ROW = BOOT.plain()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[]", "it is a list"),
        ('{"a": 1}', "not a recorded boot"),
        ('{"a": {"stages": []}}', "not a recorded boot"),
        (json.dumps({"a": {**ROW, "stages": [[1.0, "early"]]}}), "StopIteration"),
        (json.dumps({"a": {**ROW, "stages": [["1", "ready"]]}}), "'1' is no number"),
        (json.dumps({"a": {**ROW, "stages": [[True, "ready"]]}}), "True is no number"),
        (json.dumps({"a": {**ROW, "stages": [[1e300, "ready"]]}}), "is no number"),
        (json.dumps({"a": {**ROW, "stages": [[1.0, "ready\x1b[2J"]]}}), "no text"),
        (json.dumps({"a": {**ROW, "clock": "sundial"}}), "no clock 'sundial'"),
        ('{"a": {"stages": [[NaN, "ready"]]}}', "is no number"),
        ("[" * 100_000, "recursion"),
        ('{"a": ' + " " * (5 << 20) + "1}", "more than"),
    ],
)
def test_what_is_no_baseline_is_told_and_stays_as_it_is(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "web.baseline.json"
    path.write_text(text)
    for act in (
        lambda: baseline.recorded(tmp_path / "web.py", "a"),
        lambda: baseline.record(tmp_path / "web.py", "a", BOOT, locks=tmp_path.parent),
    ):
        with pytest.raises(Problem, match=rf"web.baseline.json is no baseline: .*{words}"):
            act()
    assert path.read_text() == text


def test_a_record_that_cannot_be_written_is_the_rigs_fault(tmp_path: Path) -> None:
    with pytest.raises(RigProblem, match="cannot write"):
        baseline.record(tmp_path / "nowhere" / "web.py", "a", BOOT, locks=tmp_path.parent)
