"""Call: one command in the guest, seen from the host; a pure function of the frames of its stream (see channel.py)."""

import struct
from zlib import crc32

from imagekit.channel import (
    MAX_OUTPUT,
    MAX_PIECE,
    Bulk,
    Error,
    Exit,
    Frame,
    Kind,
    encode,
    free,
    parse_bulk,
    parse_error,
    parse_exit,
    unpack,
)
from imagekit.errors import Problem

AHEAD = MAX_PIECE // 2  # bytes of stdin: with the request they fit into the tty's buffer


class Call:
    """One command in the guest, seen from the host: takes frames, says what to send next, keeps what came."""

    def __init__(self, stream: int, packed: bytes, stdin: bytes = b"", *, nonce: str, is_open: bool = False) -> None:
        self.exit: Exit | None = None
        self.error: Error | None = None
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.is_overflown = False  # it printed more than MAX_OUTPUT and was told to die
        self._stream = stream
        self._nonce = nonce
        self._uploads = [(Kind.EXEC, packed), (Kind.STDIN, stdin)]  # the one that is under way comes first
        self._is_open = is_open  # more stdin may come
        self._taken = 0  # bytes of the first that were acknowledged
        self.bulk: Bulk | None = None  # what is to be copied, and then given to `copied`
        self._is_ahead = False  # stdin went along with the request
        self._answer = b""  # to the last BULK

    @property
    def done(self) -> bool:
        """Whether it ended, by `exit` or by `error`."""
        return self.exit is not None or self.error is not None

    def start(self) -> bytes:
        """The first bytes to send: a short stdin goes along with a short request, which saves a round trip."""
        (_, packed), (kind, stdin) = self._uploads
        first = self.again()
        if len(packed) <= MAX_PIECE and len(stdin) <= AHEAD and not self._is_open:
            self._is_ahead = True
            first += encode(kind, struct.pack("<QB", 0, True) + stdin, nonce=self._nonce, stream=self._stream)
        return first

    def again(self) -> bytes:
        """The piece that was not acknowledged yet; sending it twice does no harm."""
        if self.done or not self._uploads:
            return b"" if self.done else self._answer
        kind, data = self._uploads[0]
        end = self._taken + MAX_PIECE
        is_more = kind is Kind.STDIN and self._is_open
        if is_more and self._taken >= len(data):
            return self._answer  # nothing to say for now
        piece = struct.pack("<QB", self._taken, end >= len(data) and not is_more) + data[self._taken : end]
        return self._answer + encode(kind, piece, nonce=self._nonce, stream=self._stream)

    def add(self, data: bytes, *, is_last: bool = False) -> bytes:
        """More stdin, for a call that was begun open; returns what to send now."""
        if self.done or not self._is_open:
            return b""
        kind, stdin = self._uploads[-1]
        is_idle = len(self._uploads) == 1 and self._taken >= len(stdin)
        self._uploads[-1] = (kind, stdin + data)
        self._is_open = not is_last
        return self.again() if is_idle else b""

    def take(self) -> tuple[bytes, bytes]:
        """What it printed since this was asked last; that is not kept any more, and makes room."""
        taken = bytes(self.stdout), bytes(self.stderr)
        self.stdout.clear()
        self.stderr.clear()
        return taken

    def copied(self, data: bytes | None) -> bytes:
        """Take the bytes that `bulk` told of, None where they cannot be copied, and return what to send now."""
        bulk, self.bulk = self.bulk, None
        if bulk is None:
            return b""
        is_right = data is not None and len(data) == bulk.length and crc32(data) == bulk.checksum
        self._answer = free(bulk.number, is_right, nonce=self._nonce, stream=self._stream)
        if not is_right or data is None or self.done:
            return self._answer
        return self._keep(self.stdout if bulk.kind is Kind.STDOUT else self.stderr, data) + self._answer

    def kill(self) -> bytes:
        """The bytes that end the command; its EXIT follows."""
        return b"" if self.done else encode(Kind.KILL, nonce=self._nonce, stream=self._stream)

    def feed(self, frame: Frame) -> bytes:
        """Take a frame of this stream and return what to send now; raises Problem for one that makes no sense."""
        if self.done:
            return b""
        match frame.kind:
            case Kind.STDOUT:
                return self._keep(self.stdout, frame.payload)
            case Kind.STDERR:
                return self._keep(self.stderr, frame.payload)
            case Kind.BULK:
                if self.bulk is not None:
                    raise Problem("the guest sent a BULK before the last one was answered")
                self.bulk = parse_bulk(frame)
            case Kind.ACK:
                return self._acknowledged(frame)
            case Kind.EXIT:
                self.exit = parse_exit(frame)
            case Kind.ERROR:
                self.error = parse_error(frame)
        return b""

    def _acknowledged(self, frame: Frame) -> bytes:
        kind, taken, ended = unpack("<BQB", frame)
        if not self._uploads or kind != self._uploads[0][0]:
            return b""  # a repeated ACK of what is over
        size = len(self._uploads[0][1])
        sent = min(self._taken + MAX_PIECE, size)
        if taken > sent or (ended and taken < size):
            raise Problem(f"the guest acknowledged {taken} bytes of a {Kind(kind).name}, {sent} of {size} were sent")
        if ended:
            del self._uploads[0]
        elif taken <= self._taken:
            return b""  # a repeated ACK: the piece under way is still to come
        self._taken = 0 if ended else taken
        if self._is_ahead:
            self._is_ahead = False
            return b""  # that is under way
        return self.again()

    def _keep(self, kept: bytearray, more: bytes) -> bytes:
        room = MAX_OUTPUT - len(kept)
        kept += more[:room]
        if len(more) <= room or self.is_overflown:
            return b""
        self.is_overflown = True
        return self.kill()
