"""A machine's TPM 2.0: swtpm, with us on the bus between the two.

QEMU steers its TPM on a control channel, over which it also hands over one end of a second one, for the commands
(docs/specs/tpm.rst of QEMU, swtpm_ioctls(3)). Both go through the one thread of a chip, which passes each command on
and waits for its answer. So PCRs can be read of a machine that says nothing, or that was killed, and something can be
done on the bus, as by who has the board in hands. Channels are socket pairs, and the state is a memory file: there is
no path that anybody could guess, and nothing is left of either, whatever is killed.
"""

import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from selectors import EVENT_READ, DefaultSelector
from subprocess import DEVNULL, STDOUT, Popen
from threading import Thread
from typing import Any, TypeVar

from imagekit import host, toolbox
from imagekit.console import Console, escape
from imagekit.errors import MachineProblem, Problem, RigProblem
from imagekit.rig import Tpm
from imagekit.targets import _tpm2

T = TypeVar("T")
INIT, SHUTDOWN, STOP, SET_DATAFD = 2, 3, 14, 16  # swtpm's commands on the control channel (tpm_ioctl.h)
DONE = bytes(4)  # its answer where all went well
WORD = struct.Struct(">I")
PATIENCE = 300.0  # seconds until a swtpm that answers nothing is given up: making a key takes a few on a busy host
MOST = 1 << 16  # bytes of one command of the control channel
LINEAR = struct.Struct(
    "<QBxH"
)  # the head of swtpm's state in one file: magic, version, bytes of the table that follows
ENTRY = struct.Struct("<III")  # a place in it: offset, bytes that are used, bytes that are kept free
MAGIC, VERSION, ENTRIES = 0x737774706D6C696E, 1, 15  # swtpm_nvstore_linear.h


def check(state: bytes) -> None:
    """Raise Problem for a state that swtpm would not find its own in: it would make a new TPM in its place."""
    hint = "take what `guest.tpm.state()` gave, whole; Tpm() is a new one"
    if len(state) < LINEAR.size:
        raise Problem(f"the TPM's state is cut: it has {len(state)} bytes", hint)
    magic, version, table = LINEAR.unpack_from(state)
    if magic != MAGIC:
        raise Problem("that is no state of a TPM", hint)
    if version != VERSION or table != LINEAR.size + ENTRIES * ENTRY.size:
        raise Problem(f"the TPM's state is of another version of swtpm: {version}, where {VERSION} is known", hint)
    for place in range(LINEAR.size, table, ENTRY.size):
        offset, used, kept = ENTRY.unpack_from(state.ljust(table, b"\0"), place)
        if used > kept or offset + kept > len(state):
            raise Problem(
                f"the TPM's state is cut: it has {len(state)} bytes, and one part ends at {offset + kept}", hint
            )


class Chip:
    """One TPM, from `start` to `close`; machines are plugged into it, one after the other."""

    def __init__(self, tools: toolbox.Tools, wanted: Tpm) -> None:
        self.words = Console()  # what swtpm itself prints
        self.ended = ""  # how it ended, when it should not have
        self._leaving = False
        self._tools, self._wanted = tools, wanted
        self.ram = os.memfd_create("ram", os.MFD_CLOEXEC)  # of the machine, whose firmware leaves its event log there
        self._state = os.memfd_create("tpm", os.MFD_CLOEXEC)
        self._held: tuple[int, ...] = (self.ram, self._state)
        self._asked: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        self._bell, self._ring = socket.socketpair()
        self._on_end: Callable[[str], None] = lambda _: None
        self._lines: dict[str, socket.socket] = {}
        self._started: Future[None] = Future()
        self._process: Popen[bytes] | None = None
        self._thread = Thread(target=self._run, name="imagekit tpm", daemon=True)

    # --- for any thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start swtpm on its state, or have it make one; raises Problem for a state that it does not take."""
        try:
            if self._wanted.state:
                check(self._wanted.state)
                os.pwrite(self._state, self._wanted.state, 0)
            self._thread.start()
            self._started.result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End it; twice is once."""
        if self._thread.is_alive():
            self._leaving = True
            with suppress(OSError):
                self._ring.send(b".")
            if self._process:  # it may be in the middle of something that takes long
                host.kill(self._process)
            self._thread.join()
        for line in (self._bell, self._ring):
            line.close()
        for handle in self._held:
            os.close(handle)
        self._held = ()

    @contextmanager
    def plugged(self) -> Iterator[int]:
        """The descriptor by which a QEMU that is started now gets the TPM, switched off and on as its memory is."""
        os.truncate(self.ram, 0)
        ours, theirs = socket.socketpair()
        with theirs:
            self._ask(lambda: self._plug(ours))
            yield theirs.fileno()

    def watch(self, on_end: Callable[[str], None]) -> None:
        """Have that called, with words, when swtpm ends by itself; at once where it has."""
        self._on_end = on_end
        if self.ended:
            on_end(self.ended)

    def pcrs(self) -> Mapping[int, bytes]:
        """The PCRs as they are now, or were when the machine ended: nobody in the guest is asked."""
        return self._ask(
            lambda: {pcr: value for read in _tpm2.reads() for pcr, value in _tpm2.values(self._send(read)).items()}
        )

    def state(self) -> bytes:
        """What a later TPM goes on from: all that survives a power cut, between two commands."""
        return self._ask(lambda: os.pread(self._state, os.fstat(self._state).st_size, 0))

    def memory(self) -> int:
        """The descriptor of the machine's memory, which is there for as long as this is."""
        return self._ask(lambda: self.ram)

    def send(self, command: bytes) -> bytes:
        """Say something on the bus, as who has soldered himself to it; the TPM's answer."""
        return self._ask(lambda: self._send(command))

    def _ask(self, question: Callable[[], T]) -> T:
        """Have something done between two commands."""
        asked: Future[T] = Future()
        self._asked.put((question, asked))
        with suppress(OSError):
            self._ring.send(b".")
        while not asked.done() and self._thread.is_alive():
            with suppress(TimeoutError):
                asked.exception(timeout=1.0)
        if not asked.done():
            raise MachineProblem(self.ended or "the machine's TPM was taken away")
        return asked.result()

    # --- in the chip's thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        """PR_SET_PDEATHSIG counts the thread that starts a process: this one lives as long as swtpm (prctl(2))."""
        try:
            with ExitStack() as held:
                self._begin(held)
                self._started.set_result(None)
                self._serve()
        except Exception as error:
            if self._leaving:
                return
            if not self._started.done():
                self._started.set_exception(error)
                return
            self.ended = error.message if isinstance(error, Problem) else f"the machine's TPM failed: {error!r}"
            self._on_end(self.ended)

    def _begin(self, held: ExitStack) -> None:
        held.callback(self._unplug)
        control, theirs = socket.socketpair()
        held.callback(control.close)
        words, printed = socket.socketpair()
        held.callback(words.close)
        with theirs, printed:
            self._process = self._launch(theirs.fileno(), printed)
        held.callback(host.end, self._process)
        data, far = socket.socketpair()
        held.callback(data.close)
        self._lines = {"swtpm": control, "words": words, "data": data}
        for line in (control, data):
            line.settimeout(PATIENCE)
        with far:
            self._check_done(self._control(WORD.pack(SET_DATAFD), [far.fileno()]))
        is_new = not os.fstat(self._state).st_size
        self._check_done(self._control(WORD.pack(INIT) + WORD.pack(0)))
        before = (*((_tpm2.allocate(),) if is_new else ()), *((_tpm2.clear(),) if self._wanted.cleared else ()))
        for command in (_tpm2.startup(), *before, _tpm2.shutdown()) if before else ():
            _tpm2.checked(self._send(command))

    def _launch(self, control: int, printed: socket.socket) -> "Popen[bytes]":
        state = f"backend-uri=file:///proc/self/fd/{self._state}"
        steered = f"type=unixio,clientfd={control}"
        words = ("socket", "--tpm2", "--ctrl", steered, "--tpmstate", state, "--seccomp", "action=kill")
        return host.launch(self._tools.argv("swtpm", *words), env=self._tools.env, pass_fds=(control, self._state),
                           stdin=DEVNULL, stdout=printed, stderr=STDOUT)  # fmt: skip

    def _serve(self) -> None:
        """Do what is wanted, one after the other, until nobody wants anything any more."""
        hung_up = dict.fromkeys(("swtpm", "data"), self._hung_up)
        asked = {"qemu": self._pass_control, "commands": self._pass_command}
        takers = {"bell": self._answer, "words": self._read_words, **asked, **hung_up}
        while not self._leaving:
            with DefaultSelector() as waiting:
                for name, line in {"bell": self._bell, **self._lines}.items():
                    waiting.register(line, EVENT_READ, name)
                ready = {key.data for key, _ in waiting.select()}
            next(take for name, take in takers.items() if name in ready)()  # it may change what the others are

    def _hung_up(self) -> None:
        """swtpm says nothing unasked: it has ended."""
        raise self._gone()

    def _answer(self) -> None:
        self._bell.recv(MOST)
        while not self._asked.empty():
            question, asked = self._asked.get()
            try:
                asked.set_result(question())
            except Problem as problem:
                asked.set_exception(problem)

    def _read_words(self) -> None:
        said = self._lines["words"].recv(MOST)
        if not said:
            raise self._gone()
        self.words.feed(said)

    def _plug(self, line: socket.socket) -> None:
        self._unplug()
        line.settimeout(PATIENCE)
        self._lines["qemu"] = line

    def _unplug(self) -> None:
        for name in ("qemu", "commands"):
            if name in self._lines:
                self._lines.pop(name).close()

    def _pass_control(self) -> None:
        """Pass on a command of QEMU's control channel; it sends none before the last is answered."""
        line = self._lines["qemu"]
        try:
            wanted, handles, _, _ = socket.recv_fds(line, MOST, 1)
            found = WORD.unpack_from(wanted)[0] if len(wanted) >= WORD.size else 0
            if found == SET_DATAFD and handles:
                self._lines["commands"] = socket.socket(fileno=handles[0])
                self._lines["commands"].settimeout(PATIENCE)
                line.sendall(DONE)
            elif found == SHUTDOWN:  # QEMU ends: what the PCRs were is still to be read
                line.sendall(DONE)
            elif wanted:
                line.sendall(self._control(wanted))
            else:
                self._unplug()
        except (ConnectionError, BrokenPipeError):
            self._unplug()

    def _pass_command(self) -> None:
        line = self._lines["commands"]
        try:
            command = self._message(line)
            answer = self._send(command)
            if _tpm2.is_startup(command) and not _tpm2.code(answer):
                for pcr, digest in self._wanted.extend:
                    _tpm2.checked(self._send(_tpm2.extend(pcr, digest)))
            line.sendall(answer)
        except (ConnectionError, BrokenPipeError):
            self._lines.pop("commands").close()

    def _control(self, command: bytes, handles: list[int] | None = None) -> bytes:
        """swtpm's answer on the control channel."""
        line = self._lines["swtpm"]
        try:
            socket.send_fds(line, [command], handles or [])
            answer = line.recv(MOST)
        except OSError:
            answer = b""
        if not answer:
            raise self._gone()
        return answer

    def _send(self, command: bytes) -> bytes:
        """The TPM's response to a command."""
        try:
            self._lines["data"].sendall(command)
            return self._message(self._lines["data"])
        except OSError:
            raise self._gone() from None

    @staticmethod
    def _message(line: socket.socket) -> bytes:
        """One command or response, by the size in its header; ConnectionError at the line's end, or for nonsense."""
        message, size = b"", _tpm2.HEADER.size
        while len(message) < size:
            more = line.recv(size - len(message))
            message += more
            if len(message) >= _tpm2.HEADER.size:
                size = _tpm2.HEADER.unpack_from(message)[1]
            if not more or not _tpm2.HEADER.size <= size <= _tpm2.MOST:
                raise ConnectionError("no command of a TPM")
        return message

    def _check_done(self, answer: bytes) -> None:
        if answer != DONE:
            said = self._last_words()
            refused = f"swtpm does not take the TPM's state: {said or f'its answer is {answer[:4].hex()}'}"
            raise (
                Problem(refused, "it is damaged, or of a newer swtpm; Tpm() is a new one")
                if self._wanted.state
                else RigProblem(refused)
            )

    def _gone(self) -> MachineProblem:
        said = self._last_words()
        return MachineProblem(f"the machine's TPM is gone: swtpm ended{': ' if said else ''}{said}")

    def _last_words(self) -> str:
        words = self._lines["words"]
        words.settimeout(0.2)
        with suppress(OSError):
            while said := words.recv(MOST):
                self.words.feed(said)
        return escape(bytes(self.words.tail[-500:] or self.words.head[-500:])).strip()
