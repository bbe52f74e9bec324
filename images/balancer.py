"""A load balancer between two networks: clients on the one never see the servers on the other."""

import pytest

from imagekit import DOCS, Budget, Directory, File, Image, Node, Service, Step, User
from imagekit.checks.network import listening
from imagekit.checks.standard import *  # noqa: F403 - ready-made tests: within budget, signed, boots, rebuilds identically

image = Image(
    name="balancer",
    version="1",
    packages=("debian:nginx-light",),
    kernel="debian:linux-image-cloud",
    without=(
        *DOCS,
        "debconf",  # asks questions; nobody is there to answer
        "iproute2",  # busybox has ip
        "gcc-12-base",
        "libnginx-mod-http-echo",
        "/usr/lib/*/gconv",  # character set conversions
        "/usr/lib/*/libm.so.6",  # mathematics
        "/usr/lib/*/libmvec.so.1",
        "/usr/lib/*/libnsl.so.1",  # NIS
        "/usr/lib/*/engines-3",  # hardware for OpenSSL that is not there
        "/usr/lib/*/ossl-modules",
    ),
    users={"www-data": User(uid=33, home="/var/www")},
    files={
        "/etc/nginx/nginx.conf": File("balancer/nginx.conf"),
        "/usr/lib/balancer/find-servers": File("balancer/find-servers"),
        "/var/lib/nginx": Directory(owner="www-data", group="www-data"),
    },
    onboot=(Step("find-servers", "/usr/lib/balancer/find-servers"),),
    services=(Service("nginx", "/usr/sbin/nginx -g 'daemon off;'", ready="http:80/health"),),
    formats=("kernel_initrd", "tar"),
    arches=("x86_64", "aarch64"),
    budget=Budget(size="40 MiB", boot="4.2 s"),  # virtual seconds, the same on any host
)


@pytest.fixture(scope="module")
def net(topology):
    """Two servers inside, a client outside, and the balancer on both networks."""
    return topology(
        {
            "balancer": Node(networks=("outside", "inside")),
            "web-1": Node("web.py", networks=("inside",)),
            "web-2": Node("web.py", networks=("inside",)),
            "client": Node("shell.py", networks=("outside",)),
        }
    )


def served_by(net, balancer="balancer", *, requests=4):
    """Which servers answered a client's requests, in turn."""
    answers = [net.client.run(f"wget -S -qO- http://{balancer}/").check() for _ in range(requests)]
    assert all("imagekit" in answer.text for answer in answers)
    found = [line.split()[1] for answer in answers for line in answer.stderr.splitlines() if b"X-Served-By" in line]
    return [address.decode() for address in found]


def test_alone_it_has_nobody_to_ask(guest):
    assert guest.http.get("/health").status == 200
    assert guest.http.get("/").status == 502
    assert listening(guest) == {80}


def test_servers_take_turns(net):
    addresses = {f"{net.inside.address(name)}:80" for name in ("web-1", "web-2")}
    assert set(served_by(net)) == addresses


def test_a_server_that_is_cut_off_is_passed_over_and_taken_back(net):
    net.inside.down("web-1")
    assert f"{net.inside.address('web-1')}:80" not in served_by(net)[-2:]  # the first may have tried it
    net.inside.up("web-1")
    back = f"X-Served-By: {net.inside.address('web-1')}:80"
    net.client.expect(f"command:wget -S -qO- http://balancer/ 2>&1 | grep -q '{back}'")


def test_a_bad_line_loses_no_answer(net):
    net.outside.loss("client", 0.1)
    net.outside.delay("client", 0.02)
    try:
        assert len(served_by(net, net.outside.address("balancer"), requests=2)) == 2
    finally:
        net.outside.loss("client", 0)
        net.outside.delay("client", 0)


def test_clients_never_see_the_servers(net):
    assert net.client.run("nslookup web-1").code == 1
    assert net.client.run(["ping", "-c", "1", "-W", "1", net.inside.address("web-1")]).code != 0
    servers = {frame.data[26:30] for frame in net.outside.capture.frames() if frame.data[12:14] == b"\x08\0"}
    assert servers <= {b"\0\0\0\0", *(bytes(map(int, a.split("."))) for a in addresses_outside(net))}


def addresses_outside(net):
    """Who speaks on the outer network: its steward, the balancer, the client."""
    return [str(net.outside.subnet[1]), net.outside.address("balancer"), net.outside.address("client")]
