"""QEMU machines against a fake QEMU that behaves well and badly; real boots are in test_qemu_boot.py."""

import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from threading import Thread

import pytest
from fake_rig import PARTS, Start

from imagekit.errors import Problem, RigProblem
from imagekit.guest import GuestProblem, MachineProblem
from imagekit.patience import Patience
from imagekit.targets import _machine, _qemu_agent, _qemu_start


def test_a_guest_that_is_ready_tells_its_boot(start: Start) -> None:
    guest = start("good")
    assert guest.facts["boot_seconds"] == 1.5
    assert guest.facts["stages"][0] == (1.0, "early")
    assert guest.facts["services"] == {"web": 1.4}
    assert guest.facts["accelerator"] == "tcg"
    assert guest.facts["qemu"] == "9.8.7 fake"
    assert guest.is_alive()
    assert "Linux version 9\n" in guest.console.text
    guest.stop()
    guest.stop()
    assert guest.facts["stopped"] == "the guest powered off"
    assert guest.facts["shutdown"] == [(9.0, "shutdown"), (9.1, "onshutdown done sync")]
    assert not guest.is_alive()
    with pytest.raises(GuestProblem, match="powered off before upper was asked for"):
        guest.run("upper")


def test_a_command_gets_its_input_and_gives_its_streams_apart(start: Start) -> None:
    guest = start("good")
    finished = guest.run("upper", input=b"some text " * 1000, env={"A": "b"})
    assert finished.stdout == b"SOME TEXT " * 1000
    assert b"('A', 'b')" in finished.stderr
    assert finished.code == 3
    assert guest.run("nothing").code == 127
    assert guest.run("stale").code == 0  # a frame for another command is not ours


def test_many_commands_at_once_keep_to_the_agent_s_number(start: Start) -> None:
    guest = start("good")
    found: dict[int, bytes] = {}
    threads = [
        Thread(target=lambda n=n: found.update({n: guest.run("upper", input=b"n%d" % n).stdout})) for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: b"N%d" % n for n in range(20)}


def test_qemu_reads_the_very_bytes_that_were_verified_and_cannot_change_them(start: Start) -> None:
    kernel, initrd, writable = start("good").run("sums").text.split()
    whole = PARTS["initrd"] + bytes(1) + _qemu_start.agent("x86_64")
    assert kernel == sha256(PARTS["kernel"]).hexdigest()
    assert initrd == sha256(whole).hexdigest()
    assert writable == "False"


FAILURES = [
    ("silence", "waits for the onboot step fetch; last: `onboot start fetch` at 1.10 s"),
    ("panic", "the guest panicked (Kernel panic - not syncing: no init \\x9b31m)"),
    ("panic", "guest| \\x1b[2J\\x1bc[    1.0] Run /init"),
    ("powers_off", "the guest powered off before it was ready"),
    ("powers_off", "last: `network up` at 1.10 s"),
    ("dies", "QEMU ended with 1: qemu: out of \\x1b[31mmemory"),
    ("step_fails", "the onboot step 10-fetch failed with 7"),
    ("step_fails", "guest| fetch: no such host"),
    ("service_fails", "the service web failed: not ready within 10 s"),
    ("service_loops", "the service web ended 3 times before it was ready, last with 3"),
    ("other_boot", "it has said nothing"),
    ("dies_at_once", "QEMU ended at once: qemu: -machine q35: no such machine"),
]


@pytest.mark.parametrize(("scenario", "words"), FAILURES)
def test_a_guest_that_cannot_become_ready_is_told_at_once(start: Start, scenario: str, words: str) -> None:
    with pytest.raises(Problem) as caught:
        start(scenario, ready_timeout=1.0 if scenario in ("silence", "other_boot") else 60.0)
    assert words in str(caught.value)
    assert "-kernel /images/x.kernel" in caught.value.hint
    assert "nonce" not in caught.value.hint


def test_what_failed_decides_the_kind_of_problem(start: Start) -> None:
    for scenario, kind in (
        ("dies_at_once", RigProblem),
        ("dies", MachineProblem),
        ("terminated", MachineProblem),
        ("powers_off", GuestProblem),
    ):
        with pytest.raises(kind) as caught:
            start(scenario)
        assert type(caught.value) is kind


def test_garbage_before_and_between_frames_is_skipped(start: Start) -> None:
    guest = start("garbage")
    assert guest.facts["boot_seconds"] == 1.5
    assert guest.run("upper", input=b"x").stdout == b"X"


def test_a_flood_on_the_console_neither_starves_the_channel_nor_fills_memory(start: Start) -> None:
    guest = start("flood")
    assert guest.run("upper", input=b"x" * 10000).stdout == b"X" * 10000
    while guest.console.total < 64 << 20:
        time.sleep(0.01)
    assert len(guest.console.text) < 5 << 20
    assert "bytes not kept" in guest.console.text


def test_a_slow_boot_is_told_while_it_goes_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_machine, "SAY_EVERY", 0.1)
    said: list[str] = []
    start("slow", say=said.append)
    assert any("tiny x86_64: waiting for ready: web" in line for line in said), said


def test_without_a_channel_the_console_tells(start: Start) -> None:
    guest = start("good", channel=False)
    assert guest.facts["boot_seconds"] == 1.5
    assert "imagekit.nonce" not in guest.facts["cmdline"]
    with pytest.raises(GuestProblem, match="started without a channel"):
        guest.run("upper")
    assert guest.http.get("/").text == "hello"
    with pytest.raises(GuestProblem, match="nobody listens on port 82"):
        guest.tcp(82)


BAD_COMMANDS = [
    ("lie", "the guest sent a EXIT frame of 1 bytes"),
    ("huge", "printed more than 16777216 bytes on a stream and was killed"),
    ("sleep", "sleep did not end within 0.2 s and was killed (the guest was idle for 0.2 s); it said: nothing"),
    ("busy", "busy did not end within 0.2 s and was killed (the guest worked 0.2 s); it said: round\nround and round"),
    ("deaf", "deaf: no answer when its 0.2 s were over (the guest was idle for 0.2 s): the guest hangs, or its agent"),
    ("late", "late did not end within 0.2 s and was killed (by its own clock); it said: nothing"),
    ("panic", "the guest panicked (Kernel panic - not syncing: no init"),
]


@pytest.mark.parametrize(("command", "words"), BAD_COMMANDS)
def test_a_command_that_has_no_good_end(
    start: Start, monkeypatch: pytest.MonkeyPatch, command: str, words: str
) -> None:
    guest = start("good")
    monkeypatch.setattr(_qemu_agent, "GRACE", 0.2 if command == "deaf" else 60.0)
    with pytest.raises(GuestProblem) as caught:
        guest.run(command, timeout=0.2)
    assert words in str(caught.value)
    assert "guest| " in str(caught.value)


def test_ports_of_the_guest(start: Start) -> None:
    guest, other = start("good"), start("good")
    assert guest.facts["address"] != other.facts["address"]
    for one in (guest, other):
        answer = one.http.get("/")
        assert (answer.status, answer.text, answer.headers["x-port"]) == (200, "hello", "80")
    for port, words in ((81, "loopback address only"), (82, r"nobody listens on port 82 .*open ports: 80, 443")):
        with pytest.raises(GuestProblem, match=words):
            guest.tcp(port)
    for port in (0, 65536):
        with pytest.raises(Problem, match="is no port"):
            guest.tcp(port)
    guest.tcp(443).close()


def test_a_guest_that_does_not_obey_is_killed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = start("disobedient")
    monkeypatch.setattr(_qemu_agent, "OFF", Patience(work=9.0, idle=9.0, silent=0.2))
    monkeypatch.setattr(_machine, "QUITTING", 0.2)
    monkeypatch.setattr(_machine, "TICK", 0.1)
    guest.stop()
    assert guest.facts["stopped"] == "the guest was killed"


def test_qemu_killed_from_outside_is_noticed(start: Start) -> None:
    guest = start("good")
    Thread(target=lambda: (time.sleep(0.2), os.kill(guest.facts["pid"], signal.SIGKILL))).start()
    with pytest.raises(MachineProblem, match="QEMU was killed by signal 9 before sleep ended"):
        guest.run("sleep")
    assert not guest.is_alive()
    with pytest.raises(MachineProblem, match="killed by signal 9 before port 80 was asked for"):
        guest.http.get("/")


def test_qemu_stopped_from_outside_is_noticed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = start("good")
    monkeypatch.setattr(_machine, "TICK", 0.1)
    monkeypatch.setattr(_machine, "STOPPED", 0.3)
    os.kill(guest.facts["pid"], signal.SIGSTOP)
    with pytest.raises(MachineProblem, match=r"QEMU was stopped by a signal .*kill -CONT"):
        guest.run("sleep")
    os.kill(guest.facts["pid"], signal.SIGCONT)
    assert guest.run("upper", input=b"x").stdout == b"X"
    os.kill(guest.facts["pid"], signal.SIGSTOP)
    guest.stop()


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import fake_rig
from imagekit import plugs
from imagekit.guest import Rig
from imagekit.targets import _qemu_start
_qemu_start.INSIDE = Path({inside!r})
_qemu_start.toolbox.tools = lambda *_, **__: fake_rig.FakeTools("good")
with fake_rig.opened() as artifact:
    guest = plugs.load("targets", "qemu_x86_64").start(artifact, rig=Rig(accelerator="tcg"), store=None)
print(guest.facts["pid"], guest.facts["address"], flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(600)", "sys.exit(0)", "raise RuntimeError", "import os; os.abort()"])
def test_no_qemu_outlives_us_however_we_end(tmp_path: Path, then: str) -> None:
    (tmp_path / "agent.x86_64").write_bytes(b"the agent")
    script = KILLED.format(tests=str(Path(__file__).parent), inside=str(tmp_path), then=then)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    with process, process.stdout:
        pid, address = process.stdout.readline().split()
        assert Path(f"/proc/{int(pid)}").exists() or then != "time.sleep(600)"
        if then == "time.sleep(600)":
            process.kill()
        process.wait()
    while lives(int(pid)):  # a hang is the failure
        time.sleep(0.01)
    assert f"@imagekit/{address.decode()}" not in Path("/proc/net/unix").read_text()


def test_a_machine_leaves_no_descriptor_and_no_process(start: Start) -> None:
    before = handles()
    guest = start("good")
    guest.http.get("/")
    guest.stop()
    assert handles() == before
    assert not children()


def test_ctrl_c_ends_a_wait_and_the_machine(start: Start) -> None:
    Thread(target=lambda: (time.sleep(0.5), os.kill(os.getpid(), signal.SIGINT))).start()
    with pytest.raises(KeyboardInterrupt):
        start("silence")
    assert not children()


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def children() -> list[str]:
    return [words for task in Path("/proc/self/task").iterdir() for words in (task / "children").read_text().split()]


def lives(pid: int) -> bool:
    """Whether it runs: process 1 of a container takes its time to bury the dead."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
