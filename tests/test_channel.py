"""The channel's frames: what comes through a line that loses, repeats and invents bytes, and what does not."""

import random
import struct
from zlib import crc32

import pytest

from imagekit import channel
from imagekit.call import Call
from imagekit.channel import (
    ENVIRONMENT,
    MAGIC,
    MAX_OUTPUT,
    MAX_PAYLOAD,
    MAX_PIECE,
    Decoder,
    Error,
    Exit,
    Frame,
    Kind,
    arguments,
    encode,
    new_nonce,
    parse_error,
    parse_exit,
    parse_hello,
    parse_request,
    request,
    text,
)
from imagekit.errors import Problem

NONCE = "00112233445566778899aabbccddeeff"
EVENT = encode(Kind.EVENT, b"0.5 ready", nonce=NONCE)
FORGED = encode(Kind.EVENT, b"0.1 ready", nonce="another")


def changed(frame: bytes, at: int, to: int) -> bytes:
    return frame[:at] + bytes([to]) + frame[at + 1 :]


LINES = {
    "nothing": (b"", [], 0),
    "one frame": (EVENT, [b"0.5 ready"], 0),
    "two frames": (EVENT + EVENT, [b"0.5 ready"] * 2, 0),
    "console text before": (b"[    0.1] Linux\r\n" + EVENT, [b"0.5 ready"], 17),
    "garbage between": (EVENT + b"\xff\x00IKIK\x01" + EVENT, [b"0.5 ready"] * 2, 7),
    "half a magic before": (b"IK\x01" + EVENT, [b"0.5 ready"], 3),
    "a magic before": (MAGIC + EVENT, [b"0.5 ready"], 4),
    "cut frame before": (EVENT[:-3] + EVENT, [b"0.5 ready"], len(EVENT) - 3),
    "cut head before": (EVENT[:11] + EVENT, [b"0.5 ready"], 11),
    "wrong checksum": (changed(EVENT, 12, EVENT[12] ^ 1) + EVENT, [b"0.5 ready"], len(EVENT)),
    "payload changed": (EVENT[:-1] + b"\0" + EVENT, [b"0.5 ready"], len(EVENT)),
    "kind changed": (changed(EVENT, 4, Kind.STDOUT) + EVENT, [b"0.5 ready"], len(EVENT)),
    "unknown kind": (changed(EVENT, 4, 99) + EVENT, [b"0.5 ready"], len(EVENT)),
    "stream changed": (changed(EVENT, 6, 9) + EVENT, [b"0.5 ready"], len(EVENT)),
    "length too long": (changed(EVENT, 10, 1) + EVENT, [b"0.5 ready"], len(EVENT)),
    "length of 4 GiB": (EVENT[:8] + b"\xff" * 4 + EVENT[12:] + EVENT, [b"0.5 ready"], len(EVENT)),
    "without the nonce": (FORGED + EVENT, [b"0.5 ready"], len(FORGED)),
    "a frame inside a forged one": (FORGED[:16] + EVENT + EVENT, [b"0.5 ready"] * 2, 16),
    "an empty payload": (encode(Kind.EVENT, nonce=NONCE), [b""], 0),
    "the largest payload": (encode(Kind.EVENT, b"x" * MAX_PAYLOAD, nonce=NONCE), [b"x" * MAX_PAYLOAD], 0),
    "a magic as payload": (encode(Kind.EVENT, MAGIC, nonce=NONCE) + EVENT, [MAGIC, b"0.5 ready"], 0),
}


@pytest.mark.parametrize("step", [1, 3, 16, 1 << 20])
@pytest.mark.parametrize("line", LINES)
def test_decoder_finds_every_frame_whatever_the_pieces(line: str, step: int) -> None:
    received, payloads, skipped = LINES[line]
    decoder = Decoder(NONCE)
    found = [f.payload for at in range(0, len(received), step) for f in decoder.feed(received[at : at + step])]
    assert (found, decoder.skipped) == (payloads, skipped)


def test_decoder_keeps_what_is_not_complete() -> None:
    decoder = Decoder(NONCE)
    assert decoder.feed(EVENT[:-1]) == []
    assert decoder.feed(EVENT[-1:]) == [Frame(Kind.EVENT, 0, b"0.5 ready")]


def test_decoder_survives_noise_and_still_hears() -> None:
    noise = random.Random(1)
    alphabet = [*MAGIC, *range(0, 256, 17), *EVENT[:16]]
    for _ in range(200):
        decoder = Decoder(NONCE)
        frames = decoder.feed(bytes(noise.choices(alphabet, k=noise.randrange(500))))
        assert frames == []
        # At most one head can still be waiting for its payload; whatever follows wakes the decoder again.
        assert EVENT[16:] in [f.payload for f in decoder.feed(EVENT * 200)]


def test_decoder_holds_no_more_than_a_frame() -> None:
    decoder = Decoder(NONCE)
    for _ in range(100):
        decoder.feed(MAGIC * 1000)
    assert len(decoder._pending) < MAX_PAYLOAD + 16
    assert decoder.skipped > 390_000


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_travels(kind: Kind) -> None:
    assert Decoder(NONCE).feed(encode(kind, b"\0\xff", nonce=NONCE, stream=65535)) == [Frame(kind, 65535, b"\0\xff")]


def test_too_large_a_payload_is_refused() -> None:
    with pytest.raises(Problem, match="at most 4096 bytes"):
        encode(Kind.STDIN, b"x" * (MAX_PAYLOAD + 1), nonce=NONCE)


def test_nonces_differ_and_the_kernel_gets_them() -> None:
    assert new_nonce() != new_nonce()
    assert arguments("ttyS1", "ab") == "rdinit=/.imagekit/agent imagekit.channel=ttyS1 imagekit.nonce=ab"


GOOD_REQUESTS = [
    (("ls",), {}, "/", 0.0),
    (("/bin/sh", "-c", "echo 'a b'\n", ""), {"A": "1", "B": "x=y", "PATH": "/p"}, "/tmp", 1.5),
    (("é\udcff",), {"N": ""}, "/", 0.25),
]


@pytest.mark.parametrize(("argv", "env", "cwd", "timeout"), GOOD_REQUESTS)
def test_requests_come_out_as_they_went_in(
    argv: tuple[str, ...], env: dict[str, str], cwd: str, timeout: float
) -> None:
    asked = parse_request(request(argv, env=env, cwd=cwd, timeout=timeout))
    assert asked == (argv, {**ENVIRONMENT, **env}, cwd, timeout)


@pytest.mark.parametrize(
    ("argv", "env", "words"),
    [
        ((), {}, "empty command"),
        (("",), {}, "empty command"),
        (("ls", "a\0b"), {}, "contains a NUL"),
        (("ls",), {"A": "\0"}, "contains a NUL"),
        (("ls", "x" * 65536), {}, "more than 65536"),
    ],
)
def test_requests_that_cannot_be_sent(argv: tuple[str, ...], env: dict[str, str], words: str) -> None:
    with pytest.raises(Problem, match=words):
        request(argv, env=env)


@pytest.mark.parametrize("cut", [0, 5, 12, 14, -1])
def test_a_cut_request_is_a_problem(cut: int) -> None:
    with pytest.raises(Problem, match="not a request"):
        parse_request(request(("ls", "-l"))[:cut])


@pytest.mark.parametrize(
    ("parse", "kind", "payload", "result"),
    [
        (parse_exit, Kind.EXIT, struct.pack("<IBQ", 137, 1, 5), Exit(137, True, 5)),
        (parse_exit, Kind.EXIT, struct.pack("<IBQ", 0, 0, 5) + b"later", Exit(0, False, 5)),
        (parse_exit, Kind.EXIT, b"", None),
        (parse_exit, Kind.EXIT, b"\0" * 12, None),
        (parse_error, Kind.ERROR, b"\2\0\0\0no such file", Error(2, "no such file")),
        (parse_error, Kind.ERROR, b"\2\0\0\0\xff", Error(2, "\\xff")),
        (parse_error, Kind.ERROR, b"\2", None),
        (parse_hello, Kind.HELLO, struct.pack("<Q", 9) + b"abc", (9, b"abc")),
        (parse_hello, Kind.HELLO, b"abc", None),
    ],
)
def test_payloads_of_the_guest(parse, kind, payload, result) -> None:  # type: ignore[no-untyped-def]
    frame = Frame(kind, 1, payload)
    if result is not None:
        assert parse(frame) == result
        return
    with pytest.raises(Problem, match=f"the guest sent a {kind.name} frame of {len(payload)} bytes"):
        parse(frame)


def test_text_shows_what_is_no_text() -> None:
    assert text(Frame(Kind.EVENT, 0, b"1.0 ready \xa5")) == "1.0 ready \\xa5"


class FakeAgent:
    """Takes pieces as agent.c does, and ends the command when stdin is closed: prints it, exits with its length."""

    def __init__(self) -> None:
        self.taken = {Kind.EXEC: b"", Kind.STDIN: b""}
        self.decoder = Decoder(NONCE)

    def answers(self, sent: bytes) -> list[Frame]:
        return [answer for frame in self.decoder.feed(sent) for answer in self._answer(frame)]

    def _answer(self, frame: Frame) -> list[Frame]:
        offset, last = struct.unpack_from("<QB", frame.payload)
        piece = frame.payload[9:]
        assert len(piece) <= MAX_PIECE
        if offset == len(self.taken[frame.kind]):
            self.taken[frame.kind] += piece
        ack = struct.pack("<BQB", frame.kind, len(self.taken[frame.kind]), last)
        frames = [Frame(Kind.ACK, frame.stream, ack)]
        if last and frame.kind == Kind.STDIN:
            out = self.taken[Kind.STDIN]
            frames += [Frame(Kind.STDOUT, frame.stream, out[at : at + 4096]) for at in range(0, len(out), 4096)]
            frames += [Frame(Kind.EXIT, frame.stream, struct.pack("<IBQ", len(out) % 256, 0, 1))]
        return frames


@pytest.mark.parametrize("size", [0, 1, MAX_PIECE, MAX_PIECE + 1, 3 * MAX_PIECE, 50_000])
@pytest.mark.parametrize("repeat", [False, True])
def test_a_call_carries_request_and_stdin(size: int, repeat: bool) -> None:
    stdin = bytes(range(256)) * 200
    packed = request(("cat", "x" * 5000))
    agent, call = FakeAgent(), Call(3, packed, stdin[:size], nonce=NONCE)
    pending = agent.answers(call.start() + (call.again() if repeat else b""))
    while pending:
        pending += agent.answers(call.feed(pending.pop(0)) + (call.again() if repeat and not call.done else b""))
        assert len(pending) < 10_000
        repeat = repeat and len(pending) < 100
    assert agent.taken == {Kind.EXEC: packed, Kind.STDIN: stdin[:size]}
    assert call.done
    assert (call.stdout, call.exit) == (stdin[:size], Exit(size % 256, False, 1))


def test_a_call_that_cannot_start() -> None:
    call = Call(1, request(("nosuch",)), nonce=NONCE)
    assert call.feed(Frame(Kind.ERROR, 1, b"\2\0\0\0nosuch: no such file")) == b""
    assert (call.done, call.exit, call.error) == (True, None, Error(2, "nosuch: no such file"))
    assert call.again() == call.kill() == b""


def test_a_call_keeps_streams_apart_and_kills_what_floods() -> None:
    call = Call(1, request(("yes",)), nonce=NONCE)
    assert call.feed(Frame(Kind.STDERR, 1, b"e")) == b""
    call.stdout += b"y" * (MAX_OUTPUT - 1)
    assert call.feed(Frame(Kind.STDOUT, 1, b"y")) == b""
    killed = call.feed(Frame(Kind.STDOUT, 1, b"yy"))
    assert [f.kind for f in Decoder(NONCE).feed(killed)] == [Kind.KILL]
    assert call.feed(Frame(Kind.STDOUT, 1, b"yy")) == b""  # said once
    assert (len(call.stdout), call.stderr, call.is_overflown) == (MAX_OUTPUT, b"e", True)


@pytest.mark.parametrize(
    "ack",
    [
        struct.pack("<BQB", Kind.EXEC, 2**64 - 1, 0),
        struct.pack("<BQB", Kind.EXEC, 1, 1),
        b"",
        bytes([Kind.EXEC]),
    ],
)
def test_an_acknowledgement_of_what_was_never_sent_is_a_problem(ack: bytes) -> None:
    call = Call(1, request(("ls",)), nonce=NONCE)
    with pytest.raises(Problem, match="the guest"):
        call.feed(Frame(Kind.ACK, 1, ack))


def test_frames_that_say_nothing_to_a_call_are_ignored() -> None:
    call = Call(1, request(("ls",)), nonce=NONCE)
    for kind in (Kind.HELLO, Kind.EVENT, Kind.PONG, Kind.KILL, Kind.EXEC):
        assert call.feed(Frame(kind, 1, b"")) == b""
    assert call.feed(Frame(Kind.ACK, 1, struct.pack("<BQB", Kind.STDIN, 0, 1))) == b""
    assert not call.done


def bulk(length: int, checksum: int, *runs: tuple[int, int], kind: int = Kind.STDOUT, number: int = 5) -> Frame:
    told = b"".join(struct.pack("<QI", *run) for run in runs)
    return Frame(Kind.BULK, 1, struct.pack("<BIII", kind, number, length, checksum) + told)


def test_output_in_memory_is_used_when_it_is_what_was_told() -> None:
    call = Call(1, request(("ls",)), nonce=NONCE)
    assert call.feed(bulk(5, crc32(b"hello"), (4096, 3), (9999, 4096))) == b""
    assert call.bulk is not None
    assert call.bulk.runs == ((4096, 3), (9999, 2))
    assert call.copied(b"hello") == channel.free(5, True, nonce=NONCE, stream=1)
    assert bytes(call.stdout) == b"hello"
    assert call.bulk is None
    for wrong in (b"hullo", b"hello!", None):
        call.feed(bulk(5, crc32(b"hello"), (4096, 8)))
        assert call.copied(wrong) == channel.free(5, False, nonce=NONCE, stream=1)
    assert bytes(call.stdout) == b"hello"


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.BULK, 1, b"short"),
        bulk(channel.MAX_BULK + 1, 0, (0, 1 << 31)),
        bulk(8, 0, (0, 7)),
        bulk(8, 0),
        bulk(33, 0, *[(0, 1)] * 33),
        bulk(4, 0, (0, 4), kind=Kind.EXIT),
        Frame(Kind.BULK, 1, bulk(4, 0, (0, 4)).payload + b"x"),
    ],
)
def test_nonsense_about_memory_is_a_lie(frame: Frame) -> None:
    with pytest.raises(Problem, match="the guest sent a BULK"):
        Call(1, request(("ls",)), nonce=NONCE).feed(frame)


def test_two_bulks_at_once_are_a_lie() -> None:
    call = Call(1, request(("ls",)), nonce=NONCE)
    call.feed(bulk(4, 0, (0, 4)))
    with pytest.raises(Problem, match="before the last one was answered"):
        call.feed(bulk(4, 0, (0, 4)))


def test_the_head_of_a_frame_that_never_comes_does_not_hide_those_behind_it_for_ever() -> None:
    decoder, whole = Decoder(NONCE), encode(Kind.EXIT, b"x" * 13, nonce=NONCE, stream=3)
    head = encode(Kind.STDOUT, b"y" * 4000, nonce=NONCE)[:16]
    assert decoder.feed(head + b"noise" + whole[:20]) == []
    assert decoder.look_past() == []  # nothing whole stands there yet
    assert decoder.feed(whole[20:] + b"IK\x01") == []
    assert [(frame.kind, frame.stream) for frame in decoder.look_past()] == [(Kind.EXIT, 3)]
    assert decoder.skipped == len(head) + 5
    assert [frame.kind for frame in decoder.feed(b"\xa5" + whole + whole)] == [Kind.EXIT] * 2


def test_a_frame_that_comes_slowly_is_not_given_up() -> None:
    decoder, frame = Decoder(NONCE), encode(Kind.STDOUT, b"z" * 4000, nonce=NONCE, stream=1)
    for start in range(0, len(frame) - 1, 100):
        assert decoder.feed(frame[start : min(start + 100, len(frame) - 1)]) == []
        assert decoder.look_past() == []
    assert [found.payload for found in decoder.feed(frame[-1:])] == [b"z" * 4000]
