"""What of an artifact a machine is started from: kernel, initrd and arguments; a disk for its firmware; or both."""

import fcntl
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple

from imagekit.arch import ARCHES
from imagekit.artifact import Opened
from imagekit.disk import containers, fat, loader, qcow2, untar
from imagekit.disk.sparse import CHUNK, SECTOR, Sparse
from imagekit.errors import Problem
from imagekit.guest import Rig
from imagekit.targets._qemu_command import BOARDS
from imagekit.targets._qemu_disks import Drive, Layer, bytes_of, overlay
from imagekit.tree import Slice

KERNEL = ("kernel", "initrd", "cmdline")
ARCHIVED = ("kernel", "initrd.img", "cmdline")  # the same in a tar: formats/tar_kernel_initrd.py
NAME = "image"  # of the disk; no disk of a rig can have it, for it is refused there
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
DRIVERS = {  # QEMU's for the kinds of file that it reads as they are
    **{name: name for name in ("raw", "qcow2", "vhdx", "vmdk")},
    **dict.fromkeys(("vhd", "vhd_dynamic"), "vpc"),
}
ISO_AT, ISO = 0x8001, b"CD001"  # ECMA-119, section 8.1.2
REAL = ("bios", "uefi")  # firmware that runs; in the place of others QEMU is given what they would find
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
    """Whether the kernel can be given an initrd and arguments beyond its own: what real firmware finds cannot."""
    return rig.firmware not in REAL or opened.artifact.has_kernel


def load(opened: Opened, *, rig: Rig, folder: Path, held: ExitStack) -> Load:
    """What the rig's firmware starts of an artifact; raises Problem when that is nothing."""
    for role, take in TAKERS.items():
        if role in opened.handles:
            return take(opened, rig, folder, held)
    made = opened.artifact
    raise Problem(
        f"{made.name} {made.arch} {made.format} cannot be started by its kernel",
        f"that takes an artifact with {', '.join(KERNEL)}, or a disk, for {' or '.join(BOARDS)}",
    )


def _kernel(opened: Opened, _rig: Rig, folder: Path, held: ExitStack) -> Load:
    """Kernel and initrd as they are; a root beside them is the first disk."""
    kept = {role: opened.handles[role] for role in KERNEL[:2]}
    roots = []
    if "root" in opened.handles:
        layer = Layer(opened.handles["root"], "raw")
        roots = [_over(opened, "root", layer, os.fstat(layer.handle).st_size, folder=folder, held=held)]
    return Load(kept, opened.read("cmdline"), tuple(roots))


def _archive(opened: Opened, _rig: Rig, _folder: Path, held: ExitStack) -> Load:
    """The same three in one tar."""
    files = {path: entry.content for path, entry in untar.members([opened.read("archive")])}
    found = [files.get(f"/{name}", b"") for name in ARCHIVED]
    kernel, initrd, cmdline = (data if isinstance(data, bytes) else data.read() for data in found)
    return Load(_in_memory(loader.Loaded(kernel, initrd, cmdline), held), cmdline)


def kernel_digest(opened: Opened, load: Load) -> str:
    """sha256 of the kernel that is started, by whomever."""
    if load.kernel:
        handle = load.kernel["kernel"]
        return sha256(os.pread(handle, os.fstat(handle).st_size, 0)).hexdigest()
    if "uki" in opened.handles:
        return sha256(loader.of_uki(opened.read("uki")).kernel).hexdigest()
    with ExitStack() as held:
        _, disk = disk_of(opened.handles["disk"], None, held)
        return sha256(loader.find(disk, arch=opened.artifact.arch).kernel).hexdigest()


def _disk(opened: Opened, rig: Rig, folder: Path, held: ExitStack) -> Load:
    """By its firmware; or the kernel that this would find on it, with the disk beside."""
    kind, disk = disk_of(opened.handles["disk"], folder, held)
    drive = attached(opened, kind, disk, rig, folder, held)
    if rig.firmware != "direct":
        return Load({}, b"", (replace(drive, is_started=True),))
    found = loader.find(disk, arch=opened.artifact.arch)
    return Load(_in_memory(found, held), found.arguments, (drive,))


def disk_of(handle: int, folder: Path | None, held: ExitStack) -> tuple[str, Sparse]:
    """(kind, disk) of a file of any kind, by our own readers."""
    return held.enter_context(containers.opened(Path(f"/proc/self/fd/{handle}"), folder=folder))


def attached(opened: Opened, kind: str, disk: Sparse, rig: Rig, folder: Path, held: ExitStack) -> Drive:
    """The image's disk under an overlay: QEMU reads the very file, unless that is an archive."""
    handle, driver, size = opened.handles["disk"], DRIVERS.get(kind, ""), disk.size
    if not driver:
        handle, driver = _unpacked(disk, folder, held), "raw"
    if rig.image_size:
        size = bytes_of(rig.image_size, NAME)
        if size < disk.size:
            has = f"the image's disk has {disk.size} bytes, and none can be taken away"
            raise Problem(f"image_size={rig.image_size!r}: {has}")
    made = _over(opened, "disk", Layer(handle, driver), size, rig.media or _medium(handle), folder=folder, held=held)
    if not rig.altered:
        return made
    return replace(made, below=(*made.below, Layer(written(qcow2.layer(size, rig.altered), folder, held), "qcow2")))


def _unpacked(disk: Sparse, folder: Path, held: ExitStack) -> int:
    """The disk as a raw file without a name, where its zeros are holes."""
    with TemporaryFile(dir=folder) as file:
        for offset, data in disk.filled(CHUNK):
            file.seek(offset)
            file.write(data)
        file.truncate(disk.size)
        file.flush()
        handle = os.dup(file.fileno())
    held.callback(os.close, handle)
    return handle


def written(chunks: Iterable[bytes], folder: Path, held: ExitStack) -> int:
    """The descriptor of a file without a name that has these bytes."""
    with TemporaryFile(dir=folder) as file:
        file.writelines(chunks)
        file.flush()
        handle = os.dup(file.fileno())
    held.callback(os.close, handle)
    return handle


def _uki(opened: Opened, rig: Rig, folder: Path, held: ExitStack) -> Load:
    """Started at once from its sections; else from a FAT volume, as the only file on it."""
    if rig.firmware == "direct":
        found = loader.of_uki(opened.read("uki"))
        return Load(_in_memory(found, held), found.arguments)
    handle = opened.handles["uki"]
    path = f"EFI/BOOT/BOOT{ARCHES[opened.artifact.arch].efi}.EFI"
    content = Slice(f"/proc/self/fd/{handle}", 0, os.fstat(handle).st_size)
    volume = fat.volume({path: content}, serial=1)
    layer = Layer(memory("esp", volume.chunks(), held), "raw")
    drive = _over(opened, "uki", layer, volume.size, folder=folder, held=held)
    return Load({}, b"", (replace(drive, is_started=True),))


def _over(
    opened: Opened, role: str, layer: Layer, size: int, medium: str = "disk", *, folder: Path, held: ExitStack
) -> Drive:
    """A part as a disk: an overlay over the very bytes that were verified."""
    part = next(part for part in opened.artifact.parts if part.role == role)
    size = -(-size // SECTOR) * SECTOR
    identity = (NAME, part.sha256, size, medium)
    source = opened.artifact.path.parent / part.file
    return Drive(NAME, size, overlay(size, folder, held), (layer,), identity, source, medium=medium, is_image=True)


def _medium(handle: int) -> str:
    return "cd" if os.pread(handle, len(ISO), ISO_AT) == ISO else "disk"


def _in_memory(found: loader.Loaded, held: ExitStack) -> dict[str, int]:
    return {name: memory(name, [getattr(found, name)], held) for name in KERNEL[:2]}


def memory(name: str, chunks: Iterable[bytes], held: ExitStack) -> int:
    """A sealed memory file of these bytes."""
    handle = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    held.callback(os.close, handle)
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(handle, rest) :]
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, SEALS)
    return handle


TAKERS = {"disk": _disk, "uki": _uki, "archive": _archive, "kernel": _kernel}  # of an artifact by what it has
