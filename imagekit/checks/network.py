"""The network as a guest's kernel sees it, whatever programs the image has."""

from imagekit.checks import _told
from imagekit.guest import Guest

LISTEN = "0A"  # TCP_LISTEN in include/net/tcp_states.h
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")  # proc_net_tcp.rst; the second is missing in a kernel without IPv6


def listening(guest: Guest) -> set[int]:
    """The TCP ports that accept connections, on any of the guest's addresses: `assert listening(guest) == {80}`."""
    rows = (line.split() for line in _told.read(guest, *TABLES).splitlines())
    return {int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == LISTEN}
