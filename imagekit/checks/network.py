"""The network as a guest's kernel sees it, whatever programs the image has; and as it is seen from outside."""

from typing import TYPE_CHECKING

from imagekit.checks import _told
from imagekit.errors import GuestProblem
from imagekit.image import Image

if TYPE_CHECKING:
    from imagekit.guest import Guest

LISTEN = "0A"  # TCP_LISTEN in include/net/tcp_states.h
FINE = range(200, 400)  # what readiness takes for an answer (inside/ready.c)
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")  # proc_net_tcp.rst; the second is missing in a kernel without IPv6


def listening(guest: "Guest") -> set[int]:
    """The TCP ports that accept connections, on any of the guest's addresses: `assert listening(guest) == {80}`."""
    rows = (line.split() for line in _told.read(guest, *TABLES).splitlines())
    return {int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == LISTEN}


def unanswered(image: Image, guest: "Guest") -> dict[str, str]:
    """What the conditions `tcp:` and `http:` of the image's services promise and a guest does not answer from outside.

    Nothing runs in the guest for it, so that it works on an image as it is shipped: `assert unanswered(...) == {}`.
    """
    conditions = [service.ready for service in image.services if service.ready.startswith(("tcp:", "http:"))]
    found = {condition: _fault(condition, guest) for condition in conditions}
    return {condition: fault for condition, fault in found.items() if fault}


def _fault(condition: str, guest: "Guest") -> str:
    kind, _, rest = condition.partition(":")
    port, _, path = rest.partition("/")
    try:
        if kind == "tcp":
            guest.tcp(int(port)).close()
            return ""
        status = guest.http.get(f"/{path}", port=int(port)).status
    except GuestProblem as problem:
        return problem.message.partition("\n")[0]
    return "" if status in FINE else f"status {status}"
