"""The agent in a guest, seen from a machine: its first word, what it tells of the boot, and the commands it runs."""

import asyncio
import errno
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from imagekit.call import Call
from imagekit.channel import (
    MAX_OUTPUT,
    MAX_STREAMS,
    Bulk,
    Decoder,
    Frame,
    Hello,
    Kind,
    encode,
    free,
    parse_bulk,
    parse_hello,
    renewal,
    request,
    text,
)
from imagekit.console import WIDTH, escape
from imagekit.errors import Problem, RigProblem
from imagekit.guest import Finished
from imagekit.patience import Patience
from imagekit.targets._qemu_progress import Progress

if TYPE_CHECKING:
    from imagekit.targets._machine import Machine

AGAIN = 2.0  # seconds without an acknowledgement until a piece is sent again
RENEWED = 30.0  # seconds of its own that a restored guest may take until it answers
GRACE = 15.0  # seconds of its own that a guest has to kill a command whose time is up, and to say so
NET, MORE_NET, MAX_NET = 10.0, 60.0, 1e6  # the agent's own deadline, the last net: the guest's clock counts all
KILLED = 128 + 9
SLOWEST = 4000  # bytes of stdin a second: a UART of an emulated machine takes 40,000 to 140,000 where nobody else works
POWER_OFF = ("/usr/sbin/poweroff",)
OFF = Patience(work=120.0, idle=120.0, silent=20.0)  # of a guest that was told to power off
NOT_STARTED = {errno.ENOENT: 127, errno.ENOTDIR: 127, errno.EACCES: 126, errno.ENOEXEC: 126}  # as a shell says it


async def _cannot_fetch(_: Bulk) -> bytes:
    raise RigProblem("nobody can look into the guest's memory")


class Agent:
    """The host's end of the channel: takes what the line gave, hands frames to the calls that wait for them."""

    def __init__(self, nonce: str, progress: Progress, *, tell: Callable[[], None]) -> None:
        self.hello: Hello | None = None
        self.send: Callable[[bytes], None] = lambda _: None
        self.lies: dict[int, Problem] = {}  # streams on which the guest sent nonsense
        self.fetch: Callable[[Bulk], Coroutine[Any, Any, bytes]] = _cannot_fetch
        self.places = asyncio.Semaphore(MAX_STREAMS)
        self._nonce, self._progress, self._tell = nonce, progress, tell
        self._decoders = {nonce: Decoder(nonce)}  # two while a renewal is under way
        self._calls: dict[int, Call] = {}
        self._numbers = count(1)
        self._copying: set[asyncio.Task[None]] = set()

    def take(self, data: bytes) -> None:
        """What the line gave now, in whatever pieces; garbage is skipped."""
        for nonce, decoder in tuple(self._decoders.items()):
            self._take_all(decoder.feed(data), nonce)

    def look_past(self) -> None:
        """It is quiet: garbage that looks like the head of a long frame shall not hide those behind it."""
        for nonce, decoder in tuple(self._decoders.items()):
            self._take_all(decoder.look_past(), nonce)

    def _take_all(self, frames: Iterable[Frame], nonce: str) -> None:
        for frame in frames:
            with suppress(Problem):  # nonsense that no call waits for
                if self._take(frame, nonce):
                    self._tell()

    @contextmanager
    def call(self, packed: bytes, stdin: bytes = b"", *, is_open: bool = False) -> Iterator[tuple[int, Call]]:
        """Begin a command; its frames are taken until the `with` ends, and then it is told to die if it lives."""
        number = next(self._numbers)
        call = self._calls[number] = Call(number, packed, stdin, nonce=self._nonce, is_open=is_open)
        self.send(call.start())
        try:
            yield number, call
        finally:
            self.send(call.kill())
            del self._calls[number]

    def renew(self, nonce: str) -> None:
        """Ask the guest to take another nonce; its HELLO with that one makes the old one worthless."""
        old = self._nonce
        self._decoders.setdefault(nonce, Decoder(nonce))
        words = renewal(nonce, time.time_ns(), os.urandom(64))
        for known in dict.fromkeys((old, nonce)):  # it may have obeyed, and its answer may be late
            self.send(encode(Kind.RENEW, words, nonce=known))

    @property
    def nonce(self) -> str:
        """The nonce that is in force."""
        return self._nonce

    def has_renewed(self, nonce: str) -> bool:
        """Whether this nonce is the one in force."""
        return self._nonce == nonce and self.hello is not None

    def _take(self, frame: Frame, nonce: str) -> bool:
        """Whether the frame told something that somebody may wait for."""
        match frame.kind:
            case Kind.HELLO:
                self._greet(parse_hello(frame), nonce)
                return True
            case Kind.EVENT:
                return self.hello is not None and self._progress.take(text(frame))
        call = self._calls.get(frame.stream)
        if call is None:
            if frame.kind is Kind.BULK:  # of a command that nobody waits for any more
                self.send(free(parse_bulk(frame).number, True, nonce=self._nonce, stream=frame.stream))
            return False
        try:
            self.send(call.feed(frame))
            if frame.kind is Kind.BULK:
                self._begin_copy(call)
        except Problem as problem:
            self.lies[frame.stream] = problem
        return call.done or frame.stream in self.lies or frame.kind in (Kind.STDOUT, Kind.STDERR)

    def _begin_copy(self, call: Call) -> None:
        task = asyncio.create_task(self._copy(call))
        self._copying.add(task)
        task.add_done_callback(self._copying.discard)

    async def _copy(self, call: Call) -> None:
        """Take what a command left in the guest's memory; where that cannot be, the guest sends it by frames."""
        data = None
        if call.bulk:
            with suppress(RigProblem, OSError):
                data = await self.fetch(call.bulk)
        self.send(call.copied(data))
        self._tell()

    def _greet(self, hello: Hello, nonce: str) -> None:
        """The agent's first word under a nonce, which must be in it; later ones are repetitions."""
        if hello.echo != nonce.encode() or (self.hello and nonce == self._nonce):
            return
        if nonce != self._nonce:  # under the old one it says nothing of the renewal, which goes on
            self._decoders = {nonce: self._decoders[nonce]}
        self.hello, self._nonce = hello, nonce


async def run(
    machine: "Machine", argv: tuple[str, ...], *, stdin: bytes, env: Mapping[str, str], timeout: float
) -> Finished:
    """Run a command in a guest; raises GuestProblem when it has no end in time, or prints more than is kept."""
    far = min((NET * timeout + MORE_NET) * machine.rig.timeout_scale, MAX_NET)
    packed = request(argv, env=env, timeout=far)
    agent, patience = machine.agent, timeout + len(stdin) / SLOWEST
    async with agent.places:
        with agent.call(packed, stdin) as (number, call):

            def is_over() -> bool:
                return call.done or number in agent.lies

            again = asyncio.create_task(send_again(agent, call))
            try:
                tick = machine.teller(lambda: (f"waiting for {argv[0]}", _said(call).splitlines()[-1]))
                late = (await machine.until(is_over, patience, tick)).limit
                if late:
                    agent.send(call.kill())
                    await machine.until(is_over, GRACE)
            finally:
                again.cancel()
    if lie := agent.lies.pop(number, None):
        raise machine.problem(f"{argv[0]}: {lie.message}")
    if not call.done and machine.ending:
        raise machine.gone(f"before {argv[0]} ended")
    if not call.done:
        gone = f"the guest hangs, or its agent is gone{await machine.pause()}"
        raise machine.problem(f"{argv[0]}: no answer when its {timeout:g} s were over ({late}): {gone}")
    return _finished(machine, argv, call, timeout, late)


async def renew(machine: "Machine", nonce: str) -> None:
    """Give a restored guest the time, randomness and a nonce of its own; raises GuestProblem when it takes them not.

    Commands of whoever saved it are ended. Repeated until it answers, which does no harm.
    """
    agent = machine.agent
    for _ in range(int(RENEWED / AGAIN)):
        agent.renew(nonce)
        if await machine.until(lambda: agent.has_renewed(nonce), AGAIN):
            return
        if machine.ending:
            raise machine.gone("before its agent took a new nonce")
    raise machine.problem(f"the restored guest did not answer within {RENEWED:g} s")


async def power_off(machine: "Machine") -> None:
    """Have a guest power itself off: until it did, or refused, or did and said nothing for a while."""
    with machine.agent.call(request(POWER_OFF)) as (_, call):

        def over() -> bool:
            return (
                machine.ending is not None or call.error is not None or (call.exit is not None and call.exit.code > 0)
            )

        await machine.until(over, OFF)


def _finished(machine: "Machine", argv: tuple[str, ...], call: Call, timeout: float, late: str) -> Finished:
    if call.error:
        code = NOT_STARTED.get(call.error.errno)
        if code is None:
            raise machine.problem(
                f"{argv[0]} was not started in the guest: {escape(call.error.message.encode())[:WIDTH]}"
            )
        return Finished(argv, code, b"", f"{argv[0]}: {call.error.message}".encode())
    assert call.exit is not None
    if call.is_overflown:
        raise machine.problem(f"{argv[0]} printed more than {MAX_OUTPUT} bytes on a stream and was killed")
    if call.exit.timed_out or (late and call.exit.code == KILLED):
        how = f"{argv[0]} did not end within {timeout:g} s and was killed ({late or 'by its own clock'})"
        raise machine.problem(f"{how}; it said: {_said(call)}")
    return Finished(argv, call.exit.code, bytes(call.stdout), bytes(call.stderr))


def _said(call: Call) -> str:
    """The end of what a command printed."""
    return escape(bytes(call.stderr[-1000:] or call.stdout[-1000:])).strip() or "nothing"


async def send_again(agent: Agent, call: Call) -> None:
    """Say again what was not acknowledged, until the call is done or this is cancelled."""
    while not call.done:
        await asyncio.sleep(AGAIN)
        agent.look_past()
        agent.send(call.again())
