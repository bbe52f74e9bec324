"""An appliance whose root lies on its disk, read-only, and whose changes are kept on a partition that grows with it."""

from imagekit import Image, Layout, Service, Text
from imagekit.checks.standard import test_is_signed, test_nothing_failed  # noqa: F401 - collected

image = Image(
    name="kept",
    version="1",
    kernel="debian:linux-image-cloud",
    files={"/srv/index.html": Text("0\n")},
    services=(Service("web", "/usr/bin/busybox httpd -f -p 80 -h /srv", ready="http:80/"),),
    formats=("raw_efi",),
    disk=Layout(root="erofs", changes="disk"),
)


def test_the_root_is_on_the_disk(guest):
    mounts = guest.read("/proc/mounts").decode()
    assert " / overlay rw," in mounts
    assert " /run/imagekit/root erofs ro," in mounts
    assert " /run/imagekit/changes ext4 rw," in mounts


def test_what_is_written_outlives_a_power_cut(fresh):
    fresh.write("/srv/index.html", b"1\n")
    fresh.run("sync").check()
    fresh.power.cut()
    fresh.power.on()
    fresh.wait_ready()
    assert fresh.http.get("/").text == "1\n"


def test_the_changes_grow_with_the_disk(boot):
    guest = boot(image_size="1 GiB")
    blocks = int(guest.run("df -k /").check().text.splitlines()[-1].split()[1])
    assert blocks > 900 << 10, "nearly all of the disk, where 16 MiB were shipped"


def test_serves_as_it_is_shipped(shipped):
    assert shipped.http.get("/").text == "0\n"
