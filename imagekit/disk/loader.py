"""Loader: what the firmware of a machine would start from a disk, found as it would find it.

UEFI takes EFI/BOOT/BOOT*.EFI from a FAT partition of a GPT disk (UEFI 2.10, section 3.5.1.1), which here is a UKI; GRUB
takes kernel, initrd and its commands from the partition that its core was told. The disk may be anybody's.
"""

from typing import NamedTuple

from imagekit.arch import ARCHES
from imagekit.disk import fatfiles, gpt, grub, pe
from imagekit.disk.sparse import Sparse
from imagekit.errors import Problem


class Loaded(NamedTuple):
    """What is started."""

    kernel: bytes
    initrd: bytes
    arguments: bytes  # of the kernel


def find(disk: Sparse, *, arch: str) -> Loaded:
    """Kernel, initrd and arguments of a disk; raises Problem that says what its firmware would miss."""
    path = f"EFI/BOOT/BOOT{ARCHES[arch].efi}.EFI"
    missing = []
    for partition in gpt.read(disk):
        try:
            files = fatfiles.read(disk.part(partition.start, partition.size))
        except Problem as problem:
            missing.append(f"{partition.name}: {problem.message}")
            continue
        if path in files:
            return of_uki(files[path].read())
        if {"kernel", "initrd", "grub.cfg"} <= files.keys():
            arguments = grub.arguments(files["grub.cfg"].read()).encode("utf-8", "surrogateescape")
            return Loaded(files["kernel"].read(), files["initrd"].read(), arguments)
        missing.append(f"{partition.name}: neither {path} nor kernel, initrd and grub.cfg")
    raise Problem("no firmware would start this disk: " + ("; ".join(missing) or "it has no partition"))


def of_uki(data: bytes) -> Loaded:
    """What a UKI starts."""
    sections = pe.sections(data)
    for name in (".linux", ".initrd", ".cmdline"):
        if name not in sections:
            raise Problem(f"the UKI has no section {name}")
    return Loaded(sections[".linux"], sections[".initrd"], sections[".cmdline"].rstrip(b"\0"))
