"""Assets: what formats take of packages that are no part of the root, as files below /boot of the Tree.

    /boot/stub            the UEFI stub of systemd, which a UKI begins with
    /boot/grub/           GRUB's modules and boot sectors for BIOS
    /boot/raspi/          firmware of the Raspberry Pi, device trees and overlays

A format names the assets that it needs; their packages are pinned in the image's lock for the image's architecture,
each taken alone, without what it depends on.
"""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from imagekit.errors import unknown
from imagekit.package import Package
from imagekit.tree import Entry, Tree, directory


class Asset(NamedTuple):
    """Files of packages that a format needs beside the root."""

    packages: dict[str, tuple[str, ...]]  # architecture -> names
    files: str  # a pattern of their paths
    place: str  # below /boot; a template of the pattern


ASSETS = {
    "stub": Asset(
        {"x86_64": ("systemd-boot-efi",), "aarch64": ("systemd-boot-efi",)},
        r"/usr/lib/systemd/boot/efi/linux(?:x64|aa64)\.efi\.stub",
        "/boot/stub",
    ),
    "grub": Asset(
        {"x86_64": ("grub-pc-bin",)}, r"/usr/lib/grub/i386-pc/([a-z0-9_]+\.(?:mod|img|lst))", r"/boot/grub/\1"
    ),
    "raspi": Asset(
        {"aarch64": ()},  # the kernel's own package has the device trees; the firmware is the definition's choice
        r"(?:/usr/lib/linux-image-[^/]+/broadcom|/usr/lib/linux-image-[^/]+|/usr/lib/raspi-firmware)/"
        r"((?:overlays/)?[A-Za-z0-9._+-]+\.(?:dtb|dtbo|elf|dat|bin|broadcom))",
        r"/boot/raspi/\1",
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
            entries |= {match.expand(asset.place): entry for match, entry in found if match and entry.kind == "file"}
    folders = {path.rpartition("/")[0]: directory() for path in entries}
    return Tree({**folders, **entries})


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise unknown("asset", name, ASSETS)
    return ASSETS[name]
