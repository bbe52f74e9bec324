"""The switch: who gets which frame and when, and that a guest which floods, lies or cuts its frames harms no other."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from shutil import which
from struct import unpack_from

import pytest

from imagekit.errors import Problem
from imagekit.lan import frame, pcap, switch
from imagekit.lan.cables import Cables
from imagekit.lan.dhcp import Leases
from imagekit.lan.steward import Steward
from imagekit.lan.switch import Port, Switch

NAMES = ("a", "b", "c")
MAC = {name: bytes([0x52, 0, 0, 0, 0, number]) for number, name in enumerate(NAMES, 10)}
OWN = b"\x52\0\0\0\0\1"


class Clock:
    """A clock that goes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def made(clock: Callable[[], float]) -> Switch:
    leases = Leases(IPv4Network("10.0.0.0/24"), IPv4Address("10.0.0.1"), {})
    one = Switch("lan", Steward(OWN, leases, {}), now=clock, epoch=lambda: 1_000_000.5)
    for name in NAMES:
        one.join(name, MAC[name]).plug(True)
    return one


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lan(clock: Clock) -> Switch:
    return made(clock)


def to(target: str, source: str, text: bytes = b"hello") -> bytes:
    return MAC.get(target, frame.BROADCAST) + MAC[source] + b"\x88\xb5" + text


def taken(port: Port) -> list[bytes]:
    return list(iter(port.take, None))


def got(lan: Switch) -> dict[str, int]:
    lan.deliver()
    return {name: len(taken(port)) for name, port in lan.ports.items()}


def test_a_frame_goes_to_whom_it_is_for_and_a_broadcast_to_all_others(lan: Switch) -> None:
    lan.take(lan.ports["a"], to("b", "a"))
    assert got(lan) == {"a": 0, "b": 1, "c": 0}
    lan.take(lan.ports["a"], to("", "a"))
    assert got(lan) == {"a": 0, "b": 1, "c": 1}
    lan.take(lan.ports["a"], to("a", "a"))  # to itself
    assert got(lan) == {"a": 0, "b": 0, "c": 0}


def test_further_addresses_are_learned_and_may_move(lan: Switch) -> None:
    virtual = b"\0\0\x5e\0\1\7"
    lan.take(lan.ports["b"], frame.BROADCAST + virtual + b"\x88\xb5")
    got(lan)
    lan.take(lan.ports["a"], virtual + MAC["a"] + b"\x88\xb5")
    assert got(lan) == {"a": 0, "b": 1, "c": 0}
    lan.take(lan.ports["c"], frame.BROADCAST + virtual + b"\x88\xb5")
    got(lan)
    lan.take(lan.ports["a"], virtual + MAC["a"] + b"\x88\xb5")
    assert got(lan) == {"a": 0, "b": 0, "c": 1}


@pytest.mark.parametrize("source", [MAC["b"], OWN, frame.BROADCAST, b"\1\0\x5e\0\0\1"])
def test_nobody_takes_another_s_address(lan: Switch, source: bytes) -> None:
    lan.take(lan.ports["a"], frame.BROADCAST + source + b"\x88\xb5")
    assert got(lan) == {"a": 0, "b": 0, "c": 0}
    assert lan.ports["a"].refused == 1
    lan.take(lan.ports["c"], to("b", "c"))
    assert got(lan) == {"a": 0, "b": 1, "c": 0}


@pytest.mark.parametrize("data", [b"", b"\xff" * 13, b"\xff" * (frame.MOST + 1)])
def test_what_is_no_frame_goes_nowhere(lan: Switch, data: bytes) -> None:
    lan.take(lan.ports["a"], data)
    assert got(lan) == {"a": 0, "b": 0, "c": 0}
    assert len(lan.capture) == 0


def test_addresses_without_end_are_not_remembered_and_others_are_not_forgotten(lan: Switch) -> None:
    lan.take(lan.ports["b"], frame.BROADCAST + b"\2\0\0\0\0\7" + b"\x88\xb5")
    for number in range(10_000):
        lan.take(lan.ports["a"], MAC["c"] + b"\2\1" + number.to_bytes(4, "big") + b"\x88\xb5")
    assert len(lan._where) == len(NAMES) + 1 + switch.LEARNED
    got(lan)
    lan.take(lan.ports["c"], b"\2\0\0\0\0\7" + MAC["c"] + b"\x88\xb5")
    assert got(lan) == {"a": 0, "b": 1, "c": 0}


def test_a_flood_fills_its_own_lane_and_the_senders_take_turns(lan: Switch) -> None:
    for _ in range(2000):
        lan.take(lan.ports["a"], to("b", "a", bytes(1400)))
    lan.take(lan.ports["c"], to("b", "c"))
    b = lan.ports["b"]
    assert b.waiting["a"] <= switch.LANE
    assert b.crowded_out > 1000
    assert [data[6:12] for data in (b.take(), b.take()) if data] == [MAC["a"], MAC["c"]]
    taken(b)
    assert b.waiting == {"a": 0, "c": 0}


def test_a_flood_on_its_way_is_bounded_too(lan: Switch, clock: Clock) -> None:
    lan.set_delay("b", 5)
    for _ in range(2000):
        lan.take(lan.ports["a"], to("b", "a", bytes(1400)))
    assert sum(len(row[-1]) for row in lan._travelling) <= switch.LANE
    clock.now += 5
    assert 0 < got(lan)["b"] < 400
    assert lan.ports["b"].waiting == {"a": 0}


def test_delay_is_exact_each_way_and_ends(lan: Switch, clock: Clock) -> None:
    lan.set_delay("b", 0.1)
    lan.set_delay("a", 0.05)
    lan.take(lan.ports["a"], to("b", "a"))
    assert lan.deliver() == pytest.approx(0.15)
    assert got(lan)["b"] == 0
    clock.now += 0.14
    assert got(lan)["b"] == 0
    clock.now += 0.011
    assert got(lan)["b"] == 1
    assert lan.deliver() is None
    lan.take(lan.ports["a"], to("c", "a"))
    assert lan.deliver() == pytest.approx(0.05)
    for name in NAMES:
        lan.set_delay(name, 0)
    clock.now += 1
    assert got(lan) == {"a": 0, "b": 0, "c": 1}
    lan.take(lan.ports["b"], to("a", "b"))
    assert got(lan)["a"] == 1


def test_frames_keep_their_order_on_the_way(lan: Switch, clock: Clock) -> None:
    lan.set_delay("b", 0.1)
    for number in range(50):
        lan.take(lan.ports["a"], to("b", "a", bytes([number])))
    clock.now += 1
    lan.deliver()
    assert [data[-1] for data in taken(lan.ports["b"])] == list(range(50))


def lost(share: float, *, seed: int = 0, way: str = "from") -> list[int]:
    """Which of 1000 frames do not arrive."""
    lan = made(Clock())
    lan.set_loss("a", share, seed=seed)
    source, target = ("a", "b") if way == "from" else ("b", "a")
    for number in range(1000):
        lan.take(lan.ports[source], to(target, source, number.to_bytes(2, "big")))
    there = {int.from_bytes(data[-2:], "big") for data in taken(lan.ports[target])}
    return [number for number in range(1000) if number not in there]


def test_loss_is_the_share_that_was_asked_for_and_repeats() -> None:
    assert 250 < len(lost(0.3)) < 350
    assert lost(0.3) == lost(0.3)
    assert lost(0.3) != lost(0.3, seed=1)
    assert lost(0.3) != lost(0.3, way="to")
    assert set(lost(0.1)) < set(lost(0.3))
    assert len(lost(0)) == 0
    assert len(lost(1)) == len(lost(1, way="to")) == 1000


def test_a_link_that_is_down_carries_nothing_not_even_what_was_on_its_way(lan: Switch, clock: Clock) -> None:
    lan.set_delay("b", 1)
    lan.take(lan.ports["a"], to("b", "a"))
    lan.port("b").link.is_up = False
    clock.now += 2
    assert got(lan)["b"] == 0
    lan.take(lan.ports["a"], to("b", "a"))
    lan.take(lan.ports["b"], to("a", "b"))
    clock.now += 2
    assert got(lan) == {"a": 0, "b": 0, "c": 0}
    lan.port("b").link.is_up = True
    lan.take(lan.ports["b"], to("a", "b"))
    clock.now += 2
    assert got(lan)["a"] == 1


def test_nothing_is_kept_for_a_machine_that_is_not_there(lan: Switch) -> None:
    lan.take(lan.ports["a"], to("b", "a"))
    lan.ports["b"].plug(False)
    lan.take(lan.ports["a"], to("b", "a"))
    lan.ports["b"].plug(True)
    assert got(lan)["b"] == 0
    assert lan.ports["b"].waiting == {"a": 0}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda lan: lan.set_delay("a", -1), "a delay of -1 is none"),
        (lambda lan: lan.set_loss("a", 30), "a loss of 30 is no share from 0 to 1"),
        (lambda lan: lan.set_loss("clinet", 0.3), "unknown guest of the network lan 'clinet'(.|\n)*known: a, b, c"),
    ],
)
def test_wrong_wishes(lan: Switch, wrong: Callable[[Switch], None], words: str) -> None:
    with pytest.raises(Problem, match=words) as caught:
        wrong(lan)
    assert str(caught.value)


# --- captures


def read(data: bytes) -> list[tuple[float, bytes]]:
    """A strict reader of capture files."""
    assert unpack_from("<IHHiIII", data) == (0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    place, found = 24, []
    while place < len(data):
        seconds, part, kept, whole = unpack_from("<IIII", data, place)
        assert kept == whole <= 262144
        assert part < 1_000_000
        found.append((seconds + part / 1e6, data[place + 16 : place + 16 + kept]))
        place += 16 + kept
    assert place == len(data)
    return found


def test_a_capture_has_what_came_to_the_switch(lan: Switch, tmp_path: Path) -> None:
    request = b"\x08\6\0\1\x08\0\6\4\0\1" + MAC["a"] + b"\x0a\0\0\5" + bytes(6) + b"\x0a\0\0\1"
    lan.take(lan.ports["a"], frame.BROADCAST + MAC["a"] + request)
    lan.port("b").link.is_up = False
    lan.take(lan.ports["b"], to("a", "b"))
    seen = read(lan.capture.pcap())
    assert [moment for moment, _ in seen] == [1_000_000.5] * 2
    assert [data[6:12] for _, data in seen] == [MAC["a"], OWN]  # the question, and the steward's answer
    lan.capture.clear()
    assert read(lan.capture.pcap()) == []
    if tcpdump := which("tcpdump"):
        path = tmp_path / "x.pcap"
        lan.take(lan.ports["a"], frame.BROADCAST + MAC["a"] + request)
        path.write_bytes(lan.capture.pcap())
        shown = subprocess.run([tcpdump, "-nr", path], capture_output=True, text=True, check=True).stdout
        assert "Request who-has 10.0.0.1 tell 10.0.0.5" in shown
        assert "Reply 10.0.0.1 is-at 52:00:00:00:00:01" in shown


def test_a_capture_is_bounded_and_keeps_the_newest() -> None:
    ring = pcap.Capture(largest=1000)
    for number in range(100):
        ring.add(float(number), bytes([number]) * 84)
    assert [data[0] for _, data in read(ring.pcap())] == list(range(90, 100))
    assert (len(ring), ring.missed) == (10, 90)


# --- cables


class Guest:
    """The end of a cable that QEMU has."""

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.end.settimeout(20)
        self.rest = bytearray()

    def send(self, *frames: bytes) -> None:
        self.end.sendall(b"".join(map(switch.packed, frames)))

    def receive(self) -> bytes:
        while True:
            for data in switch.unpacked(self.rest):
                return data
            self.rest += self.end.recv(65536) or pytest.fail("the cable was pulled out")


@pytest.fixture
def guests(lan: Switch) -> Iterator[Callable[[str], Guest]]:
    joined = Cables([lan])
    ends = []

    def plug(name: str) -> Guest:
        ends.append(joined.plug(lan, name))
        return Guest(ends[-1])

    yield plug
    joined.close()
    joined.close()
    for end in ends:
        end.close()


def greeted(a: Guest, b: Guest, source: str = "a", target: str = "b") -> bool:
    """Whether a frame comes through, after whatever else; the socket's time-out ends a wait for nothing."""
    a.send(to(target, source, b"now"))
    while b.receive() != to(target, source, b"now"):
        pass
    return True


def joined(plug: Callable[[str], Guest]) -> dict[str, Guest]:
    """All guests, each known to be plugged in: the steward answered it."""
    there = {name: plug(name) for name in NAMES}
    for name, guest in there.items():
        request = b"\x08\6\0\1\x08\0\6\4\0\1" + MAC[name] + bytes(10) + b"\x0a\0\0\1"
        guest.send(OWN + MAC[name] + request)
        assert guest.receive()[6:12] == OWN
    return there


def test_frames_go_through_sockets_in_whatever_pieces(guests: Callable[[str], Guest]) -> None:
    there = joined(guests)
    data = b"".join(switch.packed(to("b", "a", bytes([n]) * n)) for n in range(100))
    for start in range(0, len(data), 7):
        there["a"].end.sendall(data[start : start + 7])
    assert [there["b"].receive()[14:] for _ in range(100)] == [bytes([n]) * n for n in range(100)]


def test_a_guest_that_takes_nothing_and_one_that_floods_harm_nobody(
    lan: Switch, guests: Callable[[str], Guest]
) -> None:
    there = joined(guests)
    for _ in range(3000):  # to b, who reads nothing, and to all
        there["a"].send(to("b", "a", bytes(1400)), to("", "a", bytes(1400)))
    there["c"].send(to("a", "c", b"still here"))
    assert there["a"].receive() == to("a", "c", b"still here")
    assert lan.ports["b"].crowded_out
    assert lan.ports["b"].waiting["a"] <= switch.LANE


@pytest.mark.parametrize("nonsense", [b"\xff\xff\xff\xff", bytes(4), b"\0\1\0\x0f" + bytes(70000)])
def test_a_length_that_no_frame_has_ends_that_cable_only(guests: Callable[[str], Guest], nonsense: bytes) -> None:
    there = joined(guests)
    there["a"].end.sendall(nonsense)
    with suppress(ConnectionResetError):
        while there["a"].end.recv(4096):
            pass
    assert greeted(there["c"], there["b"], "c", "b")
    again = guests("a")
    request = b"\x08\6\0\1\x08\0\6\4\0\1" + MAC["a"] + bytes(10) + b"\x0a\0\0\1"
    again.send(OWN + MAC["a"] + request)
    assert again.receive()[6:12] == OWN
    assert greeted(there["c"], again, "c", "a")


def test_a_machine_that_starts_again_takes_the_place_of_the_old(guests: Callable[[str], Guest]) -> None:
    there = joined(guests)
    new = guests("a")
    assert there["a"].end.recv(4096) == b""
    assert greeted(there["b"], new, "b", "a")


def test_whatever_a_cable_brings_the_thread_lives(guests: Callable[[str], Guest]) -> None:
    from random import Random

    there, chance = joined(guests), Random(3)
    for _ in range(30):
        hostile = guests("a")
        hostile.send(*(chance.randbytes(chance.randrange(1, 200)) for _ in range(200)))
        hostile.send(*(OWN + MAC["a"] + b"\x08\0" + chance.randbytes(chance.randrange(100)) for _ in range(50)))
        hostile.end.close()
    assert greeted(there["c"], there["b"], "c", "b")
