"""Raspberry Pis in QEMU: started from a card, of which they take what the Pi's own firmware would take.

QEMU has the boards but not their firmware: this reads config.txt, as disk/raspi does, and hands QEMU the very kernel,
initramfs, arguments and device tree that it names, with the card in its slot. What differs from a real one:

    the network is a card at USB, since QEMU has neither a LAN9514 nor a GENET; on a Pi 4 the one USB controller that
    QEMU has is told to be a host, and devices that QEMU lacks are told to be off (in the device tree of this boot)
    a card that is no power of two in size is seen as the next one, as cards are (QEMU wants it so)
    where the agent runs, it has the second UART, and the console moves to the first one

On the real board the second UART is at the header's pins, and the first one belongs to Bluetooth.
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from imagekit.artifact import Opened
from imagekit.disk import fatfiles, fdt, mbr, raspi
from imagekit.disk.fdt import Node
from imagekit.disk.sparse import Sparse
from imagekit.errors import Problem, RigProblem
from imagekit.guest import Rig
from imagekit.targets import _qemu_load
from imagekit.targets._qemu_command import Board
from imagekit.targets._qemu_load import Accelerator, Load

TCG = "tcg,thread=single,tb-size=64"  # four processors in four threads spin where they wait for each other
ACCELERATOR = Accelerator("tcg", "no processor runs a Raspberry Pi but its own")
CHANNEL = "ttyS1"  # the second UART; its first bytes are garbage, which the agent's frames are told from
# Linux calls a card at USB eth0 only where its address is one that a maker gave it: the second bit of the first byte.
CARD = "usb-net,netdev={netdev},mac=50:54:00:12:34:56"
MAX_CARD = 1 << 40  # bytes
ABSENT = frozenset(  # of a Pi 4, by `compatible`: to touch them is a bus error, and ends the boot
    {
        *("brcm,brcm2711-dvp", "brcm,bcm2711-l2-intc", "brcm,bcm2711-hvs", "brcm,bcm2835-txp", "brcm,2711-v3d"),
        *(f"brcm,bcm2711-pixelvalve{number}" for number in range(5)),
        *("brcm,bcm2711-hdmi0", "brcm,bcm2711-hdmi1", "brcm,bcm2711-hdmi-i2c", "brcm,bcm2711-vc5", "brcm,bcm2711-vec"),
        *("brcm,bcm2711-rng200", "brcm,bcm2711-avs-monitor", "brcm,bcm2711-pcie", "brcm,bcm2711-genet-v5"),
        "brcm,bcm2711-emmc2",
        "brcm,bcm2835-vchiq",
    }
)
USB = "brcm,bcm2835-usb"
# The second UART divides the clock of the core, of which QEMU says that it ticks at 563 MHz: at 115,200 baud the driver
# then waits for an interrupt that never ends. Any of the device tree's fixed clocks does.
UART, CLOCK = "brcm,bcm2835-aux-uart", "/clk-108M"
SLOT, OF_A_RADIO = "brcm,bcm2835-sdhci", ("mmc-pwrseq", "non-removable")  # a Pi 4 has its radio there, QEMU the card


class Pi(NamedTuple):
    """One model: what its firmware reads, and what QEMU's machine is."""

    reads: raspi.Board
    machine: Board
    is_patched: bool = False


_PI3 = Board(
    *("aarch64", "ttyAMA0,115200", CHANNEL, ("-serial", "chardev:channel"), "ram"),
    machine="raspi3b", cpu="cortex-a53", cpus=4, memory=1024, tcg=TCG, card=CARD, has_slots=False,
)  # fmt: skip
PIS = {
    "raspi3b": Pi(raspi.BOARDS["raspi3b"], _PI3),
    "raspi4b": Pi(
        raspi.BOARDS["raspi4b"], _PI3._replace(machine="raspi4b", cpu="cortex-a72", memory=2048), is_patched=True
    ),
}


def board(opened: Opened, rig: Rig) -> Board:
    """The machine; without the agent the console is where the card has it, which is the second UART."""
    pi, made = PIS[rig.firmware], opened.artifact
    if made.arch != pi.machine.arch or "disk" not in opened.handles:
        raise Problem(
            f"{made.name} {made.arch} {made.format} is no card for a {pi.reads.name}",
            "that takes an artifact with a disk, for aarch64",
        )
    _check(rig, pi)
    if rig.channel:
        return pi.machine
    return pi.machine._replace(console="", first_line=("-serial", "null", "-serial", "chardev:console"))


def load(opened: Opened, *, rig: Rig, folder: Path, held: ExitStack) -> Load:
    """What the Pi's firmware would start of the card; raises a Problem that says what it would miss."""
    pi = PIS[rig.firmware]
    kind, disk = _qemu_load.disk_of(opened.handles["disk"], folder, held)
    files = boot_partition(disk, pi.reads)
    found = raspi.boot(files, pi.reads)
    kernel, tree = files[found.kernel].read(), files[found.device_tree].read()
    raspi.check_kernel(kernel, found.kernel)
    if found.overlays:
        rig.say(f"config.txt has overlays, which QEMU has no devices for: {', '.join(found.overlays)}")
    contents = {
        "kernel": kernel,
        "initrd": b"".join(files[name].read() for name in found.initrds),
        "device_tree": as_qemu_has_it(tree) if pi.is_patched else tree,
    }
    handles = {name: _qemu_load.memory(name, [data], held) for name, data in contents.items()}
    words = found.cmdline if not rig.channel else _moved(found.cmdline)
    card = replace(rig, media="sd", image_size=rig.image_size or card_size(disk.size))
    drive = _qemu_load.attached(opened, kind, disk, card, folder, held)
    return Load(handles, words.encode("utf-8", "surrogateescape"), (drive,))


def boot_partition(disk: Sparse, board: raspi.Board) -> Mapping[str, fatfiles.File]:
    """The files of the partition that the ROM looks into: the first one of a type that says FAT."""
    try:
        partitions = mbr.read(disk)
        boot = next((one for one in partitions if one.type in raspi.FAT_TYPES), None)
        if boot is None:
            types = ", ".join(f"0x{one.type:02x}" for one in partitions) or "none"
            raise Problem("it has no partition of the type of a FAT, such as 0x0c", f"the types are: {types}")
        return fatfiles.read(disk.part(boot.start, boot.size))
    except Problem as problem:
        raise Problem(f"a {board.name} does not start from this card: {problem.message}", problem.hint) from problem


def card_size(size: int) -> int:
    """The next power of two: the sizes of cards, and all that QEMU takes."""
    if not 0 < size <= MAX_CARD:
        raise Problem(f"a card of {size} bytes is none")
    return 1 << (size - 1).bit_length()


def _check(rig: Rig, pi: Pi) -> None:
    """Raise Problem for what cannot be plugged in."""
    for what, is_wanted in (("disks", rig.disks), ("private networks", rig.wires), ("a display", rig.display),
                            ("another medium", rig.media not in ("", "sd"))):  # fmt: skip
        if is_wanted:
            raise Problem(f"{what}: QEMU's {pi.reads.name} has no place for it", "its card is all that it has")
    if rig.accelerator == "kvm":
        raise RigProblem(f"KVM was asked for and cannot be used: {ACCELERATOR.why}", "`--accel tcg` emulates")


def _moved(cmdline: str) -> str:
    """The arguments less the console on the agent's line: the machine's own takes its place."""
    own, dashes, for_init = f" {cmdline} ".partition(" -- ")
    kept = [word for word in own.split() if not word.startswith(f"console={CHANNEL}")]
    return (" ".join(kept) + dashes + for_init).strip()


def as_qemu_has_it(tree: bytes) -> bytes:
    """The device tree of a Pi 4 less what QEMU lacks."""
    known = fdt.read(tree)
    fixed = known.root.at(CLOCK)
    clock = fixed.properties.get("phandle", b"") if fixed else b""
    return fdt.write(known._replace(root=fdt.changed(known.root, lambda _, node: _without_absent(node, clock))))


def _without_absent(node: Node, clock: bytes) -> Node:
    compatible, properties = set(node.strings("compatible")), dict(node.properties)
    if compatible & ABSENT:
        properties["status"] = fdt.text("disabled")
    if USB in compatible:
        properties["dr_mode"] = fdt.text("host")
    if SLOT in compatible:
        kept = {name: value for name, value in properties.items() if name not in OF_A_RADIO}
        return node._replace(properties={**kept, "broken-cd": b""}, nodes=())
    if UART in compatible and clock:
        properties["clocks"] = clock
    return node._replace(properties=properties)


def by_hand(opened: Opened, rig: Rig) -> str:
    """A line for the shell that starts the same card."""
    return f"imagekit boot {os.fspath(opened.artifact.path)} --target {rig.firmware}"
