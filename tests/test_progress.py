"""Progress: one line that changes on a terminal, plain lines elsewhere."""

import pytest

from imagekit import progress
from imagekit.progress import CLEAR, Lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_shows_one_line_that_is_cleared_once() -> None:
    put: list[str] = []
    lines = Lines(put.append, columns=10)
    lines.clear()
    lines.say("short")
    lines.say("longer than the terminal is wide")
    lines.clear()
    lines.clear()
    assert put == [CLEAR + "short", CLEAR + "longer th", CLEAR]


def test_numbers_do_not_flicker(clock: list[float]) -> None:
    put: list[str] = []
    lines = Lines(put.append, columns=80)
    for percent in range(100):
        lines.say(f"fetching {percent} %")
        clock[0] += 0.01
    lines.say("writing")
    assert 10 < len(put) < 30
    assert put[-1] == CLEAR + "writing"


def test_elsewhere_every_line_is_one_of_its_own(clock: list[float]) -> None:
    put: list[str] = []
    lines = Lines(put.append, columns=0)
    for line in ("composing", "writing tar", "composing"):
        lines.say(line)
    lines.clear()
    assert put == ["composing\n", "writing tar\n"]
    clock[0] += progress.EVERY
    lines.say("composing")
    assert put[-1] == "composing\n"
    assert len(put) == 3


@pytest.mark.parametrize(
    "said",
    [
        ["waiting (3 s)", "waiting (6 s)", "waiting (19 s)"],
        ["tools: libc6 1 %", "tools: libz 30 %", "tools: unpacking 100 %"],
    ],
)
def test_what_differs_in_numbers_only_is_said_now_and_then(clock: list[float], said: list[str]) -> None:
    put: list[str] = []
    lines = Lines(put.append, columns=0)
    for line in said:
        lines.say(line)
    assert put == [said[0] + "\n"]
    clock[0] += progress.EVERY
    lines.say(said[-1])
    assert put[-1] == said[-1] + "\n"
