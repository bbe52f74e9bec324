"""Switch: a private network's guests, joined; it learns who is where, and can be cruel on demand.

Bytes and times go in and come out, nothing else happens here: cables.py has the sockets. Frames from guests are
hostile: each guest's frames to each other one have a lane of their own with room for so many bytes, and lanes take
turns, so that a flood fills its own lane only.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random

from imagekit.errors import Problem, unknown
from imagekit.lan import frame
from imagekit.lan.pcap import Capture
from imagekit.lan.steward import Steward

LANE = 512 << 10  # bytes that may wait between two ports, on the way or for a guest that does not take them
LEARNED = 64  # MAC addresses that a port may have beside its own


@dataclass
class Link:
    """What happens to all that goes to and comes from a guest."""

    is_up: bool = True
    delay: float = 0.0  # seconds that a frame takes longer, each way
    loss: float = 0.0  # the share of frames that get lost, each way


@dataclass(eq=False)
class Port:
    """Where a guest is plugged in."""

    name: str
    mac: bytes
    link: Link = field(default_factory=Link)
    lanes: dict[str, deque[bytes]] = field(default_factory=dict)  # by who sent: what waits to be taken
    waiting: dict[str, int] = field(default_factory=dict)  # by who sent: its bytes, those on the way included
    is_plugged: bool = False  # whether anybody is there to take a frame
    learned: "OrderedDict[bytes, None]" = field(default_factory=OrderedDict)
    lost: int = 0  # frames: by the link's loss, since it was down, or nobody was there
    crowded_out: int = 0  # frames for which a lane had no room
    refused: int = 0  # frames that were none, or had another's address

    def take(self) -> bytes | None:
        """The next frame for the guest; the senders take turns."""
        for sender, lane in self.lanes.items():
            if lane:
                data = lane.popleft()
                self.waiting[sender] -= len(data)
                self.lanes[sender] = self.lanes.pop(sender)  # to the end of the row
                return data
        return None

    def plug(self, is_plugged: bool) -> None:
        """Somebody came, or went; nothing is kept for whoever comes next."""
        while self.take():
            pass
        self.is_plugged = is_plugged


class Switch:
    """One network: `join` guests, give it what they send, and give them what it delivers."""

    def __init__(self, name: str, steward: Steward, *, now: Callable[[], float], epoch: Callable[[], float]) -> None:
        self.name, self.steward = name, steward
        self.ports: dict[str, Port] = {}
        self.capture = Capture()
        self._now, self._epoch = now, epoch
        self._where: dict[bytes, Port] = {}  # MAC address -> port
        self._travelling: list[tuple[float, int, str, Port, bytes]] = []  # (when it arrives, number, sender, ...)
        self._numbers = count()
        self._chances: dict[str, tuple[Random, Random]] = {}

    def join(self, name: str, mac: bytes) -> Port:
        """A port for a guest; its MAC address is its own, and nobody else gets what is sent to it."""
        port = self.ports[name] = self._where[mac] = Port(name, mac)
        self.set_loss(name, 0.0)
        return port

    def port(self, name: str) -> Port:
        """The port of a guest; raises a Problem that lists those who are here."""
        if name not in self.ports:
            raise unknown(f"guest of the network {self.name}", name, self.ports)
        return self.ports[name]

    def set_delay(self, name: str, seconds: float) -> None:
        """Let each frame to and from a guest take so many seconds longer."""
        if not 0 <= seconds <= 3600:
            raise Problem(f"a delay of {seconds!r} is none of 0 to 3600 seconds")
        self.port(name).link.delay = seconds

    def set_loss(self, name: str, share: float, *, seed: int = 0) -> None:
        """Lose a share (0 to 1) of the frames to and from a guest: with the same seed, the same ones of a sequence."""
        if not 0 <= share <= 1:
            raise Problem(f"a loss of {share!r} is no share from 0 to 1")
        self.port(name).link.loss = share
        self._chances[name] = Random(f"{seed} from {name}"), Random(f"{seed} to {name}")

    def take(self, port: Port, data: bytes) -> None:
        """A frame that a guest has sent."""
        parsed = frame.parse(data)
        if parsed is None or not self._learn(port, parsed.source):
            port.refused += 1
        elif self._is_lost(port, 0):
            port.lost += 1
        else:
            self.capture.add(self._epoch(), data)
            self._forward(port, parsed.target, data)
            answer = self.steward.answer(parsed, port.name)
            if answer:
                self.capture.add(self._epoch(), answer)
                self._send("", port, answer, 2 * port.link.delay)  # the question took its time as well

    def deliver(self) -> float | None:
        """Put what has arrived by now into the lanes; how many seconds the next one still takes, None without one."""
        now = self._now()
        while self._travelling and self._travelling[0][0] <= now:
            _, _, sender, port, data = heappop(self._travelling)
            self._arrive(sender, port, data)
        return self._travelling[0][0] - now if self._travelling else None

    def _forward(self, source: Port, target: bytes, data: bytes) -> None:
        if target == self.steward.mac:
            return
        known = self._where.get(target)
        for port in [known] if known else self.ports.values():
            if port is not source:
                self._send(source.name, port, data, source.link.delay + port.link.delay)

    def _send(self, sender: str, port: Port, data: bytes, delay: float) -> None:
        if self._is_lost(port, 1):
            port.lost += 1
            return
        if port.waiting.get(sender, 0) + len(data) > LANE:
            port.crowded_out += 1
            return
        port.waiting[sender] = port.waiting.get(sender, 0) + len(data)
        if delay:
            heappush(self._travelling, (self._now() + delay, next(self._numbers), sender, port, data))
        else:
            self._arrive(sender, port, data)

    def _arrive(self, sender: str, port: Port, data: bytes) -> None:
        if port.link.is_up and port.is_plugged:
            port.lanes.setdefault(sender, deque()).append(data)
        else:
            port.waiting[sender] -= len(data)
            port.lost += 1

    def _is_lost(self, port: Port, way: int) -> bool:
        link = port.link
        return not link.is_up or (link.loss > 0 and self._chances[port.name][way].random() < link.loss)

    def _learn(self, port: Port, mac: bytes) -> bool:
        """Remember where an address is; False for one that is nobody's own, or a neighbour's."""
        if mac == port.mac:
            return True
        owner = self._where.get(mac)
        if mac[0] & 1 or mac == self.steward.mac or (owner and owner.mac == mac):
            return False
        if owner and owner is not port:  # it moved, as the address of a cluster does
            del owner.learned[mac]
        self._where[mac] = port
        port.learned[mac] = None
        port.learned.move_to_end(mac)
        if len(port.learned) > LEARNED:
            del self._where[port.learned.popitem(last=False)[0]]
        return True


def unpacked(rest: bytearray) -> Iterator[bytes]:
    """The whole frames at the beginning of what QEMU sent; they are taken out of it.

    Raises ValueError for a length that no frame has: what comes after it makes no sense any more.
    """
    place = 0
    try:
        while len(rest) - place >= 4:
            length = int.from_bytes(rest[place : place + 4], "big")
            if not 0 < length <= frame.MOST:
                raise ValueError(f"a frame of {length} bytes")
            if len(rest) - place - 4 < length:
                break
            place += 4 + length
            yield bytes(rest[place - length : place])
    finally:
        del rest[:place]


def packed(data: bytes) -> bytes:
    """A frame as QEMU wants it: behind its length."""
    return len(data).to_bytes(4, "big") + data
