"""A running QEMU: its process, its lines, and the one thread in which all of it happens.

The thread that starts a process must live as long as it: PR_SET_PDEATHSIG kills when the *thread* ends (prctl(2)), so
that neither kill -9 nor a crash of ours leaves a QEMU behind. Other threads ask by coroutine and wait. The monitor,
the console and the agent's line are socket pairs: there is no file, no port and no race to connect to them.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine
from concurrent import futures
from contextlib import AsyncExitStack, suppress
from subprocess import Popen
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from imagekit import host
from imagekit.errors import RigProblem
from imagekit.guest import Console, GuestProblem, MachineProblem, escape
from imagekit.patience import Outcome, Patience, Spent
from imagekit.rig import Rig
from imagekit.targets import _qemu_bulk
from imagekit.targets._qemu_agent import Agent
from imagekit.targets._qemu_effort import Effort
from imagekit.targets._qemu_ending import Ending, epitaph
from imagekit.targets._qemu_progress import ConsoleLines, Progress

if TYPE_CHECKING:
    from imagekit.targets._qemu_monitor import Monitor

T = TypeVar("T")
TICK = 1.0  # seconds between two looks at a guest that tells nothing
LOADING = Patience(work=30.0, idle=30.0)  # of QEMU, until it greets
ENDING = 2.0  # seconds that a QEMU which hung up may take to end
LAST_WORDS = 10.0  # seconds to read what a QEMU that has ended left in our sockets
QUITTING = 2.0  # seconds that it may take to end when it is told to
SAY_EVERY = 3.0  # seconds between two progress lines
STOPPED = 3.0  # seconds that QEMU may be stopped by a signal before that is a failure


def _nothing(*_: object) -> None:
    pass


class Lines(NamedTuple):
    """The sockets that QEMU gets."""

    monitor: socket.socket
    console: socket.socket
    channel: socket.socket
    words: socket.socket  # its stdout and stderr
    bulk: int  # a memory file that it writes parts of the guest's memory to


class _Line(asyncio.Protocol):
    """Our end of a line."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self.closed = asyncio.Event()
        self.transport: Any = None
        self._take = take

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - QEMU's end is told elsewhere
        self.closed.set()

    def send(self, data: bytes) -> None:
        if data and not self.transport.is_closing():
            self.transport.write(data)


class Machine:
    """One QEMU, from `start` to `close`; made by a function that launches the process with the lines it is given."""

    def __init__(
        self,
        launch: Callable[[Lines], "Popen[bytes]"],
        *,
        nonce: str,
        by_hand: str = "",
        rig: Rig | None = None,
        on_console: Callable[[bytes], None] | None = None,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console()
        self.began_at = self.console.total  # where its own words begin, after those of earlier machines
        self.words = Console()  # what QEMU itself prints
        self.progress = Progress()
        self.ending: Ending | None = None
        self.version = ""
        self.by_hand = by_hand  # a line that starts the same guest from a shell
        self.rig = rig or Rig()
        self.agent = Agent(nonce, self.progress, tell=lambda: self._tell())
        self._launch, self._on_console = launch, on_console or _nothing
        self._console_lines = ConsoleLines(self.progress, take_events=not nonce)
        self._printed_at = time.monotonic()
        self._stopped_since: float | None = None
        self._started: futures.Future[None] = futures.Future()
        self._thread = Thread(target=self._run_loop, name="imagekit machine", daemon=True)

    # --- for any thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start QEMU; raises RigProblem when it does not come up."""
        self._thread.start()
        try:
            self._started.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End QEMU, however it fares; nothing of it is left afterwards. Twice is once."""
        if self._thread.is_alive():
            futures.wait([self._started])
            with suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._leave.set)
            self._thread.join()

    def kill(self, words: str) -> None:
        """End QEMU as a power cut does: nobody is asked, nothing is written to its disks any more."""

        async def kill() -> None:
            self.ending = self.ending or Ending(words, GuestProblem)
            host.kill(self._process)
            self._tell()

        if self.is_alive:
            self.ask(kill)
        self.close()

    def lose(self, words: str) -> None:
        """End QEMU because something has ended that it cannot be without; returns at once."""

        def lose() -> None:
            self.ending = self.ending or Ending(words, MachineProblem)
            host.kill(self._process)
            self._tell()

        with suppress(RuntimeError):  # the loop has ended meanwhile
            self._loop.call_soon_threadsafe(lose)

    @property
    def is_alive(self) -> bool:
        """Whether there is a guest."""
        return self._thread.is_alive() and self.ending is None

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def ask(self, question: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have a coroutine run in the machine's thread and wait for what it returns or raises."""
        coroutine = question()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise self.problem("the guest was stopped") from None
        try:
            while not futures.wait([future], timeout=TICK).done and self._thread.is_alive():
                pass
            return future.result(timeout=0)
        except (futures.CancelledError, TimeoutError):
            raise self.problem("the guest was stopped") from None
        finally:
            future.cancel()

    def problem(self, message: str, kind: type[GuestProblem] = GuestProblem) -> GuestProblem:
        """A Problem that ends with the console's end and a line that starts the same guest by hand."""
        return kind(f"{message}\n{self.console.end()}", f"$ {self.by_hand}" if self.by_hand else "")

    def gone(self, before: str) -> GuestProblem:
        """The Problem of a guest that ended before what was wanted of it."""
        ending = self.ending or Ending("the guest was stopped", GuestProblem)
        return self.problem(f"{ending.words} {before}".rstrip(), ending.kind)

    @property
    def silence(self) -> float:
        """Seconds since the console printed something."""
        return time.monotonic() - self._printed_at

    @property
    def cpu_seconds(self) -> float:
        """Processor time that QEMU has used."""
        fields = self._stat()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0

    # --- in the machine's thread ---------------------------------------------------------------------------------

    async def until(
        self, done: Callable[[], object], patience: Patience | float, tick: Callable[[], None] = _nothing
    ) -> Outcome:
        """Wait until `done()` comes true; looked at again at each news and tick. Ends early with the guest.

        Seconds are those of the machine's own: see patience.py. Raises MachineProblem when QEMU is stopped by a signal.
        """
        limits = self.scaled(patience)
        begin, spent = self._effort.look(), Spent()
        while not done():
            spent = self._effort.since(begin)
            if (over := limits.over(spent)) or self.ending:
                return Outcome(False, over, spent)
            news = self._news  # taken before we sleep: what happens from here on sets it
            with suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), min(limits.left(spent), TICK))
            self._check_stopped()
            tick()
        return Outcome(True, "", spent)

    def scaled(self, patience: Patience | float) -> Patience:
        """The limits that a wait really has."""
        return (patience if isinstance(patience, Patience) else Patience.of(patience)) * self.rig.timeout_scale

    async def within(self, patience: Patience | float, asked: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns or raises; TimeoutError, with the limit in words, when patience ends first."""
        task = asyncio.ensure_future(asked)
        task.add_done_callback(lambda _: self._tell())
        try:
            outcome = await self.until(task.done, patience)
            if not outcome and self.ending:  # what it left unsaid will not come
                await asyncio.wait([task], timeout=TICK)
            if not task.done():
                raise TimeoutError(outcome.limit or "QEMU has ended")
            return task.result()
        finally:
            task.cancel()

    def excuse(self) -> None:
        """The guest has a reason to be silent now: this does not count."""
        self._effort.news()

    async def pause(self) -> str:
        """Words about a guest that QEMU itself does not let run; "" when it may."""
        try:
            status = await self._monitor.execute("query-status")
        except RigProblem as problem:
            return f"; {problem.message}"
        return "" if status.get("running") else f"; QEMU has paused it ({escape(str(status.get('status')).encode())})"

    def teller(self, words: Callable[[], tuple[str, str]]) -> Callable[[], None]:
        """A tick that says every few seconds what is awaited and what was seen last."""
        began = time.monotonic()
        due = began + SAY_EVERY

        def tick() -> None:
            nonlocal due
            if (now := time.monotonic()) >= due:
                due = now + SAY_EVERY
                awaited, last = words()
                self.rig.say(f"{awaited} ({now - began:.0f} s; last: {last})")

        return tick

    def type(self, data: bytes) -> None:
        """Type on the console; for any thread."""
        self._loop.call_soon_threadsafe(self._console.send, data)

    @property
    def monitor(self) -> "Monitor":
        """QEMU's monitor."""
        return self._monitor

    # --- a life --------------------------------------------------------------------------------------------------

    def _run_loop(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:
            if self._started.done():
                self.ending = self.ending or Ending(f"imagekit failed: {error!r}", MachineProblem)
                raise
            self._started.set_exception(error)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news, self._leave = asyncio.Event(), asyncio.Event()
        async with AsyncExitStack() as stack:
            await self._begin(stack)
            self._started.set_result(None)
            await self._leave.wait()
            await self._quit()

    async def _begin(self, stack: AsyncExitStack) -> None:
        pairs = [socket.socketpair() for _ in range(4)]
        bulk = stack.enter_context(_qemu_bulk.file())
        for ours, theirs in pairs:
            stack.callback(ours.close)
            stack.callback(theirs.close)
        self._process = self._launch(Lines._make([*(theirs for _, theirs in pairs), bulk]))
        stack.callback(host.end, self._process)
        self._effort = Effort(self.pid)
        for _, theirs in pairs:
            theirs.close()
        ends = Lines._make([*(ours for ours, _ in pairs), bulk])
        self._console = await self._connect(stack, ends.console, self._take_console)
        self._channel = await self._connect(stack, ends.channel, self._take_channel)
        self.agent.send = self._channel.send
        _qemu_bulk.install(self, bulk)
        printed = await self._connect(stack, ends.words, self.words.feed)
        await self._greet(stack, ends.monitor, printed)
        self._end = asyncio.create_task(self._await_end(printed))
        stack.callback(self._end.cancel)

    async def _connect(self, stack: AsyncExitStack, end: socket.socket, take: Callable[[bytes], None]) -> _Line:
        end.setblocking(False)
        transport, line = await self._loop.create_unix_connection(lambda: _Line(take), sock=end)
        stack.callback(transport.abort)
        return line

    async def _greet(self, stack: AsyncExitStack, end: socket.socket, printed: _Line) -> None:
        from imagekit.targets._qemu_monitor import Monitor  # loads while QEMU does

        self._monitor = Monitor(self._tell, self.within)
        stack.push_async_callback(self._monitor.close)
        try:
            await self.within(LOADING, self._monitor.connect(end))
        except (EOFError, OSError) as error:  # TimeoutError is one
            is_mute = isinstance(error, TimeoutError)
            has_ended = not is_mute and await self.until(printed.closed.is_set, ENDING)
            said = escape(bytes(self.words.head[-2000:])).strip()
            how = f"does not answer ({error})" if is_mute else "ended at once" if has_ended else "does not speak QMP"
            raise RigProblem(f"QEMU {how}: {said or 'it said nothing'}", f"$ {self.by_hand}") from None
        self.version = self._monitor.version

    async def _await_end(self, printed: _Line) -> None:
        await printed.closed.wait()
        while self._process.poll() is None:
            await asyncio.sleep(0.01)
        with suppress(TimeoutError):  # what it sent before it died is still to be read
            async with asyncio.timeout(LAST_WORDS):
                await self._console.closed.wait()
                await self._channel.closed.wait()
                await self._monitor.closed()
        self.ending = self.ending or epitaph(
            self._process.returncode, self.progress.panic, self._monitor.events, self.words
        )
        self._tell()

    async def _quit(self) -> None:
        if self.ending is None:
            with suppress(RigProblem, TimeoutError):  # hung up on us before it answered, or does not answer
                await self.within(QUITTING, self._monitor.execute("quit"))
        with suppress(MachineProblem):  # stopped by a signal: it is killed
            await self.until(self._end.done, QUITTING)
        if self.ending is None:
            self.ending = Ending("the guest was killed", GuestProblem)

    # --- what arrives --------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _take_console(self, data: bytes) -> None:
        self.console.feed(data)
        self._effort.news()
        self._printed_at = time.monotonic()
        self._on_console(data)
        if self._console_lines.feed(data):
            self._tell()

    def _take_channel(self, data: bytes) -> None:
        self._effort.news()
        self.agent.take(data)

    def _stat(self) -> list[str]:
        """The fields of /proc/PID/stat from the third on (proc(5)); the name before them may contain anything."""
        try:
            with open(f"/proc/{self.pid}/stat") as file:
                return file.read().rpartition(")")[2].split()
        except OSError:
            return []

    def _check_stopped(self) -> None:
        fields = self._stat()
        if not fields or fields[0] != "T":
            self._stopped_since = None
            return
        self._stopped_since = self._stopped_since or self._loop.time()
        if self._loop.time() - self._stopped_since >= STOPPED:
            hint = f"`kill -CONT {self.pid}` lets it go on"
            raise self.problem(f"QEMU was stopped by a signal (process {self.pid}); {hint}", MachineProblem)
