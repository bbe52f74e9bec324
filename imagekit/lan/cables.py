"""The cables of private switches: a socket per guest that runs, and one thread that carries what they send.

A machine's end is made anew each time that it starts. Nobody waits for anybody: what a guest does not take is dropped
when its lane is full, and each guest is read a piece at a time, in turn.
"""

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from threading import Thread

from imagekit.lan.switch import Port, Switch, packed, unpacked

PIECE = 64 << 10  # bytes that are read from a guest until it is another's turn


@dataclass(eq=False)
class _Cable:
    switch: Switch
    port: Port
    end: socket.socket
    received: bytearray = field(default_factory=bytearray)
    sending: memoryview = field(default_factory=lambda: memoryview(b""))
    wants_write: bool = False

    def read(self) -> bool:
        """Take a piece of what the guest has sent; False when it is gone, or makes no sense."""
        try:
            data = self.end.recv(PIECE)
            self.received += data
            for frame in unpacked(self.received):
                self.switch.take(self.port, frame)
        except BlockingIOError:
            return True
        except (OSError, ValueError):  # its machine was killed, or is no QEMU
            return False
        return bool(data)

    def write(self) -> bool:
        """Give the guest what is there for it, as far as it takes it; False when it is gone."""
        try:
            while True:
                if not self.sending:
                    data = self.port.take()
                    if data is None:
                        return True
                    self.sending = memoryview(packed(data))
                self.sending = self.sending[self.end.send(self.sending) :]
        except BlockingIOError:
            return True
        except OSError:
            return False


class Cables:
    """All cables of a few switches; `close` unplugs them. Twice is once."""

    def __init__(self, switches: Sequence[Switch]) -> None:
        self._switches = switches
        self._new: SimpleQueue[_Cable | None] = SimpleQueue()  # None: the end
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._cables: dict[Port, _Cable] = {}
        self._thread = Thread(target=self._carry, name="imagekit switch", daemon=True)
        self._thread.start()

    def plug(self, switch: Switch, name: str) -> socket.socket:
        """The machine's end of a new cable to its port; an old one there is pulled out."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._tell(_Cable(switch, switch.port(name), ours))
        return theirs

    def close(self) -> None:
        """Unplug everybody and end the thread."""
        if self._thread.is_alive():
            self._tell(None)
            self._thread.join()

    def _tell(self, new: _Cable | None) -> None:
        self._new.put(new)
        with suppress(BlockingIOError):  # it will wake anyway
            self._wake.send(b"\0")

    def _carry(self) -> None:
        with DefaultSelector() as waiting, self._wake, self._woken:
            waiting.register(self._woken, EVENT_READ)
            try:
                while self._turn(waiting):
                    pass
            finally:
                for cable in self._cables.values():
                    cable.end.close()

    def _turn(self, waiting: DefaultSelector) -> bool:
        """Carry what is there now; False at the end."""
        pauses = [pause for switch in self._switches if (pause := switch.deliver()) is not None]
        for cable in [*self._cables.values()]:
            self._keep(waiting, cable, cable.write())
        for key, events in waiting.select(max(0.0, min(pauses)) if pauses else None):
            if key.fileobj is self._woken:
                os.read(key.fd, 4096)
                if not self._plug_in(waiting):
                    return False
            elif events & EVENT_READ:
                self._keep(waiting, key.data, key.data.read())
        return True

    def _plug_in(self, waiting: DefaultSelector) -> bool:
        while not self._new.empty():
            new = self._new.get()
            if new is None:
                return False
            if new.port in self._cables:
                self._keep(waiting, self._cables[new.port], False)
            self._cables[new.port] = new
            new.port.plug(True)
            waiting.register(new.end, EVENT_READ, new)
        return True

    def _keep(self, waiting: DefaultSelector, cable: _Cable, is_there: bool) -> None:
        """Wait for what a cable waits for; take away one that leads nowhere."""
        if self._cables.get(cable.port) is not cable:
            return
        if not is_there:
            waiting.unregister(cable.end)
            cable.end.close()
            cable.port.plug(False)
            del self._cables[cable.port]
        elif cable.wants_write != bool(cable.sending):
            cable.wants_write = bool(cable.sending)
            waiting.modify(cable.end, EVENT_READ | (EVENT_WRITE if cable.sending else 0), cable)
