"""Loader: what the firmware of a machine would start from a disk, found as it would find it.

UEFI takes EFI/BOOT/BOOT*.EFI from a FAT partition of a GPT disk (UEFI 2.10, section 3.5.1.1), which here is a UKI, or
where there are two slots systemd-boot, which takes the newest of EFI/Linux that has tries left (slots.py). GRUB
takes kernel, initrd and its commands from the partition that its core was told. On an ISO the FAT volume is El Torito's
entry for UEFI, and GRUB takes what it needs from the ISO itself. The disk may be anybody's.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from imagekit import slots
from imagekit.arch import ARCHES
from imagekit.disk import fatfiles, gpt, grub, isoread, pe
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
    missing: list[str] = []
    for name, files in _readable(disk, missing):
        if path in files:
            data = files[slots.first(files) or path].read()
            if (found := pe.machine(data, what=path)) == arch:
                return of_uki(data)
            missing.append(f"{name}: {path} is for {found}")
            continue
        if {"kernel", "initrd", "grub.cfg"} <= files.keys():
            arguments = grub.arguments(files["grub.cfg"].read()).encode("utf-8", "surrogateescape")
            return Loaded(files["kernel"].read(), files["initrd"].read(), arguments)
        missing.append(f"{name}: neither {path} nor kernel, initrd and grub.cfg")
    raise Problem("no firmware would start this disk: " + ("; ".join(missing) or "it has no partition"))


def programs(disk: Sparse) -> dict[str, bytes]:
    """What UEFI starts from a disk, by path, in the order in which it is started: a UKI, or systemd-boot and a UKI.

    Raises Problem when there is none.
    """
    missing: list[str] = []
    for name, files in _readable(disk, missing):
        for arch in ARCHES.values():
            if (path := f"EFI/BOOT/BOOT{arch.efi}.EFI") in files:
                started = dict.fromkeys(filter(None, (path, slots.first(files))))
                return {each: files[each].read() for each in started}
        missing.append(f"{name}: no EFI/BOOT/BOOT*.EFI")
    raise Problem("UEFI would start nothing from this disk: " + ("; ".join(missing) or "it has no partition"))


def _readable(disk: Sparse, missing: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The files of each file system that firmware looks into; what is wrong with the others is added to `missing`."""
    for name, read in _volumes(disk):
        try:
            files = read()
        except Problem as problem:
            missing.append(f"{name}: {problem.message}")
            continue
        yield name, files


def _volumes(disk: Sparse) -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
    """The file systems that firmware looks into: name, and what reads path -> a file with read()."""
    if not isoread.is_iso(disk):
        for partition in gpt.read(disk):
            yield partition.name, partial(_of_fat, disk, partition.start, partition.size)
        return
    volume = isoread.read(disk)
    for boot in volume.boots:
        if boot.platform == "uefi":
            yield (
                "El Torito's entry for UEFI",
                partial(_of_fat, disk, boot.offset, boot.size or disk.size - boot.offset),
            )
    yield "the ISO", lambda: volume.files


def _of_fat(disk: Sparse, start: int, size: int) -> Mapping[str, Any]:
    return fatfiles.read(disk.part(start, size))


def of_uki(data: bytes) -> Loaded:
    """What a UKI starts."""
    sections = pe.sections(data)
    for name in (".linux", ".initrd", ".cmdline"):
        if name not in sections:
            raise Problem(f"the UKI has no section {name}")
    return Loaded(sections[".linux"], sections[".initrd"], sections[".cmdline"].rstrip(b"\0"))
