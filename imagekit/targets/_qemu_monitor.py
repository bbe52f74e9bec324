"""QEMU's monitor (QMP): each command has a deadline of its own, and what QEMU tells unasked is kept."""

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qemu.qmp import EventListener, Message, QMPClient, QMPError, Runstate

from imagekit.console import WIDTH, escape
from imagekit.errors import RigProblem

DEADLINE = 10.0  # seconds of QEMU's own for an answer: one that hangs would never give one
MAX_EVENTS = 200

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # what it complains of is told as a Problem


class Monitor:
    """One QEMU's monitor, connected to the socket that it was started with."""

    def __init__(self, tell: Callable[[], None], within: Callable[..., Any]) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []  # the last ones, with their data
        self._tell = tell  # called when there is a new one
        self._within = within  # Machine.within
        self._client = QMPClient("imagekit")
        self._watching: asyncio.Future[None] = asyncio.Future()

    async def connect(self, line: socket.socket) -> None:
        """Greet QEMU; raises EOFError when it has ended."""
        self._client.register_listener(EventListener(event_filter=self._take))
        try:
            with suppress(AssertionError):  # qemu.qmp 0.0.6 asserts that QEMU still lives once it is connected
                await self._client.connect(line)
        except QMPError as error:
            raise EOFError(str(error)) from error
        self._watching = asyncio.create_task(self._watch())

    @property
    def version(self) -> str:
        """QEMU's version, with its packager's words."""
        greeting = self._client.greeting
        version: dict[str, Any] = dict(greeting.QMP.version) if greeting else {}
        number = ".".join(str(version.get("qemu", {}).get(part, "?")) for part in ("major", "minor", "micro"))
        return f"{number} {version.get('package', '')}".strip()

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Ask QEMU; raises RigProblem when it refuses, has ended or does not answer in time."""
        try:
            return await self._within(DEADLINE, self._client.execute(command, arguments or None))
        except TimeoutError as error:
            raise RigProblem(f"QEMU did not answer {command} in time: {error}") from None
        except (QMPError, OSError, EOFError) as error:
            what = f"QEMU does not do {command}: {escape(str(error)[:WIDTH].encode())}"
            raise RigProblem(what) from error

    async def give(self, handle: int, command: str, **arguments: Any) -> Any:
        """Ask QEMU something that takes a descriptor, which travels along and stays ours too."""
        self._client.send_fd_scm(handle)
        return await self.execute(command, **arguments)

    async def human(self, line: str) -> str:
        """Give a command of the human monitor and return what it prints: nothing where all went well."""
        return str(await self.execute("human-monitor-command", **{"command-line": line})).strip()

    async def closed(self) -> None:
        """Wait until QEMU hung up and all that it told before was taken."""
        await asyncio.wait([self._watching])

    async def close(self) -> None:
        """Hang up."""
        self._watching.cancel()
        with suppress(Exception):  # it raises what ended the connection, which is known
            await self._client.disconnect()

    def _take(self, event: Message) -> bool:
        """Keep what matters of an event; none is left to the listener, whose history has no bound."""
        found = event.get("data")
        self.events = [*self.events[-MAX_EVENTS:], (str(event.get("event")), found if isinstance(found, dict) else {})]
        self._tell()
        return False

    async def _watch(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
