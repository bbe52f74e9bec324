"""A renewal seen from the host: which nonce counts when, whatever is repeated, forged or comes late."""

import struct

import pytest

from imagekit.channel import Decoder, Frame, Kind, encode
from imagekit.targets._qemu_agent import Agent
from imagekit.targets._qemu_progress import Progress

OLD, NEW, OTHER = "01" * 16, "23" * 16, "45" * 16


def hello(nonce: str, *, under: str = "") -> bytes:
    return encode(Kind.HELLO, bytes(8) + nonce.encode(), nonce=under or nonce)


def event(words: str, *, nonce: str) -> bytes:
    return encode(Kind.EVENT, f"1.0 {words}".encode(), nonce=nonce)


class Ends:
    """Our end, what it heard, and what it sent."""

    def __init__(self) -> None:
        self.progress, self.sent = Progress(), bytearray()
        self.agent = Agent(OLD, self.progress, tell=lambda: None)
        self.agent.send = self.sent.extend

    def frames(self, nonce: str) -> list[Frame]:
        return Decoder(nonce).feed(bytes(self.sent))

    @property
    def heard(self) -> list[str]:
        return [words for _, words in self.progress.stages]


def test_a_renewal_is_understood_under_either_nonce() -> None:
    ends = Ends()
    ends.agent.renew(NEW)
    for nonce in (OLD, NEW):
        [frame] = ends.frames(nonce)
        time, length = struct.unpack_from("<QB", frame.payload)
        assert (frame.kind, frame.stream, length) == (Kind.RENEW, 0, len(NEW))
        assert time > 10**18
        assert frame.payload[9 : 9 + length] == NEW.encode()
        assert len(frame.payload) == 9 + length + 64  # of entropy


def test_two_renewals_bring_different_entropy() -> None:
    ends = Ends()
    for _ in range(2):
        ends.agent.renew(NEW)
    assert len({frame.payload[-64:] for frame in ends.frames(NEW)}) == 2


def test_only_the_new_nonce_counts_after_its_hello() -> None:
    ends = Ends()
    ends.agent.take(hello(OLD))
    ends.agent.renew(NEW)
    ends.agent.take(event("early", nonce=OLD))  # on its way before the guest obeyed
    assert not ends.agent.has_renewed(NEW)
    ends.agent.take(hello(NEW))
    assert ends.agent.has_renewed(NEW)
    ends.agent.take(event("modules", nonce=OLD))
    ends.agent.take(event("ready", nonce=NEW))
    assert ends.heard == ["early", "ready"]
    ends.sent.clear()
    with ends.agent.call(b"request"):
        pass
    assert not ends.frames(OLD)
    assert {Kind.EXEC, Kind.KILL} <= {frame.kind for frame in ends.frames(NEW)}


@pytest.mark.parametrize(
    "answer",
    [b"", hello(OLD), hello(NEW, under=OLD), hello(OLD, under=NEW), hello(OTHER), hello(NEW, under=OTHER),
     hello(NEW)[:-1], encode(Kind.HELLO, b"", nonce=NEW), encode(Kind.PONG, bytes(8) + NEW.encode(), nonce=NEW)],
    ids=["nothing", "the old one", "the new one under the old", "the old one under the new", "another",
         "under another", "cut", "empty", "a PONG"],
)  # fmt: skip
def test_what_is_no_answer_to_a_renewal(answer: bytes) -> None:
    ends = Ends()
    ends.agent.renew(NEW)
    ends.agent.take(answer)
    assert not ends.agent.has_renewed(NEW)
    assert ends.agent.nonce == OLD
    ends.agent.take(bytes(5000) + hello(NEW) + hello(NEW))  # what comes after it is heard, and twice is once
    assert ends.agent.has_renewed(NEW)


def test_a_restored_machine_that_heard_no_hello_is_renewed_all_the_same() -> None:
    ends = Ends()
    ends.agent.renew(NEW)
    ends.agent.renew(NEW)
    ends.agent.take(hello(NEW) + event("ready", nonce=NEW))
    assert ends.agent.hello is not None
    assert ends.heard == ["ready"]
