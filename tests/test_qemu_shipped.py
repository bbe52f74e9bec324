"""Disks, for real: as they are shipped, started by their firmware; and with their kernel found and the agent added."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagekit import build, definition, key, plugs
from imagekit.artifact import Artifact
from imagekit.checks import network, standard
from imagekit.errors import Problem
from imagekit.guest import Guest, GuestProblem, Rig
from imagekit.stores.directory import open_store

HOME = Path(__file__).parent.parent
FORMATS = HOME / "images/formats.py"
SIGNER = key.read(HOME / "fixtures/keys/test.key")
IMAGE = definition.load(FORMATS)
WORDS = "written in every format\n"
TOOLS = os.environ.get("IMAGEKIT_TOOLS", "auto")


def made(arch: str, format: str) -> Artifact:
    """The example in a format; what is not in the cache is fetched."""
    lock = build.read_lock(FORMATS)
    return build.artifact(IMAGE, folder=FORMATS.parent, lock=lock, arch=arch, format=format, key=SIGNER,
                          store=open_store())  # fmt: skip


@contextmanager
def started(target: str, format: str, **options: Any) -> Iterator[Guest]:
    """A machine of a target, stopped at the end."""
    plug, store = plugs.load("targets", target), open_store()
    rig = Rig(tools=TOOLS, **options)
    with made(plug.arches[0], format).opened(SIGNER) as opened, plug.start(opened, rig=rig, store=store) as guest:
        yield guest


def test_firmware_starts_a_disk_as_it_is_shipped() -> None:  # x86_64: images/formats.py
    with started("qemu_aarch64_uefi", "raw_efi") as shipped:
        assert shipped.http.get("/").text == WORDS
        standard.test_boots_as_shipped(IMAGE, shipped)
        with pytest.raises(GuestProblem, match=r"true: uefi starts this image as it is shipped, with no agent"):
            shipped.run("true")
        shipped.power.cut()
        assert not shipped.is_alive()
        shipped.power.on()
        shipped.wait_ready()
        assert network.unanswered(IMAGE, shipped) == {}
        assert shipped.facts["boots"] == ["booted", "power on"]
        assert "-kernel" not in shipped.facts["by_hand"]


@pytest.mark.parametrize(("target", "firmware"), [("qemu_x86_64", "bios"), ("qemu_aarch64", "uefi")])
def test_an_iso_is_a_disc_unless_something_else_is_said(target: str, firmware: str) -> None:
    with started(target, "iso", firmware=firmware, channel=False) as shipped:
        assert "scsi-cd" in shipped.facts["by_hand"]
        assert shipped.http.get("/").text == WORDS


@pytest.mark.parametrize(
    ("target", "format"),
    [("qemu_x86_64", "raw_bios"), ("qemu_x86_64", "kernel_squashfs"), ("qemu_x86_64", "iso"),
     *[("qemu_aarch64", format) for format in ("raw_efi", "uki", "tar_kernel_initrd", "gcp", "vmdk")]],
)  # fmt: skip
def test_the_kernel_is_found_on_a_disk_and_gets_the_agent(target: str, format: str) -> None:
    with started(target, format) as guest:
        assert guest.http.get("/").text == WORDS
        assert guest.facts["by_hand"].startswith("imagekit boot /") is not format.startswith("kernel")
        has_disk = format.startswith(("raw", "kernel", "gcp", "vmdk"))
        assert guest.run("test -b /dev/vda").code == (0 if has_disk else 1)
        assert (" /run/imagekit/root squashfs ro," in guest.run("cat /proc/mounts").text) is has_disk
    assert guest.facts["stopped"] == "the guest powered off"


def test_a_disk_is_restored_from_a_template(tmp_path: Path) -> None:
    with started("qemu_x86_64", "raw_efi", fresh=True):
        pass
    with started("qemu_x86_64", "raw_efi", fresh=True) as guest:
        assert guest.facts["fresh"] == "restored"
        assert guest.run("cat /srv/index.html").text == WORDS.strip()
        guest.run(["/bin/sh", "-c", "echo here > /root/note; echo 3 > /proc/sys/vm/drop_caches"]).check()
        guest.save(tmp_path / "saved")
    store = open_store()
    with plugs.load("targets", "qemu_x86_64").resume(tmp_path / "saved", rig=Rig(tools=TOOLS), store=store) as guest:
        assert guest.read("/root/note") == b"here\n"
        assert guest.run("cat /srv/index.html").text == WORDS.strip()


def test_a_boot_from_a_disk_is_measured() -> None:
    with made("aarch64", "raw_efi").opened(SIGNER) as opened:
        boot = plugs.load("targets", "qemu_aarch64").measure(opened, rig=Rig(tools=TOOLS), store=open_store())
    assert boot.clock == "executed"
    assert len(boot.runs) == 3
    assert len(boot.about["kernel"]) == 16
    assert boot.spread < 0.01


BAD: list[tuple[dict[str, Any], str]] = [
    ({"image_size": "1 MiB"}, r"image_size='1 MiB': the image's disk has \d+ bytes, and none can be taken away"),
    ({"image_size": "much"}, "the disk image: 'much' is no size for one"),
    ({"memory": 32}, r"image 'formats' needs \d+ MiB to boot as raw_efi, and the machine has 32"),
    ({"firmware": "uefi"}, "raw_efi: an image that firmware starts cannot be given the agent"),
    ({"firmware": "uefi", "channel": False, "cmdline": "debug"}, "raw_efi: the kernel's arguments are in the image"),
    ({"media": "floppy"}, r"unknown medium 'floppy'\n.*known: cd, disk, usb"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_what_cannot_be_started_so(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words), started("qemu_x86_64", "raw_efi", **options):
        pass
