"""An appliance on one file that starts from a disc and from a USB stick, under BIOS and UEFI."""

import pytest

from imagekit import Image, Service, Text
from imagekit.checks.standard import test_boots_as_shipped, test_is_signed  # noqa: F401 - collected

image = Image(
    name="stick",
    version="1",
    kernel="debian:linux-image-cloud",
    files={"/srv/index.html": Text("from a stick\n")},
    services=(Service("web", "/usr/bin/busybox httpd -f -p 80 -h /srv", ready="http:80/"),),
    formats=("iso",),
)
FIRMWARE = {"x86_64": ("bios", "uefi"), "aarch64": ("uefi",)}


@pytest.mark.parametrize("media", ["usb"])
def test_starts_wherever_it_is_plugged_in(boot, arch, media):
    for firmware in FIRMWARE[arch]:
        with boot(firmware=firmware, media=media, channel=False) as guest:
            assert guest.http.get("/").text == "from a stick\n"
