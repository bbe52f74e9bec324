"""`imagekit boot` on a terminal that the test holds the other end of."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import fake_rig as t
from imagekit import plugs
from imagekit.guest import Rig
from imagekit.targets import _qemu_start
_qemu_start.INSIDE = Path({inside!r})
_qemu_start.toolbox.tools = lambda *_, **__: t.FakeTools({scenario!r})
with t.opened() as artifact:
    interact = plugs.load("targets", "qemu_x86_64").interact
    try:
        sys.exit(interact(artifact, rig=Rig(accelerator="tcg"), store=None))
    except KeyboardInterrupt:
        sys.exit(130)
"""


class Terminal(NamedTuple):
    """Our end of a terminal, and the program on it."""

    handle: int
    process: "subprocess.Popen[bytes]"
    before: list[object]

    def see(self, words: str) -> str:
        """Read until these words were shown; the test's own time-out ends it."""
        seen = b""
        while words.encode() not in seen:
            assert select.select([self.handle], [], [], 30)[0], seen
            seen += os.read(self.handle, 4096)
        return seen.decode(errors="replace")

    def type(self, keys: bytes) -> None:
        os.write(self.handle, keys)

    def end(self) -> int:
        """Its exit status; the terminal is as it was before, and no QEMU is left."""
        while self.process.poll() is None:
            if select.select([self.handle], [], [], 0.05)[0]:
                with suppress(OSError):
                    os.read(self.handle, 4096)
        assert termios.tcgetattr(self.handle) == self.before
        return self.process.returncode

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.handle)[3] & termios.ICANON


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Terminal]]:
    opened: list[Terminal] = []

    def start(scenario: str) -> Terminal:
        (tmp_path / "agent.x86_64").write_bytes(b"the agent")
        script = SCRIPT.format(tests=str(Path(__file__).parent), inside=str(tmp_path), scenario=scenario)
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        opened.append(Terminal(ours, process, termios.tcgetattr(ours)))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.handle)


@pytest.mark.parametrize("keys", [b"\x1d", b"\x01x"])
def test_keys_go_to_the_guest_until_one_leaves(start: Callable[[str], Terminal], keys: bytes) -> None:
    terminal = start("echoes")
    assert "Ctrl-] or Ctrl-a x leaves" in terminal.see("login: ")
    while not terminal.is_raw():
        time.sleep(0.01)
    terminal.type(b"ro\x03\x1aot\r")
    terminal.see("<ro\x03\x1aot\r>".replace("\r", "\\r").replace("\x03", "\\x03").replace("\x1a", "\\x1a"))
    terminal.type(keys)
    terminal.see("stopping the guest")
    assert terminal.end() == 0


@pytest.mark.parametrize(("scenario", "status", "words"), [("powers_off", 0, ""), ("panic", 1, "the guest panicked")])
def test_it_ends_with_the_guest(start: Callable[[str], Terminal], scenario: str, status: int, words: str) -> None:
    terminal = start(scenario)
    if words:
        terminal.see(words)
    assert terminal.end() == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_puts_the_terminal_back(start: Callable[[str], Terminal], number: signal.Signals) -> None:
    terminal = start("echoes")
    terminal.see("login: ")
    while not terminal.is_raw():
        time.sleep(0.01)
    terminal.process.send_signal(number)
    assert terminal.end() == 128 + number


def test_without_a_terminal_the_console_is_printed(tmp_path: Path) -> None:
    (tmp_path / "agent.x86_64").write_bytes(b"the agent")
    script = SCRIPT.format(tests=str(Path(__file__).parent), inside=str(tmp_path), scenario="echoes")
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    with process:
        seen = b""
        while b"login: " not in seen:
            seen += process.stdout.read1(4096) or pytest.fail(f"it ended: {seen!r}")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
        assert b"Ctrl-C stops the guest" in process.stderr.read()
