r"""The frames that host and guest agent exchange over a second serial line, as pure functions; no I/O happens here.

Wire format, the same in both directions (inside/agent.c is the other end; all numbers are little-endian):

    offset size
         0    4  magic "IK\x01\xa5": the last byte is neither ASCII nor UTF-8, so that no console text contains it
         4    1  kind, see Kind
         5    1  zero
         6    2  stream: the number that the host gave to a command; 0 where there is none
         8    4  length of the payload, at most 4096: a frame fits into a tty's read buffer (N_TTY_BUF_SIZE)
        12    4  CRC-32 (zlib's) over the nonce as text, bytes 4 to 11 and the payload
        16       payload

The nonce is made per boot and given to the guest on the kernel's command line. It begins every checksum, so that a
frame from an earlier boot, or printed by something that does not know it, is skipped as garbage is. (Root in the guest
can read it: whatever arrives is still hostile input.)

    kind      from   payload
    HELLO     guest  u64 guest's CLOCK_MONOTONIC in ns, nonce as text; the first frame, once
    EVENT     guest  one line of /run/imagekit/events without its line end, cut at 4096 bytes
    EXEC      host   u64 offset, u8 1 when it is the last, piece of the request; the last one starts the command
    STDIN     host   u64 offset, u8 1 when it is the last, piece of stdin; the last one closes it
    ACK       guest  u8 kind (EXEC or STDIN), u64 bytes taken so far, u8 1 when the last piece was taken
    STDOUT    guest  bytes
    STDERR    guest  bytes
    EXIT      guest  u32 code (128 + signal where a signal ended it), u8 1 when it was killed on its time-out,
                     u64 ns it ran; the stream is free again
    ERROR     guest  u32 errno, text: the command was not started; the stream is free again
    KILL      host   nothing; the command's process group gets SIGKILL, EXIT follows
    PING      host   up to 64 bytes
    PONG      guest  u64 guest's CLOCK_MONOTONIC in ns, the bytes of the PING
    RENEW     host   u64 ns since 1970, u8 length of a nonce, that nonce, entropy. The guest sets its clock, reseeds its
                     random numbers, ends all commands, forgets which streams ended, and answers HELLO with the new
                     nonce, which is the only one from then on; for machines that were restored from a saved state.
                     Sent again with the nonce that is in force, it ends nothing
    BULK      guest  u8 kind (STDOUT or STDERR), u32 number, u32 length, u32 CRC-32 of the bytes, and where they lie in
                     the guest's memory: u64 physical address, u32 size of each of at most 32 runs. Stands for frames
                     of that kind; nothing more comes of that stream until it is answered
    FREE      host   u32 number, u8 1 when those bytes were copied; else they are sent by frames

    request = u32 time-out in ms (0: none), u32 number of arguments, u32 number of variables,
              then NUL-terminated: working directory, arguments, variables as NAME=VALUE; "PATH" and "HOME" alone
              stand for those that most commands get, since each byte to the guest costs time

A UART has no flow control: EXEC and STDIN pieces are at most 2048 bytes and the next one is sent when the last one was
acknowledged; the guest acknowledges stdin when the command's pipe took it. A piece with another offset than the one
that is due is ignored and the ACK repeated, so sending a piece again is always harmless. Towards the host there is
none either: the host reads all the time. The agent serves 8 streams at a time and refuses more by ERROR; it refuses
the number of one of the last 64 streams that ended too, so that a late repetition never runs a command twice. The
environment is exactly what the request says; the command is looked up in its PATH, in PID 1's root.

How to use it:

    decoder = Decoder(nonce)                 # nonce = new_nonce(); kernel arguments = arguments("ttyS1", nonce)
    for frame in decoder.feed(received):     # whatever the line gave, in any pieces
        match frame.kind:
            case Kind.HELLO: ...             # the agent lives
            case Kind.EVENT: ...             # text(frame)
            case _: send(calls[frame.stream].feed(frame))

    call = Call(7, request(("ls", "/")), b"stdin", nonce=nonce)
    send(call.start())                       # later frames of stream 7 go to call.feed, its answer to the line
    if seconds_without_an_ack > 2: send(call.again())
    call.done, call.exit, call.error, call.stdout, call.stderr
"""

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple
from zlib import crc32

from imagekit.errors import Problem

MAGIC = b"IK\x01\xa5"
MAX_PAYLOAD = 4096  # bytes
MAX_PIECE = 2048  # bytes of a request or of stdin in one frame
MAX_REQUEST = 65536  # bytes
MAX_OUTPUT = 16 << 20  # bytes of stdout, and of stderr, that are kept of a command; beyond that it is killed
MAX_BULK = 1 << 20  # bytes that are left in the guest's memory at a time
MAX_RUNS = 32  # pieces that they lie in
MAX_STREAMS = 8  # commands at a time
AGENT = "/.imagekit/agent"  # where the extra initrd has it
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}

_HEAD = struct.Struct("<4sBBHII")


class Kind(IntEnum):
    """What a frame is; the payloads stand in the module's docstring."""

    HELLO = 1
    EVENT = 2
    EXEC = 3
    STDIN = 4
    ACK = 5
    STDOUT = 6
    STDERR = 7
    EXIT = 8
    ERROR = 9
    KILL = 10
    PING = 11
    PONG = 12
    RENEW = 13
    BULK = 14
    FREE = 15


class Frame(NamedTuple):
    """One frame; its checksum was right."""

    kind: Kind
    stream: int
    payload: bytes


class Hello(NamedTuple):
    """The agent's first word, or its answer to a PING."""

    clock: int  # nanoseconds of the guest's CLOCK_MONOTONIC
    echo: bytes  # HELLO: the nonce; PONG: the bytes of the PING


class Exit(NamedTuple):
    """How a command ended."""

    code: int  # 128 + signal where a signal ended it
    timed_out: bool
    nanoseconds: int  # of the guest's clock


class Bulk(NamedTuple):
    """Output that lies in the guest's memory."""

    kind: Kind  # STDOUT or STDERR
    number: int
    length: int
    checksum: int
    runs: tuple[tuple[int, int], ...]  # physical address and size; together they are the bytes


class Error(NamedTuple):
    """Why a command was not started."""

    errno: int
    message: str


class Asked(NamedTuple):
    """A request, as the agent reads it."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    timeout: float  # seconds; 0 for none


def new_nonce() -> str:
    """A word that nobody can guess, for one boot."""
    from secrets import token_hex

    return token_hex(16)


def arguments(device: str, nonce: str) -> str:
    """The kernel's arguments that start the agent; `device` is the guest's name of the line, such as "ttyS1"."""
    return f"rdinit={AGENT} imagekit.channel={device} imagekit.nonce={nonce}"


def encode(kind: Kind, payload: bytes = b"", *, nonce: str, stream: int = 0) -> bytes:
    """A frame as bytes for the line."""
    if len(payload) > MAX_PAYLOAD:
        raise Problem(f"a frame carries at most {MAX_PAYLOAD} bytes, not {len(payload)}")
    head = _HEAD.pack(MAGIC, kind, 0, stream, len(payload), 0)[4:12]
    return MAGIC + head + struct.pack("<I", _checksum(nonce.encode(), head, payload)) + payload


class Decoder:
    """Finds frames in whatever the line gives; what is none is skipped and counted, never an error."""

    def __init__(self, nonce: str) -> None:
        self.skipped = 0  # bytes that belonged to no frame
        self._nonce = nonce.encode()
        self._pending = bytearray()

    def feed(self, received: bytes) -> list[Frame]:
        """The frames that are complete now. Costs at most MAX_PAYLOAD / 16 checksum bytes for each byte received."""
        self._pending += received
        frames: list[Frame] = []
        position = 0
        while (start := self._pending.find(MAGIC, position)) >= 0:
            self.skipped += start - position
            position = start
            if (taken := self._take(start, frames)) is None:
                break  # not complete
            position += taken
        else:
            whole = len(self._pending) - _magic_begun(self._pending)
            self.skipped += max(whole - position, 0)
            position = max(whole, position)
        del self._pending[:position]
        return frames

    def look_past(self) -> list[Frame]:
        """Give up a frame that never becomes complete, when a whole one stands behind its head; for a quiet line."""
        start = self._pending.find(MAGIC, len(MAGIC))
        while start >= 0:
            skipped, found = self.skipped, list[Frame]()
            self._take(start, found)
            self.skipped = skipped
            if found:
                self.skipped += start
                del self._pending[:start]
                return self.feed(b"")
            start = self._pending.find(MAGIC, start + len(MAGIC))
        return []

    def _take(self, start: int, frames: list[Frame]) -> int | None:
        """How many bytes at `start` are done with, a frame or a magic that is none; None when more bytes are needed."""
        if len(self._pending) - start < _HEAD.size:
            return None
        kind, zero, stream, length, checksum = _HEAD.unpack_from(self._pending, start)[1:]
        end: int = start + _HEAD.size + length
        if zero or length > MAX_PAYLOAD or kind not in _KINDS:
            return self._skip()
        if len(self._pending) < end:
            return None
        payload = bytes(self._pending[start + _HEAD.size : end])
        if _checksum(self._nonce, self._pending[start + 4 : start + 12], payload) != checksum:
            return self._skip()  # only the magic: a frame that was cut is followed by whole ones
        frames.append(Frame(Kind(kind), stream, payload))
        return end - start

    def _skip(self) -> int:
        self.skipped += len(MAGIC)
        return len(MAGIC)


def request(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str = "/", timeout: float = 0.0
) -> bytes:
    """A command as the agent wants it; `env` is added to ENVIRONMENT, a time-out of 0 is none."""
    wanted = {**ENVIRONMENT, **(env or {})}
    variables = [name if ENVIRONMENT.get(name) == value else f"{name}={value}" for name, value in wanted.items()]
    words = [word.encode("utf-8", "surrogateescape") for word in (cwd, *argv, *variables)]
    if not argv or not argv[0]:
        raise Problem("an empty command cannot be run")
    if any(b"\0" in word for word in words):
        raise Problem(f"{argv[0]}: an argument, a variable or the working directory contains a NUL")
    milliseconds = min(max(int(timeout * 1000), 1), 2**32 - 1) if timeout else 0
    packed = struct.pack("<III", milliseconds, len(argv), len(variables)) + b"".join(word + b"\0" for word in words)
    if len(packed) > MAX_REQUEST:
        raise Problem(
            f"{argv[0]}: arguments and environment have {len(packed)} bytes, more than {MAX_REQUEST}",
            "give large input by stdin",
        )
    return packed


def renewal(nonce: str, nanoseconds: int, entropy: bytes) -> bytes:
    """What a RENEW says: the nonce to come, the time (since 1970), and bytes that nobody else knows."""
    return struct.pack("<QB", nanoseconds, len(nonce)) + nonce.encode() + entropy


def parse_request(packed: bytes) -> Asked:
    """The inverse of `request`, for fakes of the agent."""
    try:
        milliseconds, count, variables = struct.unpack_from("<III", packed)
        words = packed[12:].decode("utf-8", "surrogateescape").split("\0")
        cwd, argv, env = words[0], words[1 : 1 + count], words[1 + count : -1]
        if words[-1] or len(argv) != count or len(env) != variables or not count:
            raise ValueError("wrong number of words")
        pairs = dict((f"{word}={ENVIRONMENT[word]}" if word in ENVIRONMENT else word).split("=", 1) for word in env)
    except (struct.error, ValueError, IndexError) as error:
        raise Problem(f"not a request: {error}") from error
    return Asked(tuple(argv), pairs, cwd, milliseconds / 1000)


def parse_hello(frame: Frame) -> Hello:
    """What a HELLO or PONG says; raises Problem when it says nothing."""
    (clock,) = unpack("<Q", frame)
    return Hello(clock, frame.payload[8:])


def parse_exit(frame: Frame) -> Exit:
    """What an EXIT says; raises Problem when it says nothing."""
    code, timed_out, nanoseconds = unpack("<IBQ", frame)
    return Exit(code, bool(timed_out), nanoseconds)


def parse_error(frame: Frame) -> Error:
    """What an ERROR says; raises Problem when it says nothing."""
    (number,) = unpack("<I", frame)
    return Error(number, text(Frame(frame.kind, frame.stream, frame.payload[4:])))


def parse_bulk(frame: Frame) -> Bulk:
    """What a BULK says, its runs cut to its length; raises Problem when it makes no sense."""
    kind, number, length, checksum = unpack("<BIII", frame)
    rest, runs = frame.payload[13:], []
    if kind not in (Kind.STDOUT, Kind.STDERR) or length > MAX_BULK or len(rest) % 12 or len(rest) > 12 * MAX_RUNS:
        raise Problem(f"the guest sent a BULK of {length} bytes, kind {kind}, that makes no sense")
    left = length
    for address, size in struct.iter_unpack("<QI", rest):
        if left and size:
            runs.append((address, min(size, left)))
            left -= runs[-1][1]
    if left:
        raise Problem(f"the guest sent a BULK of {length} bytes and told of {length - left}")
    return Bulk(Kind(kind), number, length, checksum, tuple(runs))


def free(number: int, is_copied: bool, *, nonce: str, stream: int) -> bytes:
    """The answer to a BULK."""
    return encode(Kind.FREE, struct.pack("<IB", number, is_copied), nonce=nonce, stream=stream)


def text(frame: Frame) -> str:
    """A payload as text: the guest's words, so they are shown escaped and obeyed by nobody."""
    return frame.payload.decode("utf-8", "backslashreplace")


_KINDS = frozenset(Kind)


def _checksum(nonce: bytes, head: bytes | bytearray, payload: bytes) -> int:
    return crc32(payload, crc32(head, crc32(nonce)))


def _magic_begun(pending: bytearray) -> int:
    """How many of the last bytes could be the beginning of a magic."""
    return next((n for n in (3, 2, 1) if pending.endswith(MAGIC[:n])), 0)


def unpack(form: str, frame: Frame) -> tuple[int, ...]:
    """The numbers that a payload begins with; raises Problem when it is too short."""
    try:
        return struct.unpack_from(form, frame.payload)
    except struct.error as error:
        raise Problem(f"the guest sent a {frame.kind.name} frame of {len(frame.payload)} bytes: {error}") from error
