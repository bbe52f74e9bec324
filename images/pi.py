"""A web appliance on a card for the Raspberry Pi 3 and one for the 4: its root is read-only, its changes are kept."""

import pytest

from imagekit import DOCS, Directory, File, Image, Layout, Service, User
from imagekit.checks.network import listening
from imagekit.checks.oracles import complaints
from imagekit.checks.standard import (  # noqa: F401 - collected
    test_is_signed,
    test_nothing_failed,
    test_rebuilds_identically,
)

image = Image(
    name="pi",
    version="1",
    packages=("debian:nginx-light",),
    kernel="debian:linux-image",  # the generic one: the cloud kernel knows no Raspberry Pi
    firmware=(
        "debian:raspi-firmware",
    ),  # is not free; by naming it we accept its licence, which is on the card as well
    without=(
        *DOCS,
        "debconf",
        "iproute2",
        "gcc-12-base",
        "libnginx-mod-http-echo",
        "/usr/lib/*/gconv",
        "/usr/lib/*/libm.so.6",
        "/usr/lib/*/libmvec.so.1",
        "/usr/lib/*/libnsl.so.1",
        "/usr/lib/*/engines-3",
        "/usr/lib/*/ossl-modules",
    ),
    users={"www-data": User(uid=33, home="/var/www")},
    files={
        "/etc/nginx/nginx.conf": File("web/nginx.conf"),
        "/var/www/html": File("web/html"),
        "/var/lib/nginx": Directory(owner="www-data", group="www-data"),
    },
    services=(Service("nginx", "/usr/sbin/nginx -g 'daemon off;'", ready="http:80/"),),
    formats=("rpi3", "rpi4"),
    arches=("aarch64",),
    disk=Layout(root="squashfs", changes="disk"),
)


def test_is_the_board_that_it_is_for(guest):
    model = guest.read("/proc/device-tree/model").decode()
    assert model.startswith("Raspberry Pi ")
    assert listening(guest) == {80}


def test_the_root_is_on_the_card(guest):
    mounts = guest.read("/proc/mounts").decode()
    assert " /run/imagekit/root squashfs ro," in mounts
    assert " /run/imagekit/changes ext4 rw," in mounts


@pytest.mark.sample("rpi3", "rpi4")
def test_answers(shipped):
    assert shipped.http.get("/").status == 200


@pytest.mark.sample("rpi3")
def test_what_is_written_outlives_a_power_cut(fresh):
    fresh.write("/var/www/html/index.html", b"written on a Pi\n")
    fresh.run("sync").check()
    fresh.power.cut()
    fresh.power.on()
    fresh.wait_ready()
    assert fresh.http.get("/").text == "written on a Pi\n"


def test_independent_programs_find_nothing(artifact):
    assert complaints(artifact) == []
