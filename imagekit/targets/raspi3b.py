"""A Raspberry Pi 3 in QEMU, which starts a card as the Pi's own firmware does."""

from dataclasses import replace

from imagekit.artifact import Opened
from imagekit.guest import Guest, Rig, Target
from imagekit.store import Store

NAME = "raspi3b"


def start(opened: Opened, *, rig: Rig, store: Store) -> Guest:
    """Boot an opened card and return when the guest is ready."""
    from imagekit.targets import _qemu  # QEMU's protocol takes longer to load than a build with nothing to do

    return _qemu.start(NAME, opened, rig=replace(rig, firmware=NAME, fresh=False), store=store)


def interact(opened: Opened, *, rig: Rig, store: Store) -> int:
    """Boot an opened card with its console on this terminal; the exit status."""
    from imagekit.targets import _qemu_terminal

    return _qemu_terminal.interact(opened, rig=replace(rig, firmware=NAME), store=store)


TARGET = Target(
    start,
    arches=("aarch64",),
    kinds=("disk",),
    boots=True,
    firmware=NAME,
    reads=(NAME,),
    serial="ttyS1",
    interact=interact,
)
