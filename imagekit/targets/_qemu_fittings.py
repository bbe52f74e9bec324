"""What a machine gets beyond its kernel, disks and network: firmware, and a graphics card to take pictures of."""

import os
import re
import struct
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from imagekit import bootkeys, enrolment, toolbox
from imagekit.errors import Problem, unknown
from imagekit.guest import GuestProblem, Rig
from imagekit.rig import Disk
from imagekit.store import Store
from imagekit.targets._machine import Machine
from imagekit.targets._qemu_command import Board
from imagekit.targets._qemu_disks import Drive, Layer, over, overlay
from imagekit.targets._qemu_load import memory

FIRMWARES = ("direct", "bios", "uefi")
SECURE = ("", *enrolment.STATES, "setup")
LEAST_MEMORY = 256  # MiB: OVMF dies without a word where it has 128
VARIABLES = "_vars"  # the drive of UEFI's variables; no disk can have that name
MAX_PICTURE = 64 << 20  # bytes


class Fitting(NamedTuple):
    """Something that is plugged in."""

    arguments: tuple[str, ...]
    handles: tuple[int, ...] = ()
    identity: tuple[object, ...] = ()
    by_hand: tuple[str, ...] = ()


Fittings = tuple[Fitting, ...]


class Kit(NamedTuple):
    """What differs between architectures."""

    firmware: str  # the toolbox's name of UEFI
    graphics: str
    has_bios: bool
    quick: tuple[str, ...] = ()  # what keeps UEFI from waiting for a key
    measures: bool = True  # whether the firmware that checks nothing tells a TPM what it starts
    guarded: str = ""  # of the machine, so that the firmware alone can write its variables
    guard: tuple[str, ...] = ()  # likewise


KITS = {
    "x86_64": Kit(
        "ovmf",
        "VGA",
        has_bios=True,
        guarded=",smm=on",  # without it this firmware hangs and says nothing
        guard=("-global", "driver=cfi.pflash01,property=secure,value=on"),
    ),
    "aarch64": Kit("aavmf", "virtio-gpu-pci", has_bios=False, quick=("-boot", "menu=on,splash-time=0"), measures=False),
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
        if rig.secure or rig.variables:
            raise Problem("Secure Boot is UEFI's, and has variables there", 'Rig(firmware="uefi", ...)')
        return ()  # q35 starts a kernel by its BIOS, which is what "direct" means there already
    if rig.memory < LEAST_MEMORY:
        raise Problem(f"UEFI wants {LEAST_MEMORY} MiB of memory, not {rig.memory}", f"Rig(memory={LEAST_MEMORY})")
    name = KITS[board.arch].firmware
    return (f"{name}-code{'-secboot' if is_guarded(rig, board) else ''}", f"{name}-vars")


def settled(rig: Rig, manifest: Mapping[str, Any]) -> Rig:
    """The rig as it is for an image: one that is signed for Secure Boot is started with it."""
    if rig.secure not in SECURE:
        raise unknown("state of Secure Boot", rig.secure, SECURE)
    if rig.secure or rig.variables or rig.firmware != "uefi":
        return rig
    is_signed = any(part.get("secure_boot") for part in manifest["parts"])
    return replace(rig, secure="on") if is_signed else rig


def is_guarded(rig: Rig, board: Board) -> bool:
    """Whether the machine has the firmware that checks what it starts; of aarch64 no other one knows TPMs."""
    return bool(rig.secure or rig.variables or (rig.tpm and not KITS[board.arch].measures))


def board(rig: Rig, board: Board) -> Board:
    """The machine that the firmware needs."""
    is_changed = rig.firmware == "uefi" and board.has_slots and is_guarded(rig, board)
    return board._replace(machine=board.machine_name + KITS[board.arch].guarded) if is_changed else board


def firmware(files: tuple[str, ...], tools: toolbox.Tools, rig: Rig, board: Board, held: ExitStack) -> Fittings:
    """UEFI in flash memory that is only read; the variables lie on a drive."""
    if not files:
        return ()
    code, variables = map(tools.path, files)
    handle = os.open(code, os.O_RDONLY | os.O_CLOEXEC)  # by descriptor: QEMU may live in another mount namespace
    held.callback(os.close, handle)
    node = f"driver=raw,node-name=firmware,read-only=on,file.driver=file,file.filename=/proc/self/fd/{handle}"
    flash = ("-machine", "pflash0=firmware", "-machine", f"pflash1=disk-{VARIABLES}")
    kit, status = KITS[board.arch], code.stat()
    more = (*kit.quick, *(kit.guard if is_guarded(rig, board) else ()))
    by_hand = (
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,snapshot=on,file={variables}"),
        *more,
    )
    identity = (str(code), status.st_size, status.st_mtime_ns)
    return (Fitting(("-blockdev", node, *flash, *more), (handle,), identity, by_hand),)


def variables(
    files: tuple[str, ...], tools: toolbox.Tools, rig: Rig, store: Store, folder: Path, held: ExitStack
) -> tuple[Drive, ...]:
    """UEFI's variables under an overlay: as they are shipped, with keys enrolled, or as somebody gave them."""
    if not files:
        return ()
    template = tools.path(files[1])
    data = rig.variables
    if not data and rig.secure in enrolment.STATES:
        keys = bootkeys.chosen(rig.boot_keys)
        data = enrolment.variables(template, keys, state=rig.secure, store=store)
    if not data:
        return (over(Disk(VARIABLES, source=template), folder, held, is_flash=True),)
    size = template.stat().st_size  # of the flash memory; what lies behind the end of a file is zeros to QEMU
    if len(data) > size:
        raise Problem(f"UEFI's variables: {len(data)} bytes are more than the {size} of the machine's flash memory")
    layer = Layer(memory(VARIABLES, [data], held), "raw")
    identity = (VARIABLES, sha256(data).hexdigest(), size)
    return (Drive(VARIABLES, size, overlay(size, folder, held), (layer,), identity, is_flash=True),)


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
