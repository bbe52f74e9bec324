"""A guest's health: what its lines say, and that nothing else is believed."""

import pytest

from imagekit.errors import GuestProblem
from imagekit.health import TAIL, Health, ServiceState, parse, states

BOOT_ID = "01234567-89ab-cdef-0123-456789abcdef"
TOLD = {
    "taint": "taint 0",
    "uptime": "uptime 12.345678901",
    "boot_id": f"boot_id {BOOT_ID}",
    "memory": "memory 240000 200000",
    "oom_kills": "oom_kills 0",
    "processes": "processes 12 1",
}


def lines(*more: str, **changed: str) -> bytes:
    return "".join(f"{line}\n" for line in (*{**TOLD, **changed}.values(), *more, "end")).encode()


EVENTS = [(1.0, "service start web"), (1.5, "service ready web"), (2.0, "ready")]


def test_health_is_what_the_guest_said() -> None:
    found = parse(lines("read_only /mnt/a\\040b", "service web 321 1 1", "service other 9 1 1"), EVENTS)
    assert found == Health(
        12.345678901, BOOT_ID, 0, 240000 << 10, 200000 << 10, 12, 1, 0, ("/mnt/a\\040b",),
        {"web": ServiceState("web", "ready", pid=321)}, tuple(EVENTS),
    )  # fmt: skip
    assert (found.taints, found.failed) == ((), ())


def test_health_keeps_the_last_events_only() -> None:
    assert len(parse(lines(), [(float(n), f"word {n}") for n in range(100)]).events) == TAIL


def test_taints_are_told_in_words() -> None:
    told = lines(taint=f"taint {1 << 7 | 1 << 14 | 1 << 12}")
    assert parse(told).taints == ("the kernel died (oops or BUG)", "a lockup")


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (b"", "no end"),
        (lines()[:-4], "no end"),
        (lines().removesuffix(b"\n"), "no end"),
        (lines(*["read_only /x"] * 2000), "more than 1024"),
        (lines(taint="taint -1"), "makes no sense: taint -1"),
        (lines(taint="taint 0\ntaint 0"), "makes no sense: taint 0"),
        (lines(taint="taint 99999999999999999999"), "makes no sense"),
        (lines(uptime="uptime nan"), "makes no sense"),
        (lines(boot_id="boot_id x"), "makes no sense"),
        (lines(memory="memory 1"), "makes no sense"),
        (lines("evil \x1b[2J"), r"makes no sense: evil \\x1b\[2J"),
        (lines("service web x 1 1"), "makes no sense"),
        (lines("read_only "), "makes no sense"),
        (lines("x" * 5000), "makes no sense: x{400}$"),
        (lines("\xff"), "makes no sense"),
        (lines(taint="oom_kills 1", oom_kills="processes 1 1", processes="uptime 1.000000000"), "makes no sense"),
        (b"taint 0\nend\n", "says nothing of boot_id, memory, oom_kills, processes, uptime"),
    ],
)
def test_nonsense_is_no_health(told: bytes, words: str) -> None:
    with pytest.raises(GuestProblem, match=words):
        parse(told)


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (["start"], ServiceState("web", "started")),
        (["start", "ready"], ServiceState("web", "ready")),
        (["start", "ready", "exit 3"], ServiceState("web", "ended", 3)),
        (["start", "exit 3", "start"], ServiceState("web", "started", 3, restarts=1)),
        (["start", "ready", "exit 137", "start", "exit 1", "start"], ServiceState("web", "ready", 1, restarts=2)),
        (["start", "failed no such file"], ServiceState("web", "failed", reason="no such file")),
        (["start", "exit 1", "failed died"], ServiceState("web", "failed", 1, "died")),
        (["start", "failed died", "exit 1"], ServiceState("web", "failed", 1, "died")),
        (["failed"], ServiceState("web", "failed", reason="no reason given")),
        (["exit nonsense"], ServiceState("web", "ended")),
        (["dance"], ServiceState("web", "started")),
    ],
)
def test_a_service_is_what_its_events_make_it(words: list[str], state: ServiceState) -> None:
    events = [(1.0, " ".join(("service", w.split()[0], "web", *w.split()[1:]))) for w in words]
    assert states([(0.0, "early"), *events, (9.0, "service")]) == {"web": state}


def test_failed_services_are_those_that_ought_to_run() -> None:
    events = [
        (1.0, f"service {words}")
        for words in ("start done", "exit done 0", "start bad", "exit bad 1", "start loop", "exit loop 0", "start loop",
                      "exit loop 0", "start loop", "start fine", "failed never no such file")
    ]  # fmt: skip
    failed = parse(lines(), events).failed
    assert [str(state) for state in failed] == [
        "bad: ended, last ended with 1",
        "loop: started, last ended with 0, restarted 2 times",
        "never: failed: no such file",
    ]
