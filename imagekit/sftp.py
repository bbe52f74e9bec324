"""A file on another machine by SFTP, read by ranges, over the system's ssh.

`sftp://USER@HOST:PORT/PATH` and scp://, `/~/PATH` from the home: version 3 of the protocol
(draft-ietf-secsh-filexfer-02), which OpenSSH and everybody else speaks; it needs no shell over there. It is the user's
own ssh: ~/.ssh/config, known_hosts and the agent count, and it asks for nothing. The other side is believed nothing.
"""

import os
import select
import struct
from collections import deque
from collections.abc import Generator, Iterator
from time import monotonic
from typing import IO, TYPE_CHECKING, NoReturn
from urllib.parse import SplitResult, unquote, urlsplit

from imagekit import host
from imagekit.errors import Problem, RigProblem
from imagekit.ranged import Again
from imagekit.wire import Patience

if TYPE_CHECKING:
    from subprocess import Popen

OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ForwardAgent=no", "-o", "LogLevel=ERROR")
HINT = "try `sftp {host}` first: its host key must be known, and a key or an agent must let you in"
WORDS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
INIT, VERSION, OPEN, READ, FSTAT, STATUS, HANDLE, DATA, ATTRS = 1, 2, 3, 5, 8, 101, 102, 103, 105
END_OF_FILE, NO_SUCH_FILE = 1, 2  # codes of STATUS
READING, WITH_SIZE = 1, 1  # flags of OPEN and ATTRS
PIECE = 32 << 10  # bytes that every server gives at once
AHEAD = 64  # requests under way
MAX_PACKET = 256 << 10


def _is_readable(handle: int, seconds: float) -> bool:
    """Whether there is something to read, or its end, within so many seconds; select(2) knows 1024 descriptors only."""
    waiting = select.poll()
    waiting.register(handle, select.POLLIN)
    return bool(waiting.poll(seconds * 1000))


class Sftp:
    """A file behind an sftp or scp address."""

    def __init__(self, url: str, patience: Patience) -> None:
        self._argv, self._path = _place(urlsplit(url))
        self.patience = patience
        self.until = patience.deadline(0)  # the moment by which what is asked for must be here
        self.shown = self._path.rpartition("/")[2]
        self.size = -1  # bytes of the file, once the server said so
        self._number = 0
        self._process: Popen[bytes] | None = None
        self._handle = b""

    def close(self) -> None:
        """End the connection; the next question makes another."""
        if self._process:
            host.end(self._process)
        self._process = None

    def tail(self, count: int) -> bytes:
        """The last bytes of the file, at most so many."""
        self._ready()
        return b"".join(self.pieces(max(0, self.size - count), self.size))

    def whole(self, most: int) -> Iterator[bytes]:
        """All of the file, which may have so many bytes."""
        self._ready()
        if self.size > most:
            raise RigProblem(f"{self.shown} has {self.size} bytes, where at most {most} are expected")
        return self.pieces(0, self.size)

    def pieces(self, start: int, end: int) -> Generator[bytes, None, None]:
        """The bytes from `start` up to `end`, many requests under way at once; raises Again when they end before."""
        try:
            self._ready()
            yield from self._in_order(start, end)
        except BaseException:
            self.close()  # what is under way would be taken for the answers to other requests
            raise

    def _in_order(self, start: int, end: int) -> Iterator[bytes]:
        under_way: deque[tuple[int, int, int]] = deque()  # number, offset, bytes
        early: dict[int, bytes] = {}
        at = start
        while at < end or under_way:
            while at < end and len(under_way) < AHEAD:
                under_way.append(self._request(at, min(PIECE, end - at)))
                at += PIECE
            number, offset, size = under_way.popleft()
            while number not in early:
                said, data = self._answer(DATA)
                if said != number and all(said != other for other, _, _ in under_way):
                    raise RigProblem(f"{self.shown}: the server answers what was not asked")
                early[said] = data
            (length,) = struct.unpack_from(">I", early[number])
            piece = early.pop(number)[4:]
            if not 0 < length == len(piece) <= size:
                raise RigProblem(f"{self.shown}: the server sends another part than was asked for")
            if length < size:
                under_way.appendleft(self._request(offset + length, size - length))
            yield piece

    def _request(self, offset: int, size: int) -> tuple[int, int, int]:
        return self._send(READ, _string(self._handle) + struct.pack(">QI", offset, size)), offset, size

    def _ready(self) -> None:
        """Open the file, where it is not open yet; raises RigProblem when it is another than before."""
        if self._process:
            return
        from subprocess import PIPE

        agent = {name: os.environ[name] for name in ("SSH_AUTH_SOCK",) if name in os.environ}
        self._process = host.launch(self._argv, env=agent, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        try:
            self._write(struct.pack(">IBI", 5, INIT, 3))
            kind, said = self._packet()
            if kind != VERSION or len(said) < 4 or struct.unpack_from(">I", said)[0] < 3:
                raise RigProblem(f"{self.shown}: the server speaks no SFTP")
            self._handle = self._ask(OPEN, _string(self._path.encode()) + struct.pack(">II", READING, 0), HANDLE)[4:]
            flags, size = struct.unpack_from(">IQ", self._ask(FSTAT, _string(self._handle), ATTRS) + bytes(8))
            if not flags & WITH_SIZE or self.size not in (-1, size):
                raise RigProblem(f"{self.shown}: the server does not tell its size, or now another one")
            self.size = size
        except BaseException:
            self.close()
            raise

    def _ask(self, kind: int, body: bytes, wanted: int) -> bytes:
        number = self._send(kind, body)
        said, data = self._answer(wanted)
        if said != number:
            raise RigProblem(f"{self.shown}: the server answers what was not asked")
        return data

    def _send(self, kind: int, body: bytes) -> int:
        self._number += 1
        self._write(struct.pack(">IBI", 5 + len(body), kind, self._number) + body)
        return self._number

    def _answer(self, wanted: int) -> tuple[int, bytes]:
        kind, said = self._packet()
        if len(said) < 8 or kind not in (wanted, STATUS):
            raise RigProblem(f"{self.shown}: the server speaks another SFTP")
        number, code = struct.unpack_from(">II", said)
        if kind == STATUS:
            if code == END_OF_FILE:
                raise Again("the file ends before it should")
            what = "is not there" if code == NO_SUCH_FILE else f"cannot be read (status {code})"
            raise RigProblem(f"{self._argv[-2]}: {self._path} {what}", "is the path right?")
        return number, said[4:]

    def _packet(self) -> tuple[int, bytes]:
        (length,) = struct.unpack(">I", self._read(4))
        if not 1 <= length <= MAX_PACKET:
            raise RigProblem(f"{self.shown}: the server speaks no SFTP", HINT.format(host=self._argv[-2]))
        packet = self._read(length)
        return packet[0], packet[1:]

    def _read(self, size: int) -> bytes:
        stream = self._stream("stdout")
        data = bytearray()
        while len(data) < size:
            left = min(self.patience.stall, self.until - monotonic())
            if left <= 0 or not _is_readable(stream.fileno(), left):
                self.close()
                raise Again("the server is too slow" if left < self.patience.stall else "the server was silent")
            piece = os.read(stream.fileno(), size - len(data))
            if not piece:
                self._fail()
            data += piece
        return bytes(data)

    def _write(self, data: bytes) -> None:
        try:
            stream = self._stream("stdin")
            stream.write(data)
            stream.flush()
        except (BrokenPipeError, ValueError):
            self._fail()

    def _fail(self) -> NoReturn:
        """The connection is over: say what ssh said of it."""
        if self._process:
            host.kill(self._process)
        said = host.printable(self._stream("stderr").read(500)).strip()
        self.close()
        if said:
            raise RigProblem(f"{self.shown}: ssh says: {said}", HINT.format(host=self._argv[-2]))
        raise Again("the connection ended")

    def _stream(self, name: str) -> IO[bytes]:
        stream: IO[bytes] = getattr(self._process, name)
        return stream


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _place(url: SplitResult) -> tuple[list[str], str]:
    """The argument list of ssh, and the path over there."""
    hint = f"{url.scheme}://USER@HOST/PATH"
    try:
        port = url.port
    except ValueError:
        raise Problem(f"the port of the {url.scheme} address is no number", hint) from None
    path = unquote(url.path)
    names = [name for name in (url.username, url.hostname) if name is not None]
    if not url.hostname or not path.strip("/~") or url.query or url.fragment or not path.isprintable():
        raise Problem(f"addresses of images by {url.scheme} look like {hint}")
    if url.password is not None:
        raise Problem(f"an {url.scheme} address holds no password", "let a key or an agent let you in")
    if not all(name and set(name) <= WORDS and name[0] not in "-." for name in names):
        raise Problem(f"{ascii('@'.join(names))[:80]} is no user and host", hint)
    to = ["-p", str(port)] if port else []
    return ["ssh", *OPTIONS, *to, "-s", "--", "@".join(names), "sftp"], path.removeprefix("/~/")
