"""Assets: where the files of packages lie that formats need beside the root, and what a licence says in a line."""

import re

import pytest

from imagekit import assets
from imagekit.errors import Problem
from imagekit.package import Package
from imagekit.tree import Tree, file

KERNEL = "/usr/lib/linux-image-6.1.0-9-arm64/broadcom"
FIRMWARE = "/usr/lib/raspi-firmware"
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: boot/*
License: Proprietary_1
 All rights reserved.
 .
 Redistribution in binary form is permitted
 if this \033[2J text is kept.

Files: other/*
License: MIT
 Do what you like.
"""


def package(**files: bytes) -> Package:
    entries = {path: file(data) for path, data in files.items()}
    return Package("raspi-firmware", "1", "all", "", Tree(entries).complete())


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (f"{KERNEL}/bcm2837-rpi-3-b.dtb", "/boot/raspi/bcm2837-rpi-3-b.dtb"),
        (f"{FIRMWARE}/bootcode.bin", "/boot/raspi/bootcode.bin"),
        (f"{FIRMWARE}/start4.elf", "/boot/raspi/start4.elf"),
        (f"{FIRMWARE}/fixup.dat", "/boot/raspi/fixup.dat"),
        (f"{FIRMWARE}/overlays/disable-bt.dtbo", "/boot/raspi/overlays/disable-bt.dtbo"),
        ("/usr/share/doc/raspi-firmware/copyright", "/boot/raspi/LICENCE.broadcom"),
        (f"{KERNEL}/stingray/bcm958742k.dtb", ""),
        (f"{KERNEL.replace('broadcom', 'allwinner')}/sun50i.dtb", ""),
        ("/usr/lib/firmware/brcm/brcmfmac43456-sdio.bin", ""),
    ],
)
def test_what_a_pi_needs(path: str, place: str) -> None:
    made = assets.tree(("raspi", "raspi-licence"), [package(**{path: b"bytes"})])
    assert [found for found in made.paths if made[found].kind == "file"] == ([place] if place else [])
    assert assets.packages(("raspi", "raspi-licence"), "aarch64") == ()  # the definition names the firmware


def test_an_unknown_asset() -> None:
    with pytest.raises(Problem, match="unknown asset 'raspy'"):
        assets.tree(("raspy",), [])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (COPYRIGHT, r": All rights reserved\. Redistribution in binary form is permitted if this \\x1b\[2J text is k"),
        (COPYRIGHT.replace("kept", "kept and " * 99), r"(kept|and) \.\.\.$"),
        ("Copyright 2006 somebody\n", "licence: Copyright 2006 somebody$"),
        ("", "licence: its package says nothing of it$"),
    ],
)  # fmt: skip
def test_a_licence_in_a_line(text: str, words: str) -> None:
    line = assets.licence(package(**{"/usr/share/doc/raspi-firmware/copyright": text.encode()} if text else {}))
    assert line.startswith("raspi-firmware 1 is not free software; naming it accepts its licence: ")
    assert re.search(words, line)
    assert "\n" not in line
    assert len(line) < 500


def test_who_takes_firmware() -> None:
    assert assets.take_firmware(("raspi",), "aarch64")
    assert not assets.take_firmware(("raspi",), "x86_64")
    assert not assets.take_firmware(("stub", "grub"), "x86_64")
