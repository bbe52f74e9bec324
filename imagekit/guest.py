"""Guest: something alive, started from an artifact: a QEMU machine and a namespace look alike.

The narrow waist is `run(argv)`; `http` and `tcp` go through `connect`. Also here: what a target is. A plug in targets/
starts an Artifact and gives a Guest; formats and targets meet only in a format's kind.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from imagekit.errors import Problem, RigProblem

HEAD, TAIL = 1 << 20, 1 << 20  # bytes of console that are kept: the first and the last
END, WIDTH = 1 << 16, 400  # bytes that are looked at for the console's end, and characters that are shown of a line
MAX_BODY = 16 << 20  # bytes of an HTTP answer's body that are read


@dataclass(frozen=True)
class Finished:
    """How a command in a guest ended; its streams are kept apart and are whatever bytes the guest sent."""

    argv: tuple[str, ...]
    code: int  # exit status; 128 + signal where a signal ended it
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text, without the last line end; bytes that are no UTF-8 are shown as escapes."""
        return self.stdout.decode("utf-8", "backslashreplace").removesuffix("\n")

    def check(self) -> "Finished":
        """Itself when the code is 0; raises GuestProblem with both streams otherwise."""
        if self.code:
            streams = "\n".join(escape(s[-4000:]) for s in (self.stdout, self.stderr) if s)
            raise GuestProblem(f"{' '.join(self.argv)} ended with {self.code}\n{streams}".rstrip())
        return self


class GuestProblem(Problem):
    """The guest did not do what was asked: the message carries its console's end and what was seen last."""


class MachineProblem(GuestProblem, RigProblem):
    """The machine below the guest failed: QEMU died, hangs or was stopped. The rig is to blame, the guest is gone."""


@dataclass
class Console:
    """All that a guest printed: the first and the last MiB, and how much there was."""

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    total: int = 0  # bytes ever printed

    def feed(self, data: bytes) -> None:
        """Add what the guest printed now."""
        self.total += len(data)
        room = HEAD - len(self.head)
        self.head += data[:room]
        self.tail += data[room:] if room > 0 else data
        if len(self.tail) > 2 * TAIL:
            del self.tail[:-TAIL]

    @property
    def text(self) -> str:
        """What was kept, as printable text: escape sequences and control characters are shown, not obeyed."""
        dropped = self.total - len(self.head) - len(self.tail)
        gap = f"\n[... {dropped} bytes not kept ...]\n" if dropped else ""
        return escape(bytes(self.head)) + gap + escape(bytes(self.tail))

    def end(self, lines: int = 30) -> str:
        """The last lines, each marked as the guest's own words."""
        last = escape(bytes(self.head[-END:] + self.tail[-END:])[-END:]).rstrip().splitlines()[-lines:]
        shown = (line if len(line) <= WIDTH else f"{line[:WIDTH]}..." for line in last)
        return "\n".join(f"guest| {line}" for line in shown) or "guest| (it printed nothing)"


def escape(data: bytes) -> str:
    """A guest's bytes as text that cannot steer a terminal, forge a report line or hide: only printable characters."""
    text = data.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    return "".join(c if c == "\n" or c == "\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


@dataclass(frozen=True)
class Response:
    """An HTTP answer of a guest."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Guest:
    """A running image. `with guest:` stops it at the end, whatever happened."""

    arch: str
    target: str
    run_argv: Callable[..., Finished] = field(repr=False)  # (argv, *, input, env, timeout)
    connect: Callable[[int], Any] = field(repr=False)  # guest port -> a connected socket.socket
    stop: Callable[[], None] = field(repr=False)  # a clean stop, then a hard one; twice is once
    console: Console = field(repr=False)
    facts: dict[str, Any]  # what was measured: "boot_seconds", "stages", "services", "accelerator", ...
    is_alive: Callable[[], bool] = field(repr=False, default=lambda: True)

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,  # seconds of wall clock until the guest is asked to kill it
    ) -> Finished:
        """Run a command in the guest and wait for it; a string is split as a shell would split words, no shell runs."""
        if isinstance(argv, str):
            import shlex

            argv = shlex.split(argv)
        return self.run_argv(tuple(argv), input=input, env=dict(env or {}), timeout=timeout)

    @property
    def http(self) -> "Http":
        """Ask the guest's web server: `guest.http.get("/").status`."""
        return Http(self.connect)

    def tcp(self, port: int) -> Any:
        """A connected socket to a port of the guest; raises GuestProblem when nobody listens there."""
        return self.connect(port)

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Http:
    """A guest's web server, reached through `connect`."""

    connect: Callable[[int], Any]

    def get(self, path: str, *, port: int = 80, headers: Mapping[str, str] | None = None) -> Response:
        """GET a path; a body over 16 MiB is a GuestProblem."""
        return self.request("GET", path, port=port, headers=headers)

    def request(
        self,
        method: str,
        path: str,
        *,
        port: int = 80,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout: float = 30.0,  # seconds of wall clock for the whole answer
    ) -> Response:
        """One HTTP/1.1 request on a connection of its own; raises GuestProblem when no whole answer comes in time."""
        from http.client import HTTPConnection, HTTPException

        what = f"{method} {path} on port {port}"
        connection = HTTPConnection("guest", port, timeout=timeout)
        connection.sock = self.connect(port)
        try:
            with _cut_off(connection.sock, timeout, f"{what}: no whole answer within {timeout:g} s"):
                connection.request(method, path, body=body or None, headers={"Connection": "close", **(headers or {})})
                with connection.getresponse() as answer:
                    fields = {name.lower(): value for name, value in answer.getheaders()}
                    return Response(answer.status, fields, _whole_body(answer))
        except (HTTPException, OSError) as error:
            raise GuestProblem(f"{what}: {escape(f'{type(error).__name__} {error}'.encode())[:WIDTH]}") from error
        finally:
            connection.close()


def _whole_body(answer: Any) -> bytes:
    """The body, bounded; http.client's read(n) says nothing when the connection ends before the announced length."""
    body: bytes = answer.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise OSError(f"the body has more than {MAX_BODY} bytes")
    if answer.length:
        raise OSError(f"the body ends {answer.length} bytes early")
    return body


@contextmanager
def _cut_off(connection: Any, seconds: float, message: str) -> Iterator[None]:
    """Shut a connection down after so many seconds: a socket's own time-out is for each byte, and bytes can trickle."""
    from socket import SHUT_RDWR
    from threading import Timer

    late = []

    def cut() -> None:
        late.append(True)
        with suppress(OSError):
            connection.shutdown(SHUT_RDWR)

    timer = Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if late:
            raise GuestProblem(message) from error
        raise
    finally:
        timer.cancel()
    if late:
        raise GuestProblem(message)


def _say_nothing(line: str) -> None:
    _ = line


@dataclass(frozen=True)
class Rig:
    """How machines are to be started: the options that every target reads."""

    tools: str = "auto"  # "auto", "host" or "tree": where QEMU and firmware come from
    memory: int = 256  # MiB
    accelerator: str = "auto"  # "auto", "kvm" or "tcg"
    ready_timeout: float = 120.0  # seconds of wall clock until the guest must be ready
    say: Callable[[str], None] = field(default=_say_nothing, repr=False)  # a progress line
    channel: bool = True  # add the agent's initrd at boot; without it the artifact boots untouched, console only
    cmdline: str = ""  # appended to the kernel's command line of this boot


@dataclass(frozen=True)
class Target:
    """A kind of machine, as a value of functions."""

    start: Callable[..., Guest]  # (opened artifact, *, rig: Rig, store: Store) -> Guest, booted and ready
    arches: tuple[str, ...]
    kinds: tuple[str, ...]  # the kinds of format it can start: "kernel", "disk", "root"
    boots: bool  # whether a kernel and the services run; False where commands run in the tree alone
    modules: tuple[str, ...] = ()  # kernel modules that an image needs to live on it
    serial: str = ""  # the kernel's name of the console
    interact: Callable[..., int] | None = None  # (opened, *, rig, store) -> exit status: the console on this terminal
