"""A guest's console on this terminal: what is typed goes to the guest, what it prints is shown as it is."""

import os
import signal
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from selectors import EVENT_READ, DefaultSelector
from types import FrameType
from typing import NoReturn

from imagekit.artifact import Opened
from imagekit.errors import Problem
from imagekit.guest import Rig
from imagekit.store import Store
from imagekit.targets import _qemu_agent, _qemu_start
from imagekit.targets._machine import Machine

LEAVE, PREFIX, AFTER_PREFIX = 0x1D, 0x01, ord("x")  # Ctrl-], or Ctrl-a x as in QEMU
KEYS = "Ctrl-] or Ctrl-a x leaves and stops the guest"
TICK = 0.5  # seconds between two looks at whether the guest is still there


def interact(opened: Opened, *, rig: Rig, store: Store) -> int:
    """Boot an artifact with its console on the terminal; 0 when the guest powered off or was left, 1 otherwise."""
    with _pair() as (printed, take):
        started = _qemu_start.start(opened, rig=rig, store=store, on_console=take)
        machine = started.machine
        try:
            _tell(KEYS if sys.stdin.isatty() else "Ctrl-C stops the guest")
            with raw_terminal() as is_terminal:
                _carry(machine, printed, is_terminal=is_terminal)
            if machine.is_alive:
                _power_off(machine)
        finally:
            started.close()
    if machine.ending is None or machine.ending.is_clean:
        return 0
    _tell(machine.ending.words)
    return 1


class Keys:
    """What was typed, less the keys that leave."""

    def __init__(self) -> None:
        self.is_leaving = False
        self._is_prefixed = False

    def feed(self, typed: bytes) -> bytes:
        """What goes to the guest; Ctrl-a twice is one Ctrl-a."""
        out = bytearray()
        for key in typed:
            if self._is_prefixed:
                self._is_prefixed = False
                self.is_leaving |= key == AFTER_PREFIX
                out += bytes([key]) if key == PREFIX else bytes([PREFIX, key])
            elif key == PREFIX:
                self._is_prefixed = True
            else:
                self.is_leaving |= key == LEAVE
                out.append(key)
            if self.is_leaving:
                return b""
        return bytes(out)


def _carry(machine: Machine, printed: socket.socket, *, is_terminal: bool) -> None:
    """Carry bytes both ways until the guest ends or the user leaves."""
    keys = Keys()
    with DefaultSelector() as waiting:
        waiting.register(printed, EVENT_READ)
        if is_terminal:
            waiting.register(sys.stdin.fileno(), EVENT_READ)
        while not keys.is_leaving:
            ready = {key.fileobj for key, _ in waiting.select(TICK)}
            if printed in ready:
                show(printed.recv(1 << 16))
            elif not machine.is_alive:
                return
            if sys.stdin.fileno() in ready:
                typed = os.read(sys.stdin.fileno(), 1024)
                if not typed:
                    return
                machine.type(keys.feed(typed))


def show(data: bytes) -> None:
    """Put bytes on the terminal as they are, all of them."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]


def _tell(line: str) -> None:
    print(f"\r{line}", file=sys.stderr, flush=True)


def _power_off(machine: Machine) -> None:
    if machine.agent.hello:
        _tell("stopping the guest")
        with suppress(Problem):
            machine.ask(lambda: _qemu_agent.power_off(machine))


@contextmanager
def _pair() -> Iterator[tuple[socket.socket, Callable[[bytes], None]]]:
    """What the guest prints, to be read here, and where it is put; what a slow terminal does not take is dropped."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)

        def take(data: bytes) -> None:
            with suppress(OSError):
                theirs.send(data)

        yield ours, take


@contextmanager
def raw_terminal() -> Iterator[bool]:
    """Every key goes to the guest; the terminal is put back however this ends. False where stdin is no terminal."""
    if not sys.stdin.isatty():
        yield False
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    old = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(handle)
        yield True
    finally:
        termios.tcsetattr(handle, termios.TCSAFLUSH, before)
        show(b"\x1b[0m\x1b[?7h\x1b[?25h\r\n")  # colours, line wrap and cursor, which SeaBIOS and guests change
        for number, action in old.items():
            signal.signal(number, action)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
