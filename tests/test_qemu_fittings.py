"""Firmware and displays: what cannot be, and real machines with them."""

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_rig import Start
from test_qemu_boot import boot, image
from test_qemu_saved import resume

from imagekit.errors import Problem
from imagekit.guest import GuestProblem, Rig
from imagekit.targets import _qemu_fittings, _qemu_plan
from imagekit.targets._qemu_command import AARCH64, X86_64

ARCHES = ("x86_64", "aarch64")


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """A PNG of three bytes per pixel, unpacked by its own rules."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, rest = {}, png[8:]
    while rest:
        size, kind = struct.unpack(">I4s", rest[:8])
        chunks[kind] = rest[8 : 8 + size]
        assert struct.unpack(">I", rest[8 + size : 12 + size])[0] == zlib.crc32(rest[4 : 8 + size])
        rest = rest[12 + size :]
    width, height, depth, colour, *_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, colour, list(chunks)) == (8, 2, [b"IHDR", b"IDAT", b"IEND"])
    lines = zlib.decompress(chunks[b"IDAT"])
    rows = [lines[at : at + width * 3 + 1] for at in range(0, len(lines), width * 3 + 1)]
    assert all(row[0] == 0 for row in rows)
    return width, height, b"".join(row[1:] for row in rows)


def test_a_picture_becomes_png() -> None:
    colours = bytes(range(18))
    assert pixels(_qemu_fittings.png(b"P6\n3 2\n255\n" + colours)) == (3, 2, colours)


@pytest.mark.parametrize("ppm", [b"", b"P5\n3 2\n255\n", b"P6\n3 2\n255\n" + bytes(17), b"P6\n0 0\n255\n"])
def test_what_is_no_picture_is_told(ppm: bytes) -> None:
    with pytest.raises(GuestProblem, match="picture of the display"):
        _qemu_fittings.png(ppm)


BAD = [
    (Rig(firmware="efi"), X86_64, "unknown firmware 'efi'"),
    (Rig(firmware="bios"), AARCH64, "there is no BIOS for aarch64"),
    (Rig(firmware="uefi", memory=128), X86_64, "UEFI wants 256 MiB of memory, not 128"),
]


@pytest.mark.parametrize(("rig", "board", "words"), BAD)
def test_firmware_that_cannot_be(rig: Rig, board: object, words: str) -> None:
    with pytest.raises(Problem, match=words):
        _qemu_fittings.wanted(rig, board)  # type: ignore[arg-type]


@pytest.mark.parametrize(("format", "firmware"), [("raw_bios", "uefi"), ("raw_efi", "bios"), ("iso_efi", "bios")])
def test_firmware_that_a_format_is_not_made_for(format: str, firmware: str) -> None:
    opened = SimpleNamespace(artifact=SimpleNamespace(format=format))
    with pytest.raises(Problem, match=f"{format} is not started by firmware '{firmware}'") as told:
        _qemu_plan._check_firmware(opened, Rig(firmware=firmware))  # type: ignore[arg-type]
    assert told.value.hint == f"it is made for: {'uefi' if firmware == 'bios' else 'bios'}"


def test_without_a_display_there_is_no_picture(start: Start) -> None:
    with pytest.raises(GuestProblem, match="has no display to take a picture of"):
        start("good").screenshot()


@pytest.mark.parametrize("arch", ARCHES)
def test_uefi_boots_and_is_restored_and_saved(arch: str, tmp_path: Path) -> None:
    made = image(network="none")
    with boot(made, arch, firmware="uefi", display=True, fresh=True) as guest:
        assert guest.facts["fresh"] == "restored"
        assert guest.run("ls /sys/firmware/efi").code == 0
        width, height, shown = pixels(guest.screenshot())
        assert len(shown) == width * height * 3 > 0
        guest.save(tmp_path / "saved")
    with resume(tmp_path / "saved", arch) as guest:
        guest.power.cut()
        guest.power.on()
        guest.wait_ready()
        assert guest.run("ls /sys/firmware/efi").code == 0


def test_a_bios_is_what_starts_a_kernel_of_x86_64_anyway() -> None:
    with boot(image(network="none"), "x86_64", firmware="bios", display=True) as guest:
        assert guest.run("ls /sys/firmware/efi").code != 0
        _, _, shown = pixels(guest.screenshot())
        assert any(shown)  # SeaBIOS and the kernel's loader have written on it
