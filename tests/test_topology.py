"""Several machines by name: who gets which address, what is refused, how they start and stop; then real guests."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import toys

from imagekit import topology
from imagekit.errors import Problem
from imagekit.guest import Console, Finished, Guest, GuestProblem
from imagekit.rig import Node, Wire
from imagekit.topology import Say

pytest_plugins = "pytester"

NODES = {
    "balancer": Node(networks=("outside", "inside")),
    "web-1": Node("web.py", networks=("inside",)),
    "client": Node("shell.py", networks=("outside",)),
}
DHCP = dict.fromkeys(NODES, "dhcp eth0")


def test_addresses_follow_from_the_names() -> None:
    plans = topology.plan(NODES, DHCP)
    assert {name: (str(of.subnet), str(of.steward)) for name, of in plans.items()} == {
        "outside": ("10.10.1.0/24", "10.10.1.1"),
        "inside": ("10.10.2.0/24", "10.10.2.1"),
    }
    assert plans["inside"].seats == {
        "balancer": ("52:54:00:10:02:0a", topology.IPv4Address("10.10.2.10")),
        "web-1": ("52:54:00:10:02:0b", topology.IPv4Address("10.10.2.11")),
    }
    assert plans == topology.plan(NODES, DHCP)


def test_each_is_told_whom_it_can_reach() -> None:
    names = {name: of.steward.names for name, of in topology.switches(topology.plan(NODES, DHCP)).items()}
    assert set(names["outside"]["client"]) == {"balancer", "client", "balancer.outside", "client.outside"}
    assert str(names["outside"]["balancer"]["web-1"]) == "10.10.2.11"  # wherever it asks
    assert str(names["outside"]["balancer"]["balancer"]) == "10.10.1.10"  # of two, the address on this network
    assert str(names["inside"]["balancer"]["balancer"]) == "10.10.2.10"


def test_a_network_is_that_of_a_fixed_address() -> None:
    stated = {**DHCP, "web-1": "static eth0 192.0.2.10/25 192.0.2.1", "client": "static eth7 10.9.8.7/8"}
    plans = topology.plan(NODES, stated)
    assert (str(plans["inside"].subnet), str(plans["inside"].steward)) == ("192.0.2.0/25", "192.0.2.1")
    assert str(plans["inside"].seats["web-1"].address) == "192.0.2.10"
    assert str(plans["inside"].seats["balancer"].address) not in ("192.0.2.10", "192.0.2.1")
    assert str(plans["outside"].seats["client"].address) == "10.10.1.12"


ONE = Node()
BAD = [
    ({}, {}, "0 machines on 0 networks"),
    ({"Web": ONE}, {}, "'Web' is no name"),
    ({"stop": ONE}, {}, "'stop' means something else"),
    ({"guests": ONE}, {}, "'guests' means something else"),
    ({"lan": ONE}, {}, "lan names a machine and a network"),
    ({"a": Node(networks=())}, {}, r"a is on \(\)"),
    ({"a": Node(networks=("x", "x"))}, {}, r"a is on \('x', 'x'\)"),
    ({f"a{n}": ONE for n in range(201)}, {}, "201 machines on 1 networks"),
    (
        {"a": ONE, "b": ONE},
        {"a": "static eth0 192.0.2.1/24", "b": "static eth0 192.0.3.1/24"},
        "do not fit(.|\n)*192.0.3",
    ),
    ({"a": ONE, "b": ONE}, {"a": "static eth0 192.0.2.1/24", "b": "static eth0 192.0.2.1/24"}, "do not fit"),
    ({"a": ONE, "b": ONE}, {"a": "static eth0 192.0.2.1/30"}, "192.0.2.0/30 has no address left"),
]


@pytest.mark.parametrize(("nodes", "stated", "words"), BAD)
def test_topologies_that_cannot_be(nodes: dict[str, Node], stated: dict[str, str], words: str) -> None:
    with pytest.raises(Problem, match=words):
        topology.plan(nodes, stated)


# --- lives, of made-up guests


class Stage:
    """Makes guests that do nothing, and writes down what becomes of them."""

    def __init__(self, **begin: Callable[[Say], None]) -> None:
        self.begin, self.log, self.wires = begin, list[str](), dict[str, tuple[Wire, ...]]()

    @contextmanager
    def live(self, name: str, wires: tuple[Wire, ...], say: Say) -> Iterator[Guest]:
        self.wires[name] = wires
        self.begin.get(name, lambda _: None)(say)
        self.log.append(f"{name} up")
        console = Console()
        console.feed(name.encode())
        try:
            yield Guest("x", "y", lambda argv, **_: Finished(argv, 0, name.encode(), b""), len, list, console, {})
        finally:
            self.log.append(f"{name} down")

    def start(self) -> topology.Topology:
        return topology.start(NODES, stated=DHCP, live=self.live, say=lambda _: None)


def switch_threads() -> int:
    return sum(thread.name == "imagekit switch" for thread in threading.enumerate())


def test_machines_and_networks_have_names_and_are_stopped_once() -> None:
    stage = Stage()
    with stage.start() as net:
        assert net.client.run("x").text == "client"
        assert net.web_1 is net["web-1"]
        assert net.client.facts["addresses"] == {"outside": "10.10.1.12"}
        assert [wire.mac for wire in stage.wires["balancer"]] == ["52:54:00:10:01:0a", "52:54:00:10:02:0a"]
        assert repr(net.inside) == "<network inside 10.10.2.0/24: balancer 10.10.2.10, web-1 10.10.2.11>"
        with stage.wires["client"][0].plug() as end:
            end.sendall(b"\0\0\0\x0e" + b"\xff" * 6 + b"\x52\x54\0\x10\1\x0c" + b"\x88\xb5")
            while not len(net.outside.capture):
                pass
        assert net.evidence()["web-1.console"] == b"web-1"
        assert len(net.evidence()["outside.pcap"]) == 24 + 16 + 14
        assert "down" not in " ".join(stage.log)
    net.stop()
    assert sorted(line for line in stage.log if "down" in line) == ["balancer down", "client down", "web-1 down"]
    assert switch_threads() == 0


def test_unknown_names_list_the_known_ones() -> None:
    with Stage().start() as net:
        with pytest.raises(Problem, match=r"unknown machine or network 'clinet'\n(.*)'client'(.*)known: balancer"):
            _ = net.clinet
        assert not hasattr(net, "nothing")
        with pytest.raises(Problem, match=r"unknown guest of the network inside 'client'(.|\n)*known: balancer, web-1"):
            net.inside.down("client")


def fall(_: Say) -> None:
    raise GuestProblem("not ready\nguest| oops", "$ qemu")


def break_down(_: Say) -> None:
    raise ZeroDivisionError("web-1 it is")


@pytest.mark.parametrize(
    ("end", "kind", "words"),
    [
        (fall, GuestProblem, r"web-1: not ready\nguest\| oops\n  hint: \$ qemu"),
        (break_down, ZeroDivisionError, "^web-1 it is$"),
    ],
)
def test_one_that_fails_stops_the_rest(end: Callable[[Say], None], kind: type[Exception], words: str) -> None:
    others = threading.Event()

    def wait_for_ever(say: Say) -> None:
        others.set()
        while True:  # as a machine that boots does, until it is told that nobody waits
            say("client: waiting")

    def fail_later(say: Say) -> None:
        others.wait()
        end(say)

    stage = Stage(**{"client": wait_for_ever, "web-1": fail_later})
    with pytest.raises(kind, match=words):
        stage.start()
    assert "client up" not in stage.log
    assert stage.log.count("balancer up") == stage.log.count("balancer down")
    assert switch_threads() == 0


def test_a_stop_that_fails_is_told_and_the_others_are_stopped() -> None:
    stage = Stage()

    @contextmanager
    def live(name: str, wires: tuple[Wire, ...], say: Say) -> Iterator[Guest]:
        with stage.live(name, wires, say) as guest:
            yield guest
        if name == "balancer":
            raise GuestProblem("it would not go")

    net = topology.start(NODES, stated=DHCP, live=live, say=lambda _: None)
    with pytest.raises(GuestProblem, match="it would not go"):
        net.stop()
    assert len(stage.log) == 6


def test_the_fixture_builds_each_definition_and_stops_all(project: pytest.Pytester) -> None:
    toys.write(project, "images/other.py", toys.TOY.replace('"toy"', '"other"'))
    tests = """
import pytest
from imagekit import Node

@pytest.fixture(scope="module")
def net(topology):
    return topology({"a": Node(), "b": Node("other.py"), "c": Node("other.py")})

def test_first(net): assert net.b.run("echo hello").text == "echo hello"
def test_second(net, arch): assert net.a.arch == arch
def test_third(topology): topology({"a": Node("none.py")})
"""
    toys.write(project, "images/toy.py", toys.TOY + tests)
    result = project.runpytest_subprocess("images", "--arch", "x86_64", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*cannot read the definition *none.py*"])
    log = toys.log(project)
    assert sorted(line.split()[:2] for line in log if line.startswith(("start", "stop"))) == [
        [what, name] for what in ("start", "stop") for name in ("other", "other", "toy")
    ]


# --- real guests: images/balancer.py has more of them

REAL = """
import pytest
from imagekit import DOCS, Image, Node, Static, Service, Text

image = Image("shell", version="1", kernel="debian:linux-image-cloud", without=DOCS, network=Static("192.0.2.9/24"),
              files={"/srv/index.html": Text("hello")}, formats=("kernel_initrd", "tar"),
              services=(Service("httpd", "/usr/bin/busybox httpd -f -p 80 -h /srv", ready="http:80/index.html"),))

@pytest.fixture(scope="module")
def net(topology):
    return topology({"server": Node(), "client": Node("other.py")})

def test_static_and_dhcp_meet(net):
    assert net.client.facts["addresses"] == {"lan": "192.0.2.11"}
    assert net.client.run("wget -qO- http://server/").check().text == "hello"
    assert net.client.run("nslookup nobody").code == 1
    assert net.client.run("ping -c 1 192.0.2.1").code == 0

def test_a_link_is_cut_and_joined_again(net):
    net.lan.down("server")
    for _ in range(500):  # the kernel hears it by an interrupt
        if net.server.run("cat /sys/class/net/eth0/carrier").text == "0":
            break
    else:
        pytest.fail("the kernel sees a carrier")
    assert net.client.run("ping -c 2 -W 1 server").code == 1
    net.lan.up("server")
    assert net.client.run("ping -c 2 -W 5 server").code == 0
    net.lan.loss("client", 1)
    assert net.client.run("ping -c 2 -W 1 192.0.2.9").code == 1
    net.lan.loss("client", 0)
    net.lan.delay("client", 0.15)
    answer = net.client.run("ping -c 2 192.0.2.9").check().text
    assert float(answer.rpartition(" = ")[2].split("/")[0]) >= 300
    assert any(b"GET / HTTP/1.1" in seen.data for seen in net.lan.capture.frames())

def test_a_machine_that_starts_again_is_there_again(net):
    net.lan.delay("client", 0)
    net.server.power.cut()
    assert net.client.run("ping -c 1 -W 1 192.0.2.9").code == 1
    net.server.power.on()
    net.server.wait_ready()
    assert net.client.run("wget -qO- http://server/").check().text == "hello"

def test_the_host_is_not_on_it(net):
    with pytest.raises(Exception, match="the machine is on a private network, which the host is not on"):
        net.server.http.get("/")
"""


def test_real_guests_find_each_other(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("IMAGEKIT_CACHE", toys.CACHE)  # pytester's HOME is empty: all would be fetched anew
    monkeypatch.setenv("IMAGEKIT_KEY", str(toys.HERE / "fixtures/keys/test.key"))
    shell = toys.HERE / "images/shell.py"
    for name, text in (("server", REAL), ("other", shell.read_text().partition("def test_")[0])):
        toys.write(pytester, f"{name}.py", text)
        Path(pytester.path, f"{name}.lock").write_text(shell.with_suffix(".lock").read_text())
    result = pytester.runpytest_subprocess("server.py", "--arch", "aarch64", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=4)
