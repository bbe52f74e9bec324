"""The agent in real machines, on both architectures: health, files, waiting, and what a hostile guest may try."""

from collections.abc import Iterator

import pytest
from test_qemu_boot import boot, image

from imagekit.guest import Guest
from imagekit.image import Service, Text

HTTPD = Service("httpd", "/usr/bin/busybox httpd -f -p 80 -h /srv", ready="http:80/index.html")
DYING = Service("dying", "/bin/sh -c 'sleep 1; exit 3'", restart="never")


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    made = image(network="dhcp", services=(HTTPD, DYING), files={"/srv/index.html": Text("hello\n")})
    with boot(made, request.param) as started:
        yield started


def test_health_is_that_of_the_guest(guest: Guest) -> None:
    health = guest.health()
    assert (health.taint, health.taints, health.oom_kills) == (0, (), 0)
    assert health.boot_id == guest.run("cat /proc/sys/kernel/random/boot_id").text
    assert 0 < health.memory_available < health.memory < 256 << 20
    assert 1 < health.processes < 20
    assert guest.facts["boot_seconds"] < health.uptime < float(guest.run("cat /proc/uptime").text.split()[0]) + 0.01
    httpd = health.services["httpd"]
    assert httpd.state == "ready"
    assert guest.run(f"cat /proc/{httpd.pid}/comm").text == "busybox"
    guest.run("mkdir -p /mnt/ro").check()
    guest.run("mount -t tmpfs -o ro tmpfs /mnt/ro").check()
    assert "/mnt/ro" in set(guest.health().read_only) - set(health.read_only)
    guest.run("umount /mnt/ro").check()


def test_a_service_that_ended_is_told(guest: Guest) -> None:
    script = "while ! grep -q 'service failed dying' /run/imagekit/events; do usleep 10000; done"
    guest.run(["/bin/sh", "-c", script]).check()
    state = guest.services()["dying"]
    assert (state.state, state.code, state.pid) == ("failed", 3, None)
    assert [failed.name for failed in guest.health().failed] == ["dying"]
