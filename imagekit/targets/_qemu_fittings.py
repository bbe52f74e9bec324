"""What a machine gets beyond its kernel, disks and network: firmware, and a graphics card to take pictures of."""

import os
import re
import struct
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from imagekit import toolbox
from imagekit.errors import Problem, unknown
from imagekit.guest import GuestProblem, Rig
from imagekit.rig import Disk
from imagekit.targets._machine import Machine
from imagekit.targets._qemu_command import Board
from imagekit.targets._qemu_disks import Drive, over

FIRMWARES = ("direct", "bios", "uefi")
LEAST_MEMORY = 256  # MiB: OVMF dies without a word where it has 128
VARIABLES = "_vars"  # the drive of UEFI's variables; no disk can have that name
MAX_PICTURE = 64 << 20  # bytes


class Fitting(NamedTuple):
    """Something that is plugged in."""

    arguments: tuple[str, ...]
    handles: tuple[int, ...] = ()
    identity: tuple[object, ...] = ()
    by_hand: tuple[str, ...] = ()


class Kit(NamedTuple):
    """What differs between architectures."""

    firmware: str  # the toolbox's name of UEFI
    graphics: str
    has_bios: bool
    quick: tuple[str, ...] = ()  # what keeps UEFI from waiting for a key


KITS = {
    "x86_64": Kit("ovmf", "VGA", has_bios=True),
    "aarch64": Kit("aavmf", "virtio-gpu-pci", has_bios=False, quick=("-boot", "menu=on,splash-time=0")),
}


def wanted(rig: Rig, board: Board) -> tuple[str, ...]:
    """The firmware files that the toolbox must bring; raises Problem when the machine cannot have that firmware."""
    if not board.has_slots:
        return ()
    if rig.firmware not in FIRMWARES:
        raise unknown("firmware", rig.firmware, FIRMWARES)
    if rig.firmware == "bios" and not KITS[board.arch].has_bios:
        raise Problem(f"there is no BIOS for {board.arch}", 'firmware="uefi" is what such machines have')
    if rig.firmware != "uefi":
        return ()  # q35 starts a kernel by its BIOS, which is what "direct" means there already
    if rig.memory < LEAST_MEMORY:
        raise Problem(f"UEFI wants {LEAST_MEMORY} MiB of memory, not {rig.memory}", f"Rig(memory={LEAST_MEMORY})")
    name = KITS[board.arch].firmware
    return (f"{name}-code", f"{name}-vars")


def firmware(files: tuple[str, ...], tools: toolbox.Tools, board: Board, held: ExitStack) -> tuple[Fitting, ...]:
    """UEFI in flash memory that is only read; the variables lie on a drive."""
    if not files:
        return ()
    code, variables = map(tools.path, files)
    handle = os.open(code, os.O_RDONLY | os.O_CLOEXEC)  # by descriptor: QEMU may live in another mount namespace
    held.callback(os.close, handle)
    node = f"driver=raw,node-name=firmware,read-only=on,file.driver=file,file.filename=/proc/self/fd/{handle}"
    flash = ("-machine", "pflash0=firmware", "-machine", f"pflash1=disk-{VARIABLES}")
    quick, status = KITS[board.arch].quick, code.stat()
    by_hand = (
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={variables}"),
        *quick,
    )
    identity = (str(code), status.st_size, status.st_mtime_ns)
    return (Fitting(("-blockdev", node, *flash, *quick), (handle,), identity, by_hand),)


def variables(files: tuple[str, ...], tools: toolbox.Tools, folder: Path, held: ExitStack) -> tuple[Drive, ...]:
    """UEFI's variables as they are shipped, under an overlay."""
    return tuple(over(Disk(VARIABLES, source=tools.path(name)), folder, held, is_flash=True) for name in files[1:])


def display(rig: Rig, board: Board, held: ExitStack) -> tuple[Fitting, ...]:
    """A graphics card, and a file in memory that its pictures go through."""
    if not rig.display:
        return ()
    handle = os.memfd_create("picture", os.MFD_CLOEXEC)
    held.callback(os.close, handle)
    card = ("-device", KITS[board.arch].graphics)
    return (Fitting(card, (handle,), card, card),)


def screenshot(machine: Machine, shown: tuple[Fitting, ...]) -> bytes:
    """What the display shows, as PNG; raises GuestProblem when there is none."""
    if not shown:
        raise GuestProblem("this machine has no display to take a picture of", "start it with Rig(display=True)")
    ((handle,),) = (fitting.handles for fitting in shown)
    machine.ask(lambda: machine.monitor.execute("screendump", filename=f"/proc/self/fd/{handle}"))
    return png(os.pread(handle, MAX_PICTURE, 0))


def png(ppm: bytes) -> bytes:
    """A picture of three bytes per pixel as PNG (W3C PNG, sections 5 and 11), which not every QEMU can write."""
    found = re.match(rb"P6\s(\d{1,5})\s(\d{1,5})\s255\s", ppm)
    if not found:
        raise GuestProblem("QEMU's picture of the display is none")
    width, height = int(found[1]), int(found[2])
    pixels, row = memoryview(ppm)[found.end() :], width * 3
    if len(pixels) != row * height or not pixels:
        raise GuestProblem(f"QEMU's picture of the display is cut: {len(pixels)} bytes for {width} x {height}")
    lines = b"".join(b"\0" + bytes(pixels[at : at + row]) for at in range(0, row * height, row))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(lines, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
