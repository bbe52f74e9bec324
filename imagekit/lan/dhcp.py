"""Addresses of a private network: the answer to a DHCP message (RFC 2131), from a table of MAC addresses."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from struct import Struct

SERVER, CLIENT = 67, 68  # ports
SECONDS = 86400  # of a lease
_MESSAGE = Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
_MAGIC = b"\x63\x82\x53\x63"
_DISCOVER, _OFFER, _REQUEST, _ACK, _NAK, _INFORM = 1, 2, 3, 5, 6, 8
_MASK, _ROUTER, _DNS, _WANTED, _LEASE, _TYPE, _SERVER, _END = 1, 3, 6, 50, 51, 53, 54, 255
_NOWHERE = bytes(4)


@dataclass(frozen=True)
class Leases:
    """Who gets which address."""

    network: IPv4Network
    server: IPv4Address  # also where names are resolved
    table: Mapping[bytes, IPv4Address]  # by MAC address
    router: IPv4Address | None = None


def answer(message: bytes, leases: Leases) -> bytes | None:
    """The answer; None to what is no request, or is meant for another server, or comes from a card nobody announced."""
    if len(message) < _MESSAGE.size:
        return None
    kind, hardware, length, _, number, _, flags, current, _, _, relay, address, _, _, magic = _MESSAGE.unpack_from(
        message
    )
    options = _options(message[_MESSAGE.size :])
    own = leases.table.get(address[:6])
    if (kind, hardware, length, magic) != (1, 1, 6, _MAGIC) or options is None or own is None:
        return None
    if options.get(_SERVER, leases.server.packed) != leases.server.packed:
        return None
    said = _answer_to(options, current, own)
    if said is None:
        return None
    yours = own.packed if said in (_OFFER, _ACK) and options[_TYPE][0] != _INFORM else _NOWHERE
    body = _MESSAGE.pack(
        2, 1, 6, 0, number, 0, flags, current, yours, leases.server.packed, relay, address, b"", b"", _MAGIC
    )
    return (body + _granted(said, leases, with_lease=yours != _NOWHERE)).ljust(300, b"\0")  # BOOTP's least (RFC 1542)


def _answer_to(options: Mapping[int, bytes], current: bytes, own: IPv4Address) -> int | None:
    """The kind of answer; None for none: what is declined or released stays in the table."""
    granted = _ACK if options.get(_WANTED, current) == own.packed else _NAK
    answers = {_DISCOVER: _OFFER, _REQUEST: granted, _INFORM: _ACK}
    asked = options.get(_TYPE, b"")
    return answers.get(asked[0]) if len(asked) == 1 else None


def _granted(said: int, leases: Leases, *, with_lease: bool) -> bytes:
    told = [(_TYPE, bytes([said])), (_SERVER, leases.server.packed)]
    if with_lease:
        told.append((_LEASE, SECONDS.to_bytes(4, "big")))
    if said != _NAK:
        told += [(_MASK, leases.network.netmask.packed), (_DNS, leases.server.packed)]
        told += [(_ROUTER, leases.router.packed)] if leases.router else []
    return b"".join(bytes([code, len(value)]) + value for code, value in told) + bytes([_END])


def _options(data: bytes) -> dict[int, bytes] | None:
    """The options by number (RFC 2132); None where they are cut, or have no end. The first of two counts."""
    found: dict[int, bytes] = {}
    place = 0
    while place < len(data) and data[place] != _END:
        if not data[place]:  # padding
            place += 1
            continue
        length = data[place + 1] if place + 1 < len(data) else len(data)
        value = data[place + 2 : place + 2 + length]
        if len(value) != length:
            return None
        found.setdefault(data[place], value)
        place += 2 + length
    return found if place < len(data) else None
