"""Frames: Ethernet, ARP, IPv4, UDP and ICMP echo as bytes. What guests send is parsed strictly or is nothing."""

from ipaddress import IPv4Address
from struct import Struct
from typing import NamedTuple

BROADCAST = b"\xff" * 6
EVERYBODY = IPv4Address("255.255.255.255")
LEAST, MOST = 14, 65550  # bytes of a frame: its header, and a full IP packet behind it
IPV4, ARP = 0x0800, 0x0806
ICMP, UDP = 1, 17
_HEADER, _ARP = Struct("!6s6sH"), Struct("!HHBBH6s4s6s4s")
_IP, _UDP = Struct("!BBHHHBBH4s4s"), Struct("!HHHH")
_ETHERNET_IPV4 = (1, IPV4, 6, 4)  # hardware, protocol, and the lengths of their addresses
_FRAGMENT = 0x3FFF  # the bits "more fragments follow" and "not the first one"


class Frame(NamedTuple):
    """An Ethernet frame."""

    target: bytes
    source: bytes
    kind: int
    body: bytes

    @property
    def packed(self) -> bytes:
        """Its bytes."""
        return _HEADER.pack(self.target, self.source, self.kind) + self.body


class Packet(NamedTuple):
    """An IPv4 packet that is whole."""

    source: IPv4Address
    target: IPv4Address
    protocol: int
    body: bytes


class Datagram(NamedTuple):
    """What a UDP packet carries."""

    source_port: int
    target_port: int
    data: bytes


class Question(NamedTuple):
    """An ARP request: who has `target`? Tell `source`, who is at `mac`."""

    mac: bytes
    source: IPv4Address
    target: IPv4Address


def mac(text: str) -> bytes:
    """The bytes of "52:54:00:00:01:0a"."""
    return bytes.fromhex(text.replace(":", ""))


def parse(data: bytes) -> Frame | None:
    """A frame; None for what is too short or too long to be one."""
    if not LEAST <= len(data) <= MOST:
        return None
    target, source, kind = _HEADER.unpack_from(data)
    return Frame(target, source, kind, data[_HEADER.size :])


def question(body: bytes) -> Question | None:
    """An ARP request for an IPv4 address; None for all else."""
    if len(body) < _ARP.size:
        return None
    *kind, operation, source_mac, source, _, target = _ARP.unpack_from(body)
    if tuple(kind) != _ETHERNET_IPV4 or operation != 1:
        return None
    return Question(source_mac, IPv4Address(source), IPv4Address(target))


def reply(asked: Question, own: bytes) -> bytes:
    """The ARP reply "`own` has it"."""
    return _ARP.pack(*_ETHERNET_IPV4, 2, own, asked.target.packed, asked.mac, asked.source.packed)


def packet(body: bytes) -> Packet | None:
    """An IPv4 packet (RFC 791); None for one that is cut, damaged, or in fragments."""
    if len(body) < _IP.size:
        return None
    first, _, total, _, fragment, _, protocol, _, source, target = _IP.unpack_from(body)
    header = (first & 15) * 4
    if first >> 4 != 4 or not _IP.size <= header <= total <= len(body) or fragment & _FRAGMENT:
        return None
    if checksum(body[:header]):
        return None
    return Packet(IPv4Address(source), IPv4Address(target), protocol, body[header:total])


def datagram(carried: Packet) -> Datagram | None:
    """What a UDP packet carries (RFC 768); None for another protocol, or one that is cut or damaged."""
    body = carried.body
    if carried.protocol != UDP or len(body) < _UDP.size:
        return None
    source, target, length, check = _UDP.unpack_from(body)
    if not _UDP.size <= length <= len(body):
        return None
    if check and checksum(_pseudo_header(carried.source, carried.target, length) + body[:length]):
        return None
    return Datagram(source, target, body[_UDP.size : length])


def ip(source: IPv4Address, target: IPv4Address, protocol: int, body: bytes) -> bytes:
    """An IPv4 packet's bytes."""
    header = _IP.pack(0x45, 0, _IP.size + len(body), 0, 0, 64, protocol, 0, source.packed, target.packed)
    return header[:10] + checksum(header).to_bytes(2, "big") + header[12:] + body


def udp(source: tuple[IPv4Address, int], target: tuple[IPv4Address, int], data: bytes) -> bytes:
    """The bytes of an IPv4 packet with a UDP datagram; addresses with their ports."""
    length = _UDP.size + len(data)
    whole = _UDP.pack(source[1], target[1], length, 0) + data
    check = checksum(_pseudo_header(source[0], target[0], length) + whole) or 0xFFFF  # 0 would mean "none"
    return ip(source[0], target[0], UDP, _UDP.pack(source[1], target[1], length, check) + data)


def echo(body: bytes) -> bytes | None:
    """The ICMP answer to an echo request (RFC 792); None to anything else."""
    if len(body) < 8 or body[:2] != b"\x08\x00" or checksum(body):
        return None
    answer = b"\0\0\0\0" + body[4:]
    return answer[:2] + checksum(answer).to_bytes(2, "big") + answer[4:]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that holds its own right one."""
    total = sum(int.from_bytes(data[n : n + 2].ljust(2, b"\0"), "big") for n in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _pseudo_header(source: IPv4Address, target: IPv4Address, length: int) -> bytes:
    return source.packed + target.packed + UDP.to_bytes(2, "big") + length.to_bytes(2, "big")
