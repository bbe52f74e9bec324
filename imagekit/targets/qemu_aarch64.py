"""aarch64 in QEMU: the virt machine, emulated or by KVM."""

from pathlib import Path

from imagekit.artifact import Opened
from imagekit.boot import Boot
from imagekit.guest import Guest, Rig, Target
from imagekit.store import Store


def start(opened: Opened, *, rig: Rig, store: Store) -> Guest:
    """Boot an opened artifact and return when the guest is ready."""
    from imagekit.targets import _qemu  # QEMU's protocol takes longer to load than a build with nothing to do

    return _qemu.start("qemu_aarch64", opened, rig=rig, store=store)


def resume(folder: Path, *, rig: Rig, store: Store) -> Guest:
    """A guest as it was when `Guest.save` froze it into a folder."""
    from imagekit.targets import _qemu_saved

    return _qemu_saved.resume(folder, rig=rig, store=store)


def measure(opened: Opened, *, rig: Rig, store: Store) -> Boot:
    """How an opened artifact boots by the instruction clock."""
    from imagekit.targets import _qemu_measure

    return _qemu_measure.measure(opened, rig=rig, store=store)


def interact(opened: Opened, *, rig: Rig, store: Store) -> int:
    """Boot an opened artifact with its console on this terminal; the exit status."""
    from imagekit.targets import _qemu_terminal

    return _qemu_terminal.interact(opened, rig=rig, store=store)


TARGET = Target(
    start,
    arches=("aarch64",),
    kinds=("kernel", "disk"),
    boots=True,
    reads=("uefi",),
    modules=("virtio_pci", "virtio_net"),
    serial="ttyAMA0",
    measure=measure,
    interact=interact,
    resume=resume,
)
