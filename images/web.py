"""A web appliance: nginx serves one page on port 80, wherever it is booted."""

import pytest

from imagekit import DOCS, Budget, Directory, File, Image, Service, User
from imagekit.checks.network import listening
from imagekit.checks.services import failed
from imagekit.checks.standard import *  # noqa: F403 - ready-made tests: within budget, signed, boots, rebuilds identically

image = Image(
    name="web",
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
        "/etc/nginx/nginx.conf": File("web/nginx.conf"),
        "/var/www/html": File("web/html"),
        "/var/lib/nginx": Directory(owner="www-data", group="www-data"),
    },
    services=(Service("nginx", "/usr/sbin/nginx -g 'daemon off;'", ready="http:80/"),),
    formats=("kernel_initrd", "tar"),
    arches=("x86_64", "aarch64"),
    budget=Budget(size="40 MiB", boot="4.2 s"),  # virtual seconds, the same on any host
)


def test_has_no_package_manager(tree):
    assert "/usr/bin/dpkg" not in tree


def test_serves_its_page(guest):
    answer = guest.http.get("/")
    assert answer.status == 200
    assert "imagekit" in answer.text


def test_opens_port_80_and_nothing_else(guest):
    assert not failed(guest)
    assert listening(guest) == {80}


def test_is_there_when_it_says_so(guest):
    guest.expect("http:80/", by="nginx")  # at once given up if nginx failed
    guest.expect("not tcp:443")


def test_configuration_is_valid(system):  # in a booted machine, and in the tree alone
    system.run("/usr/sbin/nginx -t").check()


def test_survives_a_power_cut(fresh):
    fresh.power.cut()
    fresh.power.on()
    fresh.wait_ready()
    assert fresh.http.get("/").status == 200


def test_has_all_its_libraries(sandbox):
    assert b"nginx/1." in sandbox.run("/usr/sbin/nginx -v").check().stderr


@pytest.mark.allows("service")  # whoever comes after this test gets another machine
def test_nginx_is_started_again(guest):
    before = guest.read("/run/nginx.pid").decode().strip()
    guest.run(["kill", before]).check()
    guest.expect(f"command:[ -s /run/nginx.pid ] && ! grep -qx {before} /run/nginx.pid")
    guest.expect("http:80/")
