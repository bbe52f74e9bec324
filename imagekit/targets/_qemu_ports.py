"""The way to a guest's ports: a loopback address that no other machine has, and forwards that are added when asked for.

QEMU's user network is closed (restrict=on); a forward is the only way through. It accepts connections whether or not
anybody listens in the guest (slirp's accept comes first), so the guest is asked before: by its own tables of sockets.
"""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import randbelow
from threading import Lock
from typing import Any, NamedTuple

from imagekit.errors import Problem, RigProblem
from imagekit.guest import GuestProblem
from imagekit.patience import Stopwatch, wall_watch

NETDEV = "net"  # QEMU's name of the network
TRIES = 100  # addresses, and host ports
PATIENCE = 60.0  # seconds that a connection may be silent, unless whoever got it decides otherwise
NETWORK_PATIENCE, LOOK_AGAIN = 10.0, 0.05  # seconds of its own: a guest may be ready before its address is there
TABLES = ("/etc/imagekit/network", "/proc/net/tcp", "/proc/net/tcp6", "/proc/net/route")
LISTEN = "0A"  # TCP_LISTEN of include/net/tcp_states.h
NO_ADDRESS = "0" * 8
Human = Callable[[str], str]  # QEMU's human monitor
Ask = Callable[[tuple[str, ...]], bytes | None]  # a command's stdout in the guest; None when nobody can be asked


class Lease(NamedTuple):
    """A loopback address that is ours as long as `guard` is open."""

    address: str
    guard: socket.socket


def lease() -> Lease:
    """An address of 127.64.0.0/10 that no other machine on this host uses, whoever started it.

    The guard is a name in the abstract socket namespace: there is no file, the kernel frees it with the last
    descriptor however we end, and it reaches as far as loopback addresses do, a network namespace (unix(7)).
    """
    for _ in range(TRIES):
        address = f"127.{64 + randbelow(64)}.{randbelow(256)}.{1 + randbelow(254)}"
        guard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            guard.bind(f"\0imagekit/{address}")
        except OSError:
            guard.close()
        else:
            return Lease(address, guard)
    raise RigProblem(f"{TRIES} loopback addresses are taken", "stop machines that nobody needs")


class Tables(NamedTuple):
    """What a guest's kernel says of its network."""

    reachable: frozenset[int]  # ports that somebody listens on, from outside too
    inner: frozenset[int]  # ports that only the guest itself reaches
    has_network: bool
    wants_network: bool  # it has been told to get an address


def parse(text: str) -> Tables:
    """The TABLES, one after the other; lines that make no sense are skipped, for the guest wrote them."""
    listening: dict[bool, set[int]] = {True: set(), False: set()}
    has_network = routes = False
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["Iface"]:
            routes = True
        elif routes:
            has_network |= len(words) > 7 and words[0] != "lo"
        elif len(words) > 3 and words[3] == LISTEN:
            address, _, port = words[1].partition(":")
            with suppress(ValueError):
                listening[_is_inner(address)].add(int(port, 16))
    inner = frozenset(listening[True] - listening[False])
    return Tables(frozenset(listening[False]), inner, has_network, text.startswith(("dhcp ", "static ")))


def _is_inner(address: str) -> bool:
    """Whether an address of /proc/net/tcp is a loopback one: little-endian words, in hexadecimal."""
    if len(address) == len(NO_ADDRESS):
        return address.endswith("7F")
    return address == "0" * 24 + "01000000" or (address[16:24] == "FFFF0000" and address.endswith("7F"))


@dataclass
class Ports:
    """The forwards of one machine."""

    address: str
    human: Human = field(repr=False)
    ask: Ask = field(repr=False)
    problem: Callable[[str], GuestProblem] = field(default=GuestProblem, repr=False)
    stopwatch: Stopwatch = field(default=wall_watch, repr=False)
    forwards: dict[int, int] = field(default_factory=dict)  # guest port -> port on `address`
    lock: Any = field(default_factory=Lock, repr=False)

    def connect(self, port: int) -> socket.socket:
        """A connection to a port of the guest; raises GuestProblem when nobody listens there."""
        if not 0 < port < 1 << 16:
            raise Problem(f"{port} is no port", "ports are 1 to 65535")
        tables = self._tables()
        if tables and (fault := closed(port, tables)):
            raise self.problem(fault)
        with self.lock:
            forward = self._forward(port)
        connection = socket.create_connection((self.address, forward), timeout=PATIENCE)
        if not tables and _hangs_up(connection):
            connection.close()
            raise self.problem(f"nobody listens on port {port} of the guest")
        return connection

    def _tables(self) -> Tables | None:
        """What the guest says of its network, once that is up; None when nobody can be asked."""
        passed = self.stopwatch()
        while (told := self.ask(("cat", *TABLES))) is not None:
            tables = parse(told.decode("ascii", "replace"))
            if tables.has_network or not tables.wants_network or passed() > NETWORK_PATIENCE:
                return tables
            time.sleep(LOOK_AGAIN)
        return None

    def _forward(self, port: int) -> int:
        """The port on our address that leads to a port of the guest: the same one where we may bind it."""
        said = ""
        for wanted in (port, *(0,) * 5):
            if port in self.forwards:
                break
            free = _free(self.address, wanted)
            said = self.human(f"hostfwd_add {NETDEV} tcp:{self.address}:{free}-:{port}") if free else said
            if free and not said:
                self.forwards[port] = free
        if port not in self.forwards:
            raise RigProblem(f"QEMU cannot forward a port of {self.address} to port {port} of the guest: {said}")
        return self.forwards[port]


def closed(port: int, tables: Tables) -> str:
    """Why a port cannot be reached, in words; "" when it can."""
    if not tables.has_network:
        return f"port {port} of the guest cannot be reached: it has no network"
    if port in tables.inner:
        return f"port {port} of the guest is open on its loopback address only: let it listen on 0.0.0.0"
    if port not in tables.reachable:
        known = ", ".join(map(str, sorted(tables.reachable)[:50])) or "none"
        return f"nobody listens on port {port} of the guest (open ports: {known})"
    return ""


def _free(address: str, port: int) -> int:
    """The port if we may bind it there (any free one for 0); 0 when not: below 1024 that takes root."""
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU does
        try:
            trial.bind((address, port))
        except OSError:
            return 0
        return int(trial.getsockname()[1])


def _hangs_up(connection: socket.socket) -> bool:
    """Whether the other end closes at once, as QEMU does when the guest refuses."""
    connection.settimeout(0.3)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    except OSError:
        return True
    finally:
        connection.settimeout(PATIENCE)
