"""x86_64 in QEMU, where OVMF starts the image as it is shipped."""

from dataclasses import replace

from imagekit.artifact import Opened
from imagekit.guest import Guest, Rig, Target
from imagekit.store import Store

FIRMWARE = "uefi"


def start(opened: Opened, *, rig: Rig, store: Store) -> Guest:
    """Boot an opened artifact and return when its console says that it is ready; nothing is added to it."""
    from imagekit.targets import _qemu

    return _qemu.start("qemu_x86_64_uefi", opened, rig=replace(rig, firmware=FIRMWARE, channel=False), store=store)


def interact(opened: Opened, *, rig: Rig, store: Store) -> int:
    """Boot an opened artifact with its console on this terminal; the exit status."""
    from imagekit.targets import _qemu_terminal

    return _qemu_terminal.interact(opened, rig=replace(rig, firmware=FIRMWARE, channel=False), store=store)


TARGET = Target(
    start,
    arches=("x86_64",),
    kinds=("disk", "kernel"),
    boots=True,
    firmware=FIRMWARE,
    modules=("virtio_pci", "virtio_net"),
    serial="ttyS0",
    interact=interact,
)
