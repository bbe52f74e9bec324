"""Every format there is, from one tree: each written, read by an independent tool, and booted until it answers."""

import pytest

from imagekit import Image, Layout, Service, Text
from imagekit.checks.oracles import complaints
from imagekit.checks.standard import test_is_signed, test_rebuilds_identically  # noqa: F401 - collected

image = Image(
    name="formats",
    version="1",
    kernel="debian:linux-image-cloud",
    files={"/srv/index.html": Text("written in every format\n")},
    services=(Service("web", "/usr/bin/busybox httpd -f -p 80 -h /srv", ready="http:80/"),),
    formats=(
        "tar",
        "oci",
        "docker",
        "tar_kernel_initrd",
        "kernel_initrd",
        "uki",
        "kernel_squashfs",
        "kernel_erofs",
        "kernel_ext4",
        "raw_efi",
        "raw_bios",
        "raw_hybrid",
        "iso",
        "iso_bios",
        "iso_efi",
        "qcow2_bios",
        "qcow2_efi",
        "vhd",
        "vhd_dynamic",
        "vhdx",
        "vmdk",
        "ova",
        "aws",
        "gcp",
        "azure",
    ),
    disk=Layout(root="squashfs"),
)


@pytest.mark.sample("raw_hybrid", "raw_efi")
def test_answers(shipped):
    assert shipped.http.get("/").text == "written in every format\n"


def test_independent_programs_find_nothing(artifact):
    assert complaints(artifact) == []


def test_answers_in_a_namespace(sandbox):
    asked = b"GET / HTTP/1.0\r\n\r\n"
    said = sandbox.run("/usr/bin/busybox httpd -i -h /srv", input=asked).check().stdout
    assert b" 200 OK\r\n" in said
    assert said.endswith(b"\r\n\r\nwritten in every format\n")
