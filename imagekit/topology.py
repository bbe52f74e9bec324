"""Topology: several machines on private networks, by name: `net.client.run(...)`, `net.outside.down("client")`.

Which address each gets follows from the order in which they are named, so that a run repeats: 10.10.1.0/24 is the first
network, 10.10.1.10 the first machine on it. A network with a machine of a fixed address is that address's network.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, ip_interface
from threading import Event, Semaphore, Thread
from time import monotonic, sleep, time
from typing import Any, NamedTuple

from imagekit.artifact import Artifact
from imagekit.beside import until_one_fails
from imagekit.console import escape
from imagekit.errors import Problem, unknown
from imagekit.guest import Guest, GuestProblem, Target
from imagekit.key import Key
from imagekit.lan import frame
from imagekit.lan.cables import Cables
from imagekit.lan.dhcp import Leases
from imagekit.lan.pcap import Capture
from imagekit.lan.steward import Names, Steward
from imagekit.lan.switch import Switch
from imagekit.rig import Node, Rig, Wire
from imagekit.store import Store

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}\Z")
MOST = 200  # machines, and networks
FIRST = 10  # the last byte of the first machine's address
EVENTS = "/run/imagekit/events"  # early.py tells what stands there
AT_ONCE = 6  # machines that boot at the same time
LEASE_PATIENCE, LOOK_AGAIN = 20.0, 0.02  # seconds
Say = Callable[[str], None]
Live = Callable[[str, tuple[Wire, ...], Say], AbstractContextManager[Guest]]  # (node, its wires, ...) -> a ready guest


class NoSuchName(Problem, AttributeError):
    """Neither a machine nor a network of the topology."""


class Seat(NamedTuple):
    """A machine's place on a network."""

    mac: str
    address: IPv4Address


class Plan(NamedTuple):
    """A network before anybody is on it."""

    subnet: IPv4Network
    steward: IPv4Address
    seats: Mapping[str, Seat]  # by name of the machine


class Network:
    """A private network of a topology, and what can be done to it."""

    def __init__(self, name: str, plan: Plan, switch: Switch, cards: Mapping[str, Callable[[bool], None]]) -> None:
        self.name, self.subnet = name, plan.subnet
        self._plan, self._switch, self._cards = plan, switch, cards

    @property
    def capture(self) -> Capture:
        """The last frames that came to the switch; `capture.pcap()` is a file for tcpdump."""
        return self._switch.capture

    def address(self, guest: str) -> str:
        """A machine's address here."""
        self._switch.port(guest)
        return str(self._plan.seats[guest].address)

    def down(self, guest: str) -> None:
        """Pull a machine's cable: nothing comes to it or from it here, and its kernel sees that there is no carrier."""
        self._switch.port(guest).link.is_up = False
        self._cards[guest](False)

    def up(self, guest: str) -> None:
        """Put the cable in again."""
        self._switch.port(guest).link.is_up = True
        self._cards[guest](True)

    def delay(self, guest: str, seconds: float) -> None:
        """Let each frame to and from a machine take so many seconds longer; 0 ends it."""
        self._switch.set_delay(guest, seconds)

    def loss(self, guest: str, share: float, *, seed: int = 0) -> None:
        """Lose a share (0 to 1) of the frames to and from a machine, the same ones each time; 0 ends it."""
        self._switch.set_loss(guest, share, seed=seed)

    def __repr__(self) -> str:
        ports = ", ".join(f"{port.name} {self.address(port.name)}" for port in self._switch.ports.values())
        return f"<network {self.name} {self.subnet}: {ports}>"


class Topology:
    """Machines and networks by name, as attributes ("web-1" is web_1) or in brackets; `with` stops them at its end."""

    def __init__(self, guests: Mapping[str, Guest], networks: Mapping[str, Network], stop: Callable[[], None]) -> None:
        self.guests, self.networks, self.stop = guests, networks, stop

    def __getitem__(self, name: str) -> Any:
        found = self.guests.get(name) or self.networks.get(name)
        if found is None:
            problem = unknown("machine or network", name, (*self.guests, *self.networks))
            raise NoSuchName(problem.message, problem.hint)
        return found

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("guests", "networks", "stop"):  # asked for before they are there
            raise AttributeError(name)
        return self[name.replace("_", "-")]

    def evidence(self) -> dict[str, bytes]:
        """What explains a failure, as files: each machine's console, and each network's capture."""
        files = {f"{name}.console": guest.console.text.encode() for name, guest in self.guests.items()}
        return files | {f"{name}.pcap": network.capture.pcap() for name, network in self.networks.items()}

    def __enter__(self) -> "Topology":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<topology of {', '.join(self.guests)} on {', '.join(self.networks)}>"


# --- who is where


def plan(nodes: Mapping[str, Node], stated: Mapping[str, str]) -> dict[str, Plan]:
    """The networks that the nodes name. `stated`: what each image does about its address, in words of early boot."""
    _check(nodes)
    names = list(dict.fromkeys(name for node in nodes.values() for name in node.networks))
    return {name: _plan(name, number, nodes, stated) for number, name in enumerate(names, 1)}


def _check(nodes: Mapping[str, Node]) -> None:
    networks = {name for node in nodes.values() for name in node.networks}
    for name in (*nodes, *networks):
        if not NAME.match(name):
            raise Problem(
                f"topology: {name!r} is no name", "lower-case letters, digits and '-', beginning with a letter"
            )
        if hasattr(Topology, name) or name in ("guests", "networks", "stop"):
            raise Problem(f"topology: {name!r} means something else already", "give it another name")
    if both := networks & set(nodes):
        raise Problem(f"topology: {', '.join(sorted(both))} names a machine and a network", "rename one of them")
    for name, node in nodes.items():
        if not node.networks or len(set(node.networks)) != len(node.networks):
            raise Problem(f"topology: {name} is on {node.networks!r}", "name at least one network, and each once")
    if max(len(nodes), len(networks)) > MOST or not nodes:
        raise Problem(f"topology: {len(nodes)} machines on {len(networks)} networks", f"1 to {MOST} of each")


def _plan(name: str, number: int, nodes: Mapping[str, Node], stated: Mapping[str, str]) -> Plan:
    members = {node: of.networks.index(name) for node, of in nodes.items() if name in of.networks}
    fixed = {node: found[0] for node, card in members.items() if (found := _fixed(stated.get(node, ""), card))}
    subnets = {interface.network for interface in fixed.values()} or {IPv4Network(f"10.10.{number}.0/24")}
    taken = [interface.ip for interface in fixed.values()]
    if len(subnets) > 1 or len(set(taken)) != len(taken):
        told = ", ".join(f"{node} {interface}" for node, interface in fixed.items())
        raise Problem(f"topology: fixed addresses that do not fit into one network {name}: {told}")
    subnet = subnets.pop()
    gateways = [gateway for node, card in members.items() for gateway in _fixed(stated.get(node, ""), card)[1:]]
    steward = next((g.ip for g in gateways if g.ip in subnet and g.ip not in taken), None) or _free(subnet, 1, taken)
    taken.append(steward)
    seats = {}
    for index, node in enumerate(nodes):
        if node in members:
            address = fixed[node].ip if node in fixed else _free(subnet, FIRST + index, taken)
            taken.append(address)
            seats[node] = Seat(f"52:54:00:10:{number:02x}:{FIRST + index:02x}", address)
    return Plan(subnet, steward, seats)


def _fixed(words: str, card: int) -> list[IPv4Interface]:
    """The address, and the gateway, that an image gives to one of its cards itself; nothing where it asks by DHCP."""
    kind, *rest = words.split() or [""]
    if kind != "static" or rest[0] != f"eth{card}":
        return []
    return [address for word in rest[1:] if isinstance(address := ip_interface(word), IPv4Interface)]


def _free(subnet: IPv4Network, wanted: int, taken: Sequence[IPv4Address]) -> IPv4Address:
    """The address with the number `wanted`, or another one that is free."""
    first = subnet.network_address + wanted
    found = next((a for a in (first, *subnet.hosts()) if a in subnet and a not in taken), None)
    if found is None or found == subnet.broadcast_address:
        raise Problem(f"topology: the network {subnet} has no address left")
    return found


def switches(plans: Mapping[str, Plan]) -> dict[str, Switch]:
    """A switch for each network, with a port for each of its machines, and its steward."""
    made = {}
    for number, (name, of) in enumerate(plans.items(), 1):
        table = {frame.mac(seat.mac): seat.address for seat in of.seats.values()}
        names = {guest: _names(guest, name, plans) for guest in of.seats}
        steward = Steward(frame.mac(f"52:54:00:10:{number:02x}:01"), Leases(of.subnet, of.steward, table), names)
        made[name] = Switch(name, steward, now=monotonic, epoch=time)
        for guest, seat in of.seats.items():
            made[name].join(guest, frame.mac(seat.mac))
    return made


def _names(guest: str, here: str, plans: Mapping[str, Plan]) -> Names:
    """Whom a machine can reach: its neighbours on all its networks, those on the network where it asks first."""
    names: dict[str, IPv4Address] = {}
    for network in sorted((name for name, of in plans.items() if guest in of.seats), key=lambda name: name != here):
        for neighbour, seat in plans[network].seats.items():
            names.setdefault(neighbour, seat.address)
            names[f"{neighbour}.{network}"] = seat.address
    return names


# --- their lives


def boot(
    nodes: Mapping[str, Node], artifacts: Mapping[str, Artifact], target: Target, *, key: Key, rig: Rig, store: Store
) -> Topology:
    """Start a machine for each node, all from `artifacts` (by definition), and return when all are ready."""
    made = {name: artifacts[node.definition] for name, node in nodes.items()}
    stated = {name: str(of.manifest.get("network", "")) for name, of in made.items()}

    @contextmanager
    def live(name: str, wires: tuple[Wire, ...], say: Say) -> Iterator[Guest]:
        own = replace(rig, wires=wires, say=say, fresh=False)
        with made[name].opened(key) as opened, target.start(opened, rig=own, store=store) as guest:
            if rig.channel and stated[name].startswith("dhcp "):
                await_lease(guest)
            yield guest

    return start(nodes, stated=stated, live=live, say=rig.say)


def start(nodes: Mapping[str, Node], *, stated: Mapping[str, str], live: Live, say: Say) -> Topology:
    """Start all machines and return when all are ready; where one fails, the others are stopped and its Problem raised.

    `live` gives a guest for a while: it is entered and left by the same thread.
    """
    plans = plan(nodes, stated)
    joined = switches(plans)
    cables = Cables(list(joined.values()))
    over, turn = Event(), Semaphore(AT_ONCE)
    lives: dict[str, _Life] = {}

    def stop() -> None:
        over.set()
        for of in lives.values():
            of.thread.join()
        cables.close()

    try:
        for name, node in nodes.items():
            wires = tuple(_wire(cables, joined[on], name, plans[on].seats[name].mac) for on in node.networks)
            lives[name] = _Life(partial(live, name, wires), turn, over, say)
        guests = _all_ready(lives)
    except BaseException:
        stop()
        raise
    networks = {}
    for name, switch in joined.items():
        cards = {guest: _card(name, nodes[guest], guests[guest]) for guest in switch.ports}
        networks[name] = Network(name, plans[name], switch, cards)
    for name, guest in guests.items():
        guest.facts["addresses"] = {on: networks[on].address(name) for on in nodes[name].networks}

    def stop_and_tell() -> None:
        stop()
        for of in lives.values():
            if of.fault:
                raise of.fault

    return Topology(guests, networks, stop_and_tell)


def _card(network: str, node: Node, guest: Guest) -> Callable[[bool], None]:
    return partial(guest.set_link, node.networks.index(network))


def _wire(cables: Cables, switch: Switch, name: str, mac: str) -> Wire:
    return Wire(mac, lambda: cables.plug(switch, name))


def _all_ready(lives: "Mapping[str, _Life]") -> dict[str, Guest]:
    done = until_one_fails([of.ready for of in lives.values()])
    for name, of in lives.items():
        error = of.ready.exception() if of.ready in done else None
        if isinstance(error, Problem):
            raise type(error)(f"{name}: {error.message}", error.hint) from error
        if error:
            raise error
    return {name: of.ready.result() for name, of in lives.items()}


class _Over(Exception):
    """Nobody waits for this machine any more."""


class _Life:
    """A machine from its start to its stop, in a thread of its own: what it starts dies with that (prctl(2))."""

    def __init__(self, begin: Callable[[Say], AbstractContextManager[Guest]], turn: Semaphore, over: Event, say: Say):
        self.ready: Future[Guest] = Future()
        self.fault: BaseException | None = None  # of its stop
        self._begin, self._turn, self._over, self._say = begin, turn, over, say
        self.thread = Thread(target=self._run, name="imagekit node", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                with self._turn:
                    guest = stack.enter_context(self._begin(self._tell))
                self.ready.set_result(guest)
                self._over.wait()
        except BaseException as error:
            if self.ready.done():
                self.fault = error
            else:
                self.ready.set_exception(error)

    def _tell(self, line: str) -> None:
        """A progress line of the machine; one that nobody waits for any more ends there."""
        if self._over.is_set():
            raise _Over
        self._say(line)


def await_lease(guest: Guest) -> None:
    """Wait until a guest that asks for its address has it: early boot does not wait for that."""
    deadline = monotonic() + LEASE_PATIENCE
    while b" network up\n" not in (events := guest.run(("cat", EVENTS)).stdout):
        if monotonic() > deadline:
            last = escape(events[-500:]).strip().rpartition("\n")[2]
            raise GuestProblem(f"it has no address after {LEASE_PATIENCE:g} s; its last event: {last or 'none'}")
        sleep(LOOK_AGAIN)
