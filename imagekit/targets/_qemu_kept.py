"""What is left of a machine without its power, as values: what was written to its disk, its TPM, UEFI's variables."""

import os
from pathlib import Path

from imagekit.disk import qcow2
from imagekit.disk.qcow2 import CLUSTER
from imagekit.errors import Problem
from imagekit.rig import Kept
from imagekit.targets._qemu_disks import Drive, Layer
from imagekit.targets._qemu_fittings import VARIABLES
from imagekit.targets._qemu_lives import Lives
from imagekit.targets._qemu_load import NAME

MOST = 1 << 14  # clusters of 64 KiB that are kept: they are held in memory


def kept(lives: Lives) -> Kept:
    """The parts of a machine, which is held still meanwhile; of one that has ended, as it left them."""
    machine = lives.machine
    if machine.is_alive:
        machine.ask(lambda: machine.monitor.execute("stop"))  # and QEMU writes down what it held back
    try:
        return _parts(lives)
    finally:
        if machine.is_alive:
            machine.ask(lambda: machine.monitor.execute("cont"))


def _parts(lives: Lives) -> Kept:
    drives, chip = {drive.name: drive for drive in lives.plan.drives}, lives.plan.chip
    altered = _written(drives[NAME]) if NAME in drives else {}
    state = chip.state() if chip else b""
    return Kept(altered, state, _whole(drives[VARIABLES]) if VARIABLES in drives else b"")


def _written(drive: Drive) -> dict[int, bytes]:
    """All that lies in its overlays, the highest of which counts."""
    found: dict[int, bytes] = {}
    for layer in (*drive.below[1:], Layer(drive.top, "qcow2")):
        for number, data in qcow2.clusters(Path(f"/proc/self/fd/{layer.handle}")):
            found[number] = data
            if len(found) > MOST:
                raise Problem(f"more than {MOST * CLUSTER >> 20} MiB were written to its disk: too many to be kept")
    return found


def _whole(drive: Drive) -> bytes:
    """A flash memory, whose lowest layer is raw, less the zeros at its end."""
    data = bytearray(os.pread(drive.below[0].handle, drive.size, 0).ljust(drive.size, b"\0"))
    for number, cluster in _written(drive).items():
        data[number * CLUSTER : (number + 1) * CLUSTER] = cluster[: drive.size - number * CLUSTER]
    return bytes(data.rstrip(b"\0"))  # what lies behind the end of a flash memory's file is zeros to QEMU
