"""A qcow2 disk that a BIOS starts."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium, qcow2
from imagekit.tree import Tree

FIRMWARE = ("bios",)


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk of raw_bios, without its zeros."""
    disk = medium.disk(tree, job=job, firmware=FIRMWARE)
    return {"disk": keep(job.store, qcow2.chunks(disk), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".bios.qcow2"},
    kind="disk",
    firmware=FIRMWARE,
    arches=("x86_64",),
    assets=("grub",),
    drivers=("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod"),
)
