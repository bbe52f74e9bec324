"""The one host of a private network that is no guest: it has the first address, and knows everybody's address and name.

It answers ARP, echo, DHCP and DNS, and leads nowhere. What it is asked is judged by the port that the question came
from: a guest is told the names of its own neighbours, on all networks that it is on.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import NamedTuple

from imagekit.lan import dhcp, dns, frame
from imagekit.lan.frame import Datagram, Frame, Packet

Names = Mapping[str, IPv4Address]


class Steward(NamedTuple):
    """What it knows."""

    mac: bytes
    leases: dhcp.Leases
    names: Mapping[str, Names]  # for each guest: the names that it can reach

    def answer(self, asked: Frame, asker: str) -> bytes | None:
        """The frame that goes back to the port of the guest `asker`; None when nothing does."""
        if asked.target not in (self.mac, frame.BROADCAST):
            return None
        if asked.kind == frame.ARP:
            body = self._resolve(asked.body)
            return Frame(asked.source, self.mac, frame.ARP, body).packed if body else None
        carried = frame.packet(asked.body) if asked.kind == frame.IPV4 else None
        if carried is None:
            return None
        target, packed = self._serve(carried, asked.source, asker)
        return Frame(target, self.mac, frame.IPV4, packed).packed if packed else None

    def _resolve(self, body: bytes) -> bytes | None:
        asked = frame.question(body)
        return frame.reply(asked, self.mac) if asked and asked.target == self.leases.server else None

    def _serve(self, carried: Packet, source: bytes, asker: str) -> tuple[bytes, bytes | None]:
        """(MAC address that the answer goes to, its packet)."""
        own = self.leases.server
        received = frame.datagram(carried)
        if received and received.target_port == dhcp.SERVER and carried.target in (own, frame.EVERYBODY):
            return self._lease(carried, received, source)
        if carried.target != own:
            return source, None
        if carried.protocol == frame.ICMP and (said := frame.echo(carried.body)):
            return source, frame.ip(own, carried.source, frame.ICMP, said)
        if received and received.target_port == dns.PORT and (said := self._name(received, asker)):
            return source, frame.udp((own, dns.PORT), (carried.source, received.source_port), said)
        return source, None

    def _lease(self, carried: Packet, received: Datagram, source: bytes) -> tuple[bytes, bytes | None]:
        said = dhcp.answer(received.data, self.leases)
        is_known = bool(int(carried.source))  # it has an address already, and renews it
        to, target = (carried.source, source) if is_known else (frame.EVERYBODY, frame.BROADCAST)
        return target, frame.udp((self.leases.server, dhcp.SERVER), (to, dhcp.CLIENT), said) if said else None

    def _name(self, received: Datagram, asker: str) -> bytes | None:
        return dns.answer(received.data, self.names.get(asker, {}))
