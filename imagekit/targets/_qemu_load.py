"""What of an artifact a machine is started from: kernel, initrd and arguments; a disk for its firmware; or both."""

import fcntl
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit.arch import ARCHES
from imagekit.artifact import Opened
from imagekit.disk import fat, loader
from imagekit.disk.sparse import Sparse, of_file
from imagekit.errors import Problem
from imagekit.guest import Rig
from imagekit.targets._qemu_command import BOARDS
from imagekit.targets._qemu_disks import Drive, Layer, overlay
from imagekit.tree import Slice

KERNEL = ("kernel", "initrd", "cmdline")
NAME = "image"  # of the disk; no disk of a rig can have it, for it is refused there
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
MAGICS = {b"QFI\xfb": "qcow2", b"vhdxfile": "vhdx", b"KDMV": "vmdk", b"conectix": "vpc"}  # to QEMU's names
VHD_FOOTER = 512
ISO_AT, ISO = 0x8001, b"CD001"  # ECMA-119, section 8.1.2
RUN = ("bios", "uefi")  # firmware that really runs; of any other this does what it would do
MEDIA = ("disk", "cd", "usb")


class Accelerator(NamedTuple):
    """Which accelerator a machine gets, and why."""

    name: str
    why: str


class Load(NamedTuple):
    """What a machine is started from."""

    kernel: Mapping[str, int]  # "kernel", "initrd", "device_tree" by descriptor; empty where firmware starts the disk
    cmdline: bytes
    drives: tuple[Drive, ...] = ()


def kept(opened: Opened, held: ExitStack) -> Opened:
    """The same verified bytes, by descriptors of our own: whoever opened the artifact may close it."""
    handles = {role: os.dup(handle) for role, handle in opened.handles.items()}
    for handle in handles.values():
        held.callback(os.close, handle)
    return Opened(opened.artifact, handles)


def has_disks(opened: Opened) -> bool:
    """Whether a machine that is started from it may have one."""
    return not opened.handles.keys() <= set(KERNEL)


def takes_more(opened: Opened, rig: Rig) -> bool:
    """Whether the kernel can be given an initrd and arguments beyond its own: what firmware finds on a disk cannot."""
    return rig.firmware not in RUN or {"kernel", "initrd"} <= opened.handles.keys()


def load(opened: Opened, *, rig: Rig, folder: Path, held: ExitStack) -> Load:
    """What the rig's firmware starts of an artifact; raises Problem when that is nothing."""
    has = opened.handles.keys()
    if "disk" in has:
        return _disk(opened, rig, folder, held)
    if "uki" in has:
        return _uki(opened, rig, folder, held)
    if not set(KERNEL) <= has:
        made = opened.artifact
        raise Problem(
            f"{made.name} {made.arch} {made.format} cannot be started by its kernel",
            f"that takes an artifact with {', '.join(KERNEL)}, or a disk, for {' or '.join(BOARDS)}",
        )
    kept = {role: opened.handles[role] for role in KERNEL[:2]}
    roots = (as_drive(opened, "root", "disk", folder, held),) if "root" in has else ()
    return Load(kept, opened.read("cmdline"), roots)


def kernel_digest(opened: Opened, load: Load) -> str:
    """sha256 of the kernel that is started, by whomever."""
    if load.kernel:
        handle = load.kernel["kernel"]
        return sha256(os.pread(handle, os.fstat(handle).st_size, 0)).hexdigest()
    if "uki" in opened.handles:
        return sha256(loader.of_uki(opened.read("uki")).kernel).hexdigest()
    return sha256(loader.find(sparse(opened.handles["disk"]), arch=opened.artifact.arch).kernel).hexdigest()


def _disk(opened: Opened, rig: Rig, folder: Path, held: ExitStack) -> Load:
    drive = as_drive(opened, "disk", rig.media or _medium(opened.handles["disk"]), folder, held)
    if rig.firmware != "direct":
        return Load({}, b"", (replace(drive, is_started=True),))
    found = loader.find(sparse(opened.handles["disk"]), arch=opened.artifact.arch)
    return Load(_in_memory(found, held), found.arguments, (drive,))


def _uki(opened: Opened, rig: Rig, folder: Path, held: ExitStack) -> Load:
    """Started at once from its sections; else from a FAT volume, as the only file on it."""
    if rig.firmware == "direct":
        found = loader.of_uki(opened.read("uki"))
        return Load(_in_memory(found, held), found.arguments)
    handle = opened.handles["uki"]
    path = f"EFI/BOOT/BOOT{ARCHES[opened.artifact.arch].efi}.EFI"
    content = Slice(f"/proc/self/fd/{handle}", 0, os.fstat(handle).st_size)
    volume = fat.volume({path: content}, serial=1)
    made = memory("esp", volume.chunks(), held)
    identity = (NAME, *(part.sha256 for part in opened.artifact.parts))
    drive = _over(made, volume.size, "raw", identity, folder, held, medium="disk")
    return Load({}, b"", (replace(drive, is_started=True),))


def as_drive(opened: Opened, role: str, medium: str, folder: Path, held: ExitStack) -> Drive:
    """A part as a disk: an overlay over the very bytes that were verified."""
    handle = opened.handles[role]
    driver = _driver(handle) if role == "disk" else "raw"
    size = os.fstat(handle).st_size if driver == "raw" else sparse(handle).size
    part = next(part for part in opened.artifact.parts if part.role == role)
    made = _over(handle, size, driver, (NAME, part.sha256), folder, held, medium=medium)
    return replace(made, source=opened.artifact.path.parent / part.file)


def _over(
    handle: int, size: int, driver: str, identity: tuple[object, ...], folder: Path, held: ExitStack, *, medium: str
) -> Drive:
    size = -(-size // 512) * 512
    below = (Layer(handle, driver),)
    return Drive(NAME, size, overlay(size, folder, held), below, identity, medium=medium, is_image=True)


def _driver(handle: int) -> str:
    """QEMU's name of what a file is, by its content."""
    head, size = os.pread(handle, 8, 0), os.fstat(handle).st_size
    for magic, driver in MAGICS.items():
        if head.startswith(magic):
            return driver
    tail = os.pread(handle, 8, max(size - VHD_FOOTER, 0))
    return "vpc" if tail == b"conectix" else "raw"


def _medium(handle: int) -> str:
    return "cd" if os.pread(handle, len(ISO), ISO_AT) == ISO else "disk"


def sparse(handle: int) -> Sparse:
    """The disk that a file holds, read by our own readers."""
    return of_file(f"/proc/self/fd/{handle}", os.fstat(handle).st_size)


def _in_memory(found: loader.Loaded, held: ExitStack) -> dict[str, int]:
    return {name: memory(name, [getattr(found, name)], held) for name in KERNEL[:2]}


def memory(name: str, chunks: Iterable[bytes], held: ExitStack) -> int:
    handle = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    held.callback(os.close, handle)
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(handle, rest) :]
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, SEALS)
    return handle
