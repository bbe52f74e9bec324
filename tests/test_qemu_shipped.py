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
from imagekit.guest import Guest, GuestProblem, Rig
from imagekit.stores.directory import open_store

HOME = Path(__file__).parent.parent
FORMATS = HOME / "images/formats.py"
SIGNER = key.read(HOME / "fixtures/keys/test.key")
IMAGE = definition.load(FORMATS)
WORDS = "written in every format\n"


def made(arch: str, format: str) -> Artifact:
    """The example in a format; what is not in the cache is fetched."""
    lock = build.read_lock(FORMATS)
    return build.artifact(IMAGE, folder=FORMATS.parent, lock=lock, arch=arch, format=format, key=SIGNER,
                          store=open_store())  # fmt: skip


@contextmanager
def started(target: str, format: str, **options: Any) -> Iterator[Guest]:
    """A machine of a target, stopped at the end."""
    plug, store = plugs.load("targets", target), open_store()
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"), **options)
    with made(plug.arches[0], format).opened(SIGNER) as opened, plug.start(opened, rig=rig, store=store) as guest:
        yield guest


@pytest.mark.parametrize(("target", "format"), [("qemu_x86_64_bios", "raw_hybrid"), ("qemu_aarch64_uefi", "raw_efi")])
def test_firmware_starts_a_disk_as_it_is_shipped(target: str, format: str) -> None:
    with started(target, format) as shipped:
        assert shipped.http.get("/").text == WORDS
        standard.test_boots_as_shipped(IMAGE, shipped)
        with pytest.raises(GuestProblem, match=r"true: (bios|uefi) starts this image as it is shipped, with no agent"):
            shipped.run("true")
        shipped.power.cut()
        assert not shipped.is_alive()
        shipped.power.on()
        shipped.wait_ready()
        assert network.unanswered(IMAGE, shipped) == {}
        assert shipped.facts["boots"] == ["booted", "power on"]
        assert "-kernel" not in shipped.facts["by_hand"]


@pytest.mark.parametrize(
    ("target", "firmware", "media"),
    [("qemu_x86_64", "bios", "cd"), ("qemu_x86_64", "uefi", "usb"), ("qemu_aarch64", "uefi", "cd")],
)
def test_an_iso_starts_from_a_disc_and_from_a_stick(target: str, firmware: str, media: str) -> None:
    with started(target, "iso", firmware=firmware, media=media, channel=False) as shipped:
        assert shipped.http.get("/").text == WORDS


@pytest.mark.parametrize(
    ("target", "format"),
    [("qemu_x86_64", "raw_bios"), ("qemu_aarch64", "raw_efi"), ("qemu_x86_64", "kernel_squashfs"),
     ("qemu_x86_64", "iso"), ("qemu_x86_64", "uki")],
)  # fmt: skip
def test_the_kernel_is_found_on_a_disk_and_gets_the_agent(target: str, format: str) -> None:
    with started(target, format) as guest:
        assert guest.http.get("/").text == WORDS
        has_disk = format.startswith(("raw", "kernel"))
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
    with plugs.load("targets", "qemu_x86_64").resume(tmp_path / "saved", rig=Rig(tools="tree"), store=store) as guest:
        assert guest.read("/root/note") == b"here\n"
        assert guest.run("cat /srv/index.html").text == WORDS.strip()


def test_a_boot_from_a_disk_is_measured() -> None:
    with made("aarch64", "raw_efi").opened(SIGNER) as opened:
        boot = plugs.load("targets", "qemu_aarch64").measure(opened, rig=Rig(tools="tree"), store=open_store())
    assert boot.clock == "executed"
    assert len(boot.runs) == 3
    assert len(boot.about["kernel"]) == 16
    assert boot.spread < 0.01
