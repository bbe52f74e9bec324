"""Assets: what formats take of packages that are no part of the root, as files below /boot of the Tree.

    /boot/stub            the UEFI stub of systemd, which a UKI begins with
    /boot/loader          systemd-boot, which chooses among UKIs
    /boot/grub/           GRUB's modules and boot sectors for BIOS
    /boot/raspi/          firmware of the Raspberry Pi with its licence, device trees and overlays

A format names the assets that it needs; their packages are pinned in the image's lock for the image's architecture,
each taken alone, without what it depends on. Firmware that is not free is no asset's own package: a definition names
it, and by that accepts its licence, which `licence` tells in a line.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from imagekit.console import escape
from imagekit.errors import unknown
from imagekit.package import Package
from imagekit.tree import Entry, Tree, directory

LICENCE = re.compile(r"^License: [^\n]*\n((?:[ \t][^\n]*\n?)+)", re.MULTILINE)  # Debian's copyright-format 1.0
LICENCE_BEGIN = 300  # characters


class Asset(NamedTuple):
    """Files of packages that a format needs beside the root."""

    packages: dict[str, tuple[str, ...]]  # architecture -> names
    files: str  # a pattern of their paths
    place: str  # below /boot; with {} for what the pattern has in brackets
    takes_firmware: bool = False  # whether the definition names more packages, which are not free


ASSETS = {
    "stub": Asset(
        {"x86_64": ("systemd-boot-efi",), "aarch64": ("systemd-boot-efi",)},
        r"/usr/lib/systemd/boot/efi/linux(?:x64|aa64)\.efi\.stub",
        "/boot/stub",
    ),
    "loader": Asset(
        {"x86_64": ("systemd-boot-efi",), "aarch64": ("systemd-boot-efi",)},
        r"/usr/lib/systemd/boot/efi/systemd-boot(?:x64|aa64)\.efi",
        "/boot/loader",
    ),
    "grub": Asset(
        {"x86_64": ("grub-pc-bin",)}, r"/usr/lib/grub/i386-pc/([a-z0-9_]+\.(?:mod|img|lst))", "/boot/grub/{}"
    ),
    "raspi": Asset(
        {"aarch64": ()},  # the kernel's own package has the device trees; the firmware is the definition's choice
        r"(?:/usr/lib/linux-image-[^/]+/broadcom|/usr/lib/linux-image-[^/]+|/usr/lib/raspi-firmware)/"
        r"((?:overlays/)?[A-Za-z0-9._+-]+\.(?:dtb|dtbo|elf|dat|bin|broadcom))",
        "/boot/raspi/{}",
        takes_firmware=True,
    ),
    "raspi-licence": Asset(
        {"aarch64": ()}, r"/usr/share/doc/raspi-firmware/copyright", "/boot/raspi/LICENCE.broadcom", takes_firmware=True
    ),
}


def packages(names: Iterable[str], arch: str) -> tuple[str, ...]:
    """The packages that bring assets on an architecture, sorted."""
    return tuple(sorted({package for name in names for package in _asset(name).packages.get(arch, ())}))


def tree(names: Iterable[str], packages: Sequence[Package]) -> Tree:
    """The assets as they are put below /boot."""
    entries: dict[str, Entry] = {}
    for asset in map(_asset, names):
        pattern = re.compile(asset.files)
        for package in packages:
            found = ((pattern.fullmatch(path), entry) for path, entry in package.tree.items())
            files = ((match, entry) for match, entry in found if match and entry.kind == "file")
            entries |= {asset.place.format(*match.groups()): entry for match, entry in files}
    folders = {path.rpartition("/")[0]: directory() for path in entries}
    return Tree({**folders, **entries})


def take_firmware(names: Iterable[str], arch: str) -> bool:
    """Whether any of these assets is looked for in the firmware that the definition names."""
    return any(asset.takes_firmware and arch in asset.packages for asset in map(_asset, names))


def licence(package: Package) -> str:
    """How the licence of a package begins, in one line; all of it is in the image as well."""
    path = f"/usr/share/doc/{package.name}/copyright"
    text = package.tree.read(path).decode("utf-8", "replace") if path in package.tree else ""
    found = LICENCE.search(text)
    words = " ".join(word for word in (found[1] if found else text).split() if word != ".")
    begin = f"{words[:LICENCE_BEGIN].rpartition(' ')[0]} ..." if len(words) > LICENCE_BEGIN else words
    said = escape(begin.encode()) or "its package says nothing of it"
    return f"{package.name} {package.version} is not free software; naming it accepts its licence: {said}"


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise unknown("asset", name, ASSETS)
    return ASSETS[name]
