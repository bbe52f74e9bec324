"""Faults of QEMU, its monitor, the agent and the console: each is told as what it is, at once, and nothing is left."""

import os
import re
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fake_rig import Start, opened

from imagekit import plugs
from imagekit.console import HEAD, TAIL
from imagekit.errors import RigProblem
from imagekit.guest import GuestProblem, MachineProblem, Rig
from imagekit.stores.directory import open_store
from imagekit.targets import _machine, _qemu_monitor, _qemu_ports
from imagekit.targets._qemu_progress import MAX_STAGES

# --- QEMU itself


@pytest.mark.parametrize(("version", "words"), [("", "no qemu-system-x86_64"), ("2.11.1", "2.11.1, older than")])
def test_a_qemu_that_is_missing_or_too_old(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, words: str
) -> None:
    if version:
        (tmp_path / "qemu-system-x86_64").write_text(f"#!/bin/sh\necho QEMU emulator version {version}\n")
        (tmp_path / "qemu-system-x86_64").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("imagekit.host.SYSTEM_FOLDERS", ())
    with opened() as artifact, pytest.raises(RigProblem, match=words) as caught:
        plugs.load("targets", "qemu_x86_64").start(artifact, rig=Rig(tools="host"), store=open_store(tmp_path))
    assert caught.value.hint


GREETINGS = [
    ("greets_never", "QEMU does not answer (the guest was idle for 0.3 s): it said nothing"),
    ("greets_in_garbage", "QEMU does not speak QMP"),
    ("greets_half", "QEMU does not speak QMP"),
    ("greets_at_length", "QEMU does not speak QMP"),
]


@pytest.mark.parametrize(("scenario", "words"), GREETINGS)
def test_a_monitor_that_greets_badly(start: Start, monkeypatch: pytest.MonkeyPatch, scenario: str, words: str) -> None:
    monkeypatch.setattr(_machine, "LOADING", 0.3 if scenario == "greets_never" else 30.0)
    with pytest.raises(RigProblem, match=re.escape(words)) as caught:
        start(scenario)
    assert "-kernel /images/x.kernel" in caught.value.hint
    assert not children()


ANSWERS = [
    ("hangs_up", "QEMU does not do human-monitor-command"),
    ("answers_in_garbage", "QEMU does not do human-monitor-command"),
    ("answers_at_length", "QEMU does not do human-monitor-command"),
    ("refuses", "QEMU does not do human-monitor-command: not \\x1b[31mtoday"),
    ("answers_nothing", "QEMU did not answer human-monitor-command in time: the guest was idle for 0.5 s"),
    ("answers_nothing_and_works", "QEMU did not answer human-monitor-command in time: the guest worked 0.5 s"),
]


@pytest.mark.parametrize(("scenario", "words"), ANSWERS)
def test_a_monitor_that_answers_badly(start: Start, monkeypatch: pytest.MonkeyPatch, scenario: str, words: str) -> None:
    guest = start(scenario)
    monkeypatch.setattr(_qemu_monitor, "DEADLINE", 0.5)
    before = resident()
    with pytest.raises(RigProblem) as caught:
        guest.http.get("/")
    assert words in str(caught.value)
    assert guest.run("upper", input=b"x").stdout == b"X"  # the guest itself is well
    assert resident() - before < 60 << 20
    guest.stop()
    assert guest.facts["stopped"]


def test_answers_to_others_are_not_ours(start: Start) -> None:
    assert start("answers_others_first").http.get("/").text == "hello"


def test_events_that_nobody_asked_for_fill_no_memory(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = kept(monkeypatch)
    guest = start("tells_for_ever")
    before = resident()
    assert guest.http.get("/").text == "hello"
    guest.run("upper", input=b"x")
    events = machines[0].monitor.events
    while len(events) <= _qemu_monitor.MAX_EVENTS:  # a hang is the failure
        time.sleep(0.01)
        events = machines[0].monitor.events
    assert len(events) <= _qemu_monitor.MAX_EVENTS + 1
    assert resident() - before < 40 << 20


def test_a_machine_that_qemu_paused_is_told(start: Start) -> None:
    with pytest.raises(GuestProblem, match=r"is idle, not slow: nothing for 0\.5 s.*; QEMU has paused it \(io-error\)"):
        start("is_paused", ready_timeout=2.0)


@pytest.mark.parametrize("what", ["boot", "run", "port"])
def test_a_qemu_that_is_stopped_by_a_signal_is_told(start: Start, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(_machine, "TICK", 0.1)
    monkeypatch.setattr(_machine, "STOPPED", 0.3)
    machines = kept(monkeypatch)
    if what != "boot":
        guest = start("good")
        os.kill(machines[0].pid, signal.SIGSTOP)
    else:
        Thread(target=lambda: stop_when_alive(machines)).start()
    asks = {"boot": lambda: start("silence"), "run": lambda: guest.run("sleep"), "port": lambda: guest.http.get("/")}
    with pytest.raises(MachineProblem, match=r"QEMU was stopped by a signal \(process \d+\); `kill -CONT \d+` lets it"):
        asks[what]()


def test_a_qemu_that_is_killed_while_a_page_is_awaited(start: Start) -> None:
    guest = start("good")
    with guest.tcp(443) as connection:  # the fake closes it; what counts is that a dead machine is no hang
        os.kill(guest.facts["pid"], signal.SIGKILL)
        connection.settimeout(None)
        with suppress(ConnectionResetError):  # what had been sent may lie there unread
            assert connection.recv(1) == b""
    with pytest.raises(MachineProblem, match="QEMU was killed by signal 9"):
        guest.http.get("/")


# --- the agent

COMMANDS = [
    ("twice", 3, b""),
    ("after", 0, b"before"),
    ("strangers", 0, b"ours"),
    ("drip", 0, b"drop by drop"),
    ("works a while", 0, b"on my way\n" * 5),
]


@pytest.mark.parametrize(("command", "code", "stdout"), COMMANDS)
def test_an_agent_that_sends_what_it_should_not(start: Start, command: str, code: int, stdout: bytes) -> None:
    guest = start("good")
    for _ in range(2):
        finished = guest.run([command])
        assert (finished.code, finished.stdout) == (code, stdout)
    assert guest.run("upper", input=b"x").stdout == b"X"


def test_an_agent_that_acknowledges_what_nobody_sent(start: Start) -> None:
    with pytest.raises(GuestProblem, match=r"the guest acknowledged 10\d+ bytes of a EXEC, (\d+) of \1 were sent"):
        start("acknowledges_too_much").run("upper", input=b"x")


def test_an_agent_that_babbles_is_killed_in_time(start: Start) -> None:
    guest = start("good")
    before = resident()
    with pytest.raises(GuestProblem, match=r"babble did not end within 0\.5 s and was killed"):
        guest.run("babble", timeout=0.5)
    assert resident() - before < 20 << 20
    assert guest.run("upper", input=b"x").stdout == b"X"


def test_another_agent_s_first_word_changes_nothing(start: Start) -> None:
    guest = start("other_agent_later")
    assert guest.run("upper", input=b"x").stdout == b"X"
    assert guest.facts["boot_seconds"] == 1.5


def test_events_without_end_fill_no_memory(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = kept(monkeypatch)
    guest = start("tells_events_for_ever")
    assert guest.run("upper", input=b"x").stdout == b"X"
    assert len(machines[0].progress.later) == MAX_STAGES + 1


def test_a_clock_that_jumps_is_told_as_it_was_and_breaks_nothing(start: Start) -> None:
    guest = start("clock_jumps")
    times = [seconds for seconds, _ in guest.facts["stages"]]
    assert times == [5.5, 2.25, 99999999.0, 3.0, 3.1]
    assert guest.facts["boot_seconds"] == 3.1
    assert guest.run("upper", input=b"x").stdout == b"X"
    assert not any(words == "shutdown" for _, words in guest.events())


# --- the console

CONSOLES = [("lines", 200), ("endless", 200), ("escapes", 50), ("events", 20)]


@pytest.mark.parametrize("channel", [True, False])
@pytest.mark.parametrize(("kind", "pieces"), CONSOLES)
def test_a_console_without_end_neither_hangs_nor_fills_memory(
    start: Start, kind: str, pieces: int, channel: bool
) -> None:
    before = resident()
    guest = start("prints", channel=channel, cmdline=f"print={kind}:{pieces}")
    assert guest.console.total > pieces << 18
    assert len(guest.console.head) + len(guest.console.tail) <= HEAD + 2 * TAIL + (1 << 18)
    assert resident() - before < 60 << 20
    assert all(c.isprintable() for c in guest.console.end().replace("\n", ""))
    assert (guest.facts["stages"][0] == (1.0, "x")) is (kind == "events" and not channel)  # an agent cannot be forged


def test_a_gigabyte_of_console(start: Start) -> None:
    before = resident()
    guest = start("prints", cmdline="print=lines:1200", ready_timeout=300.0)
    assert guest.console.total > 1e9
    assert resident() - before < 60 << 20


# --- ports


def test_a_port_that_is_taken_after_it_was_found_free(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = start("good")
    thieves: list[socket.socket] = []
    find = _qemu_ports._free

    def find_and_lose(address: str, port: int) -> int:
        free = find(address, port)
        if len(thieves) < 3:
            thieves.append(socket.create_server((address, free)))
        return free

    monkeypatch.setattr(_qemu_ports, "_free", find_and_lose)
    try:
        assert guest.http.get("/").text == "hello"
        assert len(thieves) == 3
    finally:
        for thief in thieves:
            thief.close()


# --- what the tests need


def kept(monkeypatch: pytest.MonkeyPatch) -> list[_machine.Machine]:
    """The machines that are started from now on."""
    machines: list[_machine.Machine] = []
    start = _machine.Machine.start
    monkeypatch.setattr(_machine.Machine, "start", lambda self: (machines.append(self), start(self)))
    return machines


def stop_when_alive(machines: list[Any]) -> None:
    while not (machines and machines[0].progress.stages):
        time.sleep(0.01)
    os.kill(machines[0].pid, signal.SIGSTOP)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def children() -> list[str]:
    return [words for task in Path("/proc/self/task").iterdir() for words in (task / "children").read_text().split()]
