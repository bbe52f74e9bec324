"""Faults of the fake QEMU: a monitor, an agent and a console that no honest machine has."""

import time
from collections.abc import Callable
from contextlib import suppress
from itertools import repeat
from threading import Thread
from typing import TYPE_CHECKING

from imagekit.channel import Kind, encode

if TYPE_CHECKING:
    from fake_qemu import Fake


def greets_never(_: "Fake") -> None:
    time.sleep(600)


def greets_in_garbage(fake: "Fake") -> None:
    fake.monitor.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


def greets_half(fake: "Fake") -> None:
    fake.monitor.sendall(b'{"QMP": {"version": {"qemu": {"maj')
    fake.monitor.close()


def greets_at_length(fake: "Fake") -> None:
    with suppress(OSError):  # they hang up on us
        fake.monitor.sendall(b'{"QMP": {"version": {}, "capabilities": ["' + b"x" * (20 << 20) + b'"]}}\n')


# --- the monitor's answers, once the guest is ready


def _answers(fake: "Fake", reply: Callable[["Fake", dict], object]) -> None:
    """To all but `quit`, which is obeyed."""
    fake.reply = lambda fake, asked: reply(fake, asked) if asked["execute"] != "quit" else fake.answer(asked)
    fake.boot()


def hangs_up(fake: "Fake") -> None:
    def reply(fake: "Fake", _: dict) -> None:
        fake.monitor.sendall(b'{"return": "no end of th')
        fake.monitor.shutdown(2)

    _answers(fake, reply)


def answers_in_garbage(fake: "Fake") -> None:
    _answers(fake, lambda fake, _: fake.monitor.sendall(b'{"return": }{ not json \x1b[31m\n'))


def answers_at_length(fake: "Fake") -> None:
    def reply(fake: "Fake", _: dict) -> None:
        fake.monitor.sendall(b'{"return": "')
        for _ in repeat(0):
            fake.monitor.sendall(b"x" * (1 << 20))

    _answers(fake, reply)


def refuses(fake: "Fake") -> None:
    error = {"class": "GenericError", "desc": "not \x1b[31mtoday"}
    _answers(fake, lambda fake, asked: fake.qmp({"error": error, "id": asked["id"]}))


def answers_others_first(fake: "Fake") -> None:
    def reply(fake: "Fake", asked: dict) -> None:
        fake.qmp({"return": "not yours", "id": "somebody"})
        fake.qmp({"return": "nobody's"})
        fake.answer(asked)

    _answers(fake, reply)


def answers_nothing(fake: "Fake") -> None:
    _answers(fake, lambda *_: None)


def answers_nothing_and_works(fake: "Fake") -> None:
    def spin() -> None:
        while True:  # a loop of Python's own lets other threads run
            pass

    _answers(fake, lambda *_: Thread(target=spin, daemon=True).start())


def tells_for_ever(fake: "Fake") -> None:
    """As many events as it gets rid of, each with much to say."""
    event = {"event": "NIC_RX_FILTER_CHANGED", "data": {"name": "x" * 1000}, "timestamp": {"seconds": 1}}
    Thread(target=lambda: [fake.qmp(event) for _ in range(20_000)], daemon=True).start()
    fake.boot()


def is_paused(fake: "Fake") -> None:
    fake.hello()
    fake.tell("early")
    fake.status = "io-error"


# --- the guest's words


def clock_jumps(fake: "Fake") -> None:
    fake.hello()
    for seconds, words in (("5.5", "early"), ("2.25", "network up"), ("99999999.0", "service start web")):
        fake.send(Kind.EVENT, f"{seconds} {words}".encode())
    for seconds in ("nan", "inf", "-1.0", "1e9", "9999999999.0", "1.", "", "\uff11.5", "0x1.8"):
        fake.send(Kind.EVENT, f"{seconds} shutdown".encode())
    fake.tell("service ready web", "ready", first=3.0)


def other_agent_later(fake: "Fake") -> None:
    fake.boot()
    fake.hello("ab" * 16)
    fake.send(Kind.HELLO, bytes(8) + b"ab" * 16)
    fake.send(Kind.HELLO, b"\1")
    fake.send(Kind.PONG, b"")


def acknowledges_too_much(fake: "Fake") -> None:
    fake.acks_ahead = 1_000_000
    fake.boot()


def tells_events_for_ever(fake: "Fake") -> None:
    fake.boot()
    fake.channel.sendall(encode(Kind.EVENT, b"9.5 " + b"x" * 4000, nonce=fake.nonce) * 5000)


def prints(fake: "Fake") -> None:
    """The console is what the test asked for by its command line."""
    kinds = {"lines": b"the same line for ever\r\n" * 40_000, "endless": b"x" * (1 << 20)}
    kinds["events"] = b"[    1.000000] imagekit: x\n" * 30_000 + b"[    1.0] imagekit: " * 1000 + b"\rY\n"
    kinds["escapes"] = b"\x1b[31m\x1b]0;title\x07\x1bc\x9b1m\r\0" * 40_000
    kind, _, size = fake.option("-append").rpartition(" print=")[2].partition(":")
    fake.say("[    0.000000] Linux version 9\r\n")
    for _ in range(int(size)):
        fake.console.sendall(kinds[kind][: 1 << 20])
    fake.say("\n")
    fake.boot()


# --- commands


def _twice(fake: "Fake", stream: int, _: object) -> None:
    fake.exit(3, stream)
    fake.exit(0, stream)
    fake.send(Kind.ERROR, (2).to_bytes(4, "little") + b"too late", stream)


def _after(fake: "Fake", stream: int, _: object) -> None:
    fake.send(Kind.STDOUT, b"before", stream)
    fake.exit(0, stream)
    fake.send(Kind.STDOUT, b"after", stream)


def _strangers(fake: "Fake", stream: int, _: object) -> None:
    """Every kind of frame, on streams that nobody opened and on ours, where only the host may send some."""
    for kind in Kind:
        for number in (0, stream + 1, 2**16 - 1, stream):
            if number != stream or kind in (Kind.EXEC, Kind.STDIN, Kind.KILL, Kind.PING, Kind.PONG):
                fake.send(kind, b"\xff" * 20, number)
    fake.send(Kind.STDOUT, b"ours", stream)
    fake.exit(0, stream)


def _drip(fake: "Fake", stream: int, _: object) -> None:
    """A frame in single bytes, and its repetition."""
    frame = encode(Kind.STDOUT, b"drop by drop", nonce=fake.nonce, stream=stream)
    for byte in frame:
        fake.channel.sendall(bytes([byte]))
        time.sleep(0.002)
    fake.exit(0, stream)
    fake.channel.sendall(frame * 100)


def _babble(fake: "Fake", stream: int, _: object) -> None:
    """Bytes that are no frames, as long as nobody kills it."""
    noise = (b"IK\x01\xa5\x06\0\1\0\xff\x0f\0\0" + bytes(500)) * 100

    def talk() -> None:
        while stream not in fake.killed:
            fake.channel.sendall(noise)

    Thread(target=talk, daemon=True).start()


def _works_a_while(fake: "Fake", stream: int, _: object) -> None:
    """Says something now and then, and ends by itself."""

    def talk() -> None:
        for _ in range(5):
            fake.send(Kind.STDOUT, b"on my way\n", stream)
            time.sleep(0.1)
        fake.exit(0, stream)

    Thread(target=talk, daemon=True).start()


COMMANDS: dict[str, Callable] = {
    "twice": _twice,
    "after": _after,
    "strangers": _strangers,
    "drip": _drip,
    "babble": _babble,
    "works a while": _works_a_while,
}
