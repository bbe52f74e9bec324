"""A private network's steward: addresses, names and echo, judged on bytes; and frames that are none."""

from ipaddress import IPv4Address, IPv4Network
from random import Random

import pytest

from imagekit.lan import dhcp, dns, frame
from imagekit.lan.frame import Frame
from imagekit.lan.steward import Steward

OWN, WEB, CLIENT = frame.mac("52:54:00:10:01:01"), frame.mac("52:54:00:10:01:0a"), frame.mac("52:54:00:10:01:0b")
SERVER, ADDRESS = IPv4Address("10.10.1.1"), IPv4Address("10.10.1.10")
LEASES = dhcp.Leases(IPv4Network("10.10.1.0/24"), SERVER, {WEB: ADDRESS, CLIENT: IPv4Address("10.10.1.11")})
STEWARD = Steward(OWN, LEASES, {"web": {"web": ADDRESS, "client": IPv4Address("10.10.1.11")}, "client": {}})
NOBODY = IPv4Address("0.0.0.0")


def message(kind: int, *, mac: bytes = WEB, current: IPv4Address = NOBODY, **options: bytes) -> bytes:
    """A client's DHCP message, laid out by hand from RFC 2131; options as _50=b"..."."""
    head = bytes([1, 1, 6, 0]) + b"\x12\x34\x56\x78" + b"\0\0\x80\0" + current.packed + bytes(12)
    head += mac.ljust(16, b"\0") + bytes(192) + b"\x63\x82\x53\x63"
    listed = {53: bytes([kind]), **{int(name[1:]): value for name, value in options.items()}}
    return head + b"".join(bytes([code, len(value)]) + value for code, value in listed.items()) + b"\xff"


def told(answer: bytes | None) -> tuple[int, IPv4Address, dict[int, bytes]]:
    """(kind, your address, options) of an answer, read by hand."""
    assert answer is not None
    assert answer[0] == 2
    assert answer[4:8] == b"\x12\x34\x56\x78"
    assert answer[236:240] == b"\x63\x82\x53\x63"
    options, rest = {}, answer[240:]
    while rest[0] != 255:
        options[rest[0]], rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
    return options[53][0], IPv4Address(answer[16:20]), options


def test_an_address_is_offered_and_granted() -> None:
    kind, address, options = told(dhcp.answer(message(1), LEASES))
    assert (kind, address) == (2, ADDRESS)
    assert (options[1], options[6], options[54]) == (b"\xff\xff\xff\0", SERVER.packed, SERVER.packed)
    assert int.from_bytes(options[51], "big") >= 3600
    assert 3 not in options  # no router: the network leads nowhere, and a guest that goes there is told at once
    assert told(dhcp.answer(message(3, _50=ADDRESS.packed, _54=SERVER.packed), LEASES))[:2] == (5, ADDRESS)
    assert told(dhcp.answer(message(3, current=ADDRESS), LEASES))[:2] == (5, ADDRESS)  # renewed


def test_another_s_address_is_refused() -> None:
    kind, address, options = told(dhcp.answer(message(3, _50=b"\x0a\x0a\x01\x0b"), LEASES))
    assert (kind, address) == (6, NOBODY)
    assert 51 not in options


def test_who_has_an_address_may_ask_for_the_rest() -> None:
    kind, address, options = told(dhcp.answer(message(8, current=IPv4Address("10.10.1.77")), LEASES))
    assert (kind, address, options[6]) == (5, NOBODY, SERVER.packed)
    assert 51 not in options


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        message(1)[:239],
        message(1)[:-1],  # no end
        message(1)[:241],
        message(1, mac=b"\x02\0\0\0\0\1"),
        message(3, _50=ADDRESS.packed, _54=b"\x0a\x0a\x01\x02"),  # meant for another server
        message(4, _50=ADDRESS.packed),
        message(7),
        message(99),
        message(1).replace(b"\x63\x82\x53\x63", b"\x63\x82\x53\x64"),
        b"\x02" + message(1)[1:],
        message(1)[:240] + b"\x35\x00\xff",
        message(1)[:240] + b"\x35\xff\x01\xff",
    ],
)
def test_no_answer_to_what_is_no_request(bad: bytes) -> None:
    assert dhcp.answer(bad, LEASES) is None


# --- names

HEAD = b"\xab\xcd\x01\0\0\1\0\0\0\0\0\0"
NAMES = {"web": ADDRESS, "web.inside": ADDRESS}


def query(name: str, kind: int = 1) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return HEAD + labels + b"\0" + kind.to_bytes(2, "big") + b"\0\1"


@pytest.mark.parametrize("name", ["web", "WEB", "web.inside"])
def test_a_name_that_is_known(name: str) -> None:
    answer = dns.answer(query(name), NAMES)
    assert answer == b"\xab\xcd\x85\0\0\1\0\1\0\0\0\0" + query(name)[12:] + (
        b"\xc0\x0c\0\1\0\1\0\0\0\5\0\4" + ADDRESS.packed
    )


@pytest.mark.parametrize(
    ("asked", "code", "answers"),
    [
        (query("web", 28), 0, 0),  # known, but has no IPv6 address
        (query("nobody"), 3, 0),
        (query("web.outside"), 3, 0),
        (HEAD + b"\0\0\1\0\1", 3, 0),  # the root
        (query("web")[:-1], 1, 0),
        (HEAD, 1, 0),
        (HEAD[:5] + b"\2" + query("web")[6:], 1, 0),  # two questions
        (HEAD + b"\xc0\x0c\0\1\0\1", 1, 0),  # a name that points to itself
        (HEAD + b"\x3f" + b"a" * 63 + b"\x3fa", 1, 0),
        (HEAD + b"\1a" * 200 + b"\0\0\1\0\1", 1, 0),  # longer than names are
        (query("web")[:-1] + b"\3", 1, 0),  # of Chaosnet
        (b"\xab\xcd\x28" + query("web")[3:], 4, 0),  # an update
    ],
)
def test_other_answers(asked: bytes, code: int, answers: int) -> None:
    answer = dns.answer(asked, NAMES)
    assert answer is not None
    assert answer[:2] == b"\xab\xcd"
    assert answer[3] & 15 == code
    assert int.from_bytes(answer[6:8], "big") == answers


@pytest.mark.parametrize("asked", [b"", HEAD[:11], b"\xab\xcd\x81" + query("web")[3:]])
def test_no_answer_to_what_is_no_query(asked: bytes) -> None:
    assert dns.answer(asked, NAMES) is None


# --- the steward


def ask(data: bytes, *, port: int, asker: str = "web") -> bytes | None:
    packed = frame.udp((ADDRESS, 4000), (SERVER, port), data)
    answer = STEWARD.answer(Frame(OWN, WEB, frame.IPV4, packed), asker)
    if answer is None:
        return None
    got = frame.parse(answer)
    assert got is not None
    assert (got.target, got.source) == (WEB, OWN)
    carried = frame.packet(got.body)
    assert carried is not None
    assert (carried.source, carried.target) == (SERVER, ADDRESS)
    received = frame.datagram(carried)
    assert received is not None
    assert (received.source_port, received.target_port) == (port, 4000)
    return received.data


def test_names_are_those_that_the_asker_can_reach() -> None:
    known, unknown = ask(query("client"), port=53), ask(query("client"), port=53, asker="client")
    assert known is not None
    assert unknown is not None
    assert (known[3] & 15, unknown[3] & 15) == (0, 3)
    assert ask(query("client"), port=54) is None


def test_dhcp_is_answered_to_everybody_until_there_is_an_address() -> None:
    packed = frame.udp((NOBODY, 68), (frame.EVERYBODY, 67), message(1))
    answer = frame.parse(STEWARD.answer(Frame(frame.BROADCAST, WEB, frame.IPV4, packed), "web") or b"")
    assert answer is not None
    assert answer.target == frame.BROADCAST
    renewed = frame.udp((ADDRESS, 68), (SERVER, 67), message(3, current=ADDRESS))
    answer = frame.parse(STEWARD.answer(Frame(OWN, WEB, frame.IPV4, renewed), "web") or b"")
    assert answer is not None
    assert answer.target == WEB


def test_arp_and_echo() -> None:
    request = b"\0\1\x08\0\6\4\0\1" + WEB + ADDRESS.packed + bytes(6)
    answer = STEWARD.answer(Frame(frame.BROADCAST, WEB, frame.ARP, request + SERVER.packed), "web")
    assert answer == WEB + OWN + b"\x08\x06\0\1\x08\0\6\4\0\2" + OWN + SERVER.packed + WEB + ADDRESS.packed
    assert STEWARD.answer(Frame(frame.BROADCAST, WEB, frame.ARP, request + ADDRESS.packed), "web") is None
    ping = b"\x08\0\xf7\xfc\0\1\0\2"
    assert frame.checksum(ping) == 0
    packed = frame.ip(ADDRESS, SERVER, frame.ICMP, ping)
    pong = STEWARD.answer(Frame(OWN, WEB, frame.IPV4, packed), "web")
    assert pong is not None
    assert pong.endswith(b"\0\0\xff\xfc\0\1\0\2")
    assert STEWARD.answer(Frame(CLIENT, WEB, frame.IPV4, packed), "web") is None  # not for us


def test_the_checksum_is_that_of_the_standard() -> None:
    assert frame.checksum(b"\0\1\xf2\3\xf4\xf5\xf6\xf7") == 0x220D  # RFC 1071, section 3: not of 0xddf2
    assert frame.checksum(b"\1") == 0xFEFF


GOOD = frame.udp((ADDRESS, 4000), (SERVER, 53), b"data")


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        GOOD[:19],
        b"\x65" + GOOD[1:],  # version 6
        b"\x44" + GOOD[1:],  # a header of 16 bytes
        b"\x4f" + GOOD[1:],  # a header longer than its packet
        GOOD[:2] + b"\xff\xff" + GOOD[4:],  # more than is there
        GOOD[:6] + b"\x20" + GOOD[7:],  # a fragment
        GOOD[:10] + b"\0\0" + GOOD[12:],  # damaged
    ],
)
def test_packets_that_are_none(bad: bytes) -> None:
    assert frame.packet(GOOD) is not None
    assert frame.packet(bad) is None


def test_datagrams_that_are_none() -> None:
    whole = frame.packet(GOOD)
    assert whole is not None
    assert frame.datagram(whole) == (4000, 53, b"data")
    for body in (
        b"",
        whole.body[:7],
        whole.body[:-1],
        whole.body[:-1] + b"b",
        whole.body[:4] + b"\0\7" + whole.body[6:],
    ):
        assert frame.datagram(whole._replace(body=body)) is None
    assert frame.datagram(whole._replace(protocol=6)) is None
    assert frame.datagram(whole._replace(body=whole.body[:6] + b"\0\0" + whole.body[8:])) is not None  # none was made


def test_nothing_that_a_guest_sends_breaks_it() -> None:
    """Every right frame, with bytes of it changed, cut off and added at random."""
    chance = Random(7)
    renewed = frame.udp((ADDRESS, 68), (SERVER, 67), message(3, current=ADDRESS))
    arp = b"\0\1\x08\0\6\4\0\1" + WEB + ADDRESS.packed + bytes(6) + SERVER.packed
    echo = frame.ip(ADDRESS, SERVER, frame.ICMP, b"\x08\0\xf7\xfc\0\1\0\2")
    named = frame.udp((ADDRESS, 4000), (SERVER, 53), query("client"))
    right = [
        OWN + WEB + kind + body
        for kind, body in [(b"\x08\0", renewed), (b"\x08\6", arp), (b"\x08\0", echo), (b"\x08\0", named)]
    ]
    answered = 0
    for _ in range(20_000):
        data = bytearray(chance.choice(right))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        cut = bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        parsed = frame.parse(cut)
        answer = STEWARD.answer(parsed, "web") if parsed else None
        answered += answer is not None
        assert len(answer or b"") < 600
    assert answered > 2000
