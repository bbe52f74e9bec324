"""The disks of a machine: each a private overlay, which goes with the machine, over what is never written.

The overlay is a file without a name, so that nothing is left however we end; the machine's power may be cut and come
back, it may reboot, its disks stay. In the guest a disk is found by its serial number, /sys/block/vd*/serial, of which
udev makes /dev/disk/by-id/virtio-NAME; without udev they are /dev/vda, /dev/vdb in the order of the rig.
"""

import os
import re
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from imagekit.disk import qcow2
from imagekit.errors import Problem, RigProblem
from imagekit.rig import Disk

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,19}\Z")  # VIRTIO_BLK_ID_BYTES: 20
UNITS = {"": 1, "B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30, "TiB": 2**40}
SECTOR = 512
DEVICES = {  # the controller, and what is plugged into it
    "disk": ("virtio-blk-pci,{drive},serial={serial},{errors}",),
    "cd": ("virtio-scsi-pci,id=discs", "scsi-cd,bus=discs.0,{drive}"),
    "sd": (),  # a Pi has one slot for one, and what is in it is told to QEMU otherwise
    "usb": ("qemu-xhci,id=usb", "usb-storage,bus=usb.0,{drive},serial={serial}"),
}
# A card cannot be told to flush: each write must outlive a power cut, which is the end of QEMU and not of the host, so
# that the overlay's tables are written each time, and the file itself need not reach the host's disk.
CARD = "if=sd,cache.writeback=off,file.cache.no-flush=on"


@dataclass(frozen=True)
class Layer:
    """A file under an overlay, by descriptor."""

    handle: int
    driver: str  # "raw" or "qcow2"


@dataclass(frozen=True)
class Drive:
    """A disk as QEMU gets it."""

    name: str
    size: int  # bytes
    top: int  # descriptor of the overlay
    below: tuple[Layer, ...]  # from the lowest up
    identity: tuple[object, ...]  # what its contents are known by
    source: Path | None = None
    is_flash: bool = False  # firmware's memory, in no slot of its own
    medium: str = "disk"  # or "cd", "usb", "sd"
    is_image: bool = False  # the artifact's own, whose lowest layer is never copied
    is_started: bool = False  # by firmware

    @property
    def lowest(self) -> Layer | None:
        """The layer of what is only read: the source's, or the image's."""
        return self.below[0] if (self.source or self.is_image) and self.below else None

    @property
    def handles(self) -> tuple[int, ...]:
        """All descriptors that QEMU must inherit."""
        return (*(layer.handle for layer in self.below), self.top)

    @property
    def arguments(self) -> list[str]:
        """QEMU's arguments: a node per file, each over the last, and the device."""
        words, node = [], ""
        for number, layer in enumerate((*self.below, Layer(self.top, "qcow2"))):
            over = f",backing={node}" if node and layer.driver == "qcow2" else ""
            is_top = number == len(self.below)
            node = self.node if is_top else f"{self.node}-{number}"
            access = "" if is_top else ",read-only=on"
            file = f"file.driver=file,file.filename=/proc/self/fd/{layer.handle}"
            option, slot = ("-drive", f"{CARD},") if is_top and self.medium == "sd" else ("-blockdev", "")
            words += [option, f"{slot}driver={layer.driver},node-name={node},{file}{access}{over}"]
        return words if self.is_flash else [*words, *self._device()]

    @property
    def node(self) -> str:
        """QEMU's name of the disk."""
        return f"disk-{self.name}"

    @property
    def by_hand(self) -> list[str]:
        """The same for a person, whose changes are thrown away as well."""
        if self.is_flash:
            return []
        blank = f"driver=null-co,size={self.size}"
        known = f"file={self.source},format={self.below[0].driver},snapshot=on" if self.source else blank
        return ["-drive", f"if=none,id={self.node},{known}", *self._device()]

    def _device(self) -> list[str]:
        errors = "werror=report,rerror=report"  # a full disk of the host is an I/O error in the guest, not a pause
        first = ",bootindex=0" if self.is_started else ""
        words = []
        for device in DEVICES[self.medium]:
            words += ["-device", device.format(drive=f"drive={self.node}{first}", serial=self.name, errors=errors)]
        return words


def attach(disks: Sequence[Disk], folder: Path, held: ExitStack) -> tuple[Drive, ...]:
    """The disks of a rig, each with an empty overlay; raises Problem when one cannot be."""
    names = [disk.name for disk in disks]
    for disk in disks:
        if not NAME.match(disk.name) or names.count(disk.name) > 1:
            raise Problem(
                f"disks: {disk.name!r} is no name for a disk, or two have it", "1 to 20 letters, digits, and any of ._-"
            )
        if (disk.source is None) == (disk.size == ""):
            raise Problem(f"the disk {disk.name} needs a size or a source, and not both")
    return tuple(_blank(disk, folder, held) if disk.source is None else over(disk, folder, held) for disk in disks)


def over(disk: Disk, folder: Path, held: ExitStack, *, is_flash: bool = False) -> Drive:
    """A disk whose contents begin as those of a file."""
    assert disk.source is not None
    try:
        handle = os.open(disk.source, os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, handle)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise Problem(f"the disk {disk.name}: {disk.source} is no file")
        header = qcow2.header(os.pread(handle, 512, 0))
    except OSError as error:
        raise Problem(f"the disk {disk.name}: cannot read {disk.source}: {error.strerror}") from error
    if header and not header.is_alone:
        hint = f"make one of it: qemu-img convert -O qcow2 {disk.source} whole.qcow2"
        raise Problem(f"the disk {disk.name}: {disk.source} is itself an overlay, and needs another file", hint)
    size = header.size if header else found.st_size
    if not size or size % SECTOR:
        raise Problem(f"the disk {disk.name}: {disk.source} has {size} bytes, which are no whole sectors of {SECTOR}")
    identity = (disk.name, str(disk.source), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    below = (Layer(handle, "qcow2" if header else "raw"),)
    return Drive(disk.name, size, overlay(size, folder, held), below, identity, disk.source, is_flash)


def stacked(drive: Drive, lower: int, folder: Path, held: ExitStack) -> Drive:
    """The same disk with one more overlay: `lower` is the descriptor of what was its own, and is only read now."""
    below = (*drive.below, Layer(lower, "qcow2"))
    return replace(drive, below=below, top=overlay(drive.size, folder, held))


def overlay(size: int, folder: Path, held: ExitStack) -> int:
    """The descriptor of an empty overlay, in a file without a name."""
    from tempfile import TemporaryFile

    try:
        with ExitStack() as own:
            file = own.enter_context(TemporaryFile(dir=folder, buffering=0))
            file.write(qcow2.empty(size))
            held.enter_context(own.pop_all())
            return file.fileno()
    except OSError as error:
        hint = "make room, or set IMAGEKIT_CACHE"
        raise RigProblem(f"cannot make a disk in {folder}: {error.strerror}", hint) from error


def _blank(disk: Disk, folder: Path, held: ExitStack) -> Drive:
    size = bytes_of(disk.size, disk.name)
    return Drive(disk.name, size, overlay(size, folder, held), (), (disk.name, size))


def bytes_of(wanted: str | int, name: str) -> int:
    """The size of a disk as somebody wrote it; raises Problem when that is no measure."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", str(wanted))
    size = int(float(found[1]) * UNITS[found[2]]) if found and found[2] in UNITS else 0
    if not 0 < size <= qcow2.MAX_SIZE or size % SECTOR:
        raise Problem(f"the disk {name}: {wanted!r} is no size for one", 'as in "64 MiB": whole sectors of 512 bytes')
    return size
