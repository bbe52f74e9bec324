"""A command in a machine whose output is taken as it comes: its call is held open until somebody stops it."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from imagekit.call import Call
from imagekit.channel import MAX_OUTPUT, request
from imagekit.console import WIDTH, escape
from imagekit.errors import Problem
from imagekit.stream import Chunk, Stream
from imagekit.targets import _qemu_agent

if TYPE_CHECKING:
    from imagekit.targets._machine import Machine


class _Held:
    """One call, from the machine's thread."""

    def __init__(self, machine: "Machine", argv: tuple[str, ...], env: Mapping[str, str]) -> None:
        self._machine, self._name = machine, argv[0]
        self._packed = request(argv, env=env)
        self._began: asyncio.Future[tuple[int, Call]] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self._task = asyncio.create_task(self._hold())

    async def begin(self) -> None:
        self._number, self._call = await self._began

    async def _hold(self) -> None:
        agent = self._machine.agent
        async with agent.places:
            with agent.call(self._packed, is_open=True) as (number, call):
                self._began.set_result((number, call))
                again = asyncio.create_task(_qemu_agent.send_again(agent, call))
                try:
                    await self._leave.wait()
                finally:
                    again.cancel()

    async def take(self, seconds: float) -> Chunk:
        machine, call = self._machine, self._call

        def is_news() -> object:
            return call.stdout or call.stderr or call.done or self._number in machine.agent.lies

        if seconds:
            await machine.until(is_news, seconds)
        if lie := machine.agent.lies.pop(self._number, None):
            raise machine.problem(f"{self._name}: {lie.message}")
        if call.is_overflown:
            raise machine.problem(f"{self._name} printed {MAX_OUTPUT} bytes that nobody took, and was killed")
        if call.error:
            raise machine.problem(f"{self._name} was not started: {escape(call.error.message.encode())[:WIDTH]}")
        code = call.exit.code if call.exit else None
        chunk = Chunk(*call.take(), code)
        if machine.ending and code is None and not (chunk.stdout or chunk.stderr):
            raise machine.gone(f"before {self._name} ended")
        return chunk

    async def send(self, data: bytes, *, is_last: bool = False) -> None:
        self._machine.agent.send(self._call.add(data, is_last=is_last))

    async def stop(self) -> None:
        self._leave.set()
        await self._task


def open_stream(machine: "Machine", argv: tuple[str, ...], *, env: Mapping[str, str]) -> Stream:
    """Start a command and give it; raises GuestProblem where the guest is gone."""

    async def begin() -> _Held:
        held = _Held(machine, argv, env)
        await held.begin()
        return held

    held = machine.ask(begin)

    def stop() -> None:
        if machine.is_alive:
            with suppress(Problem):  # it ended meanwhile
                machine.ask(held.stop)

    return Stream(
        argv,
        lambda seconds: machine.ask(lambda: held.take(seconds)),
        lambda data: machine.ask(lambda: held.send(data)),
        lambda: machine.ask(lambda: held.send(b"", is_last=True)),
        stop,
    )
