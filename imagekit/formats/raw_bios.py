"""A raw disk that a BIOS starts: GRUB, kernel and initrd, and what the layout says of the root."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium
from imagekit.tree import Tree

FIRMWARE = ("bios",)


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk as it is, byte by byte."""
    disk = medium.disk(tree, job=job, firmware=FIRMWARE)
    return {"disk": keep(job.store, disk.chunks(), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".bios.img"},
    kind="disk",
    firmware=FIRMWARE,
    arches=("x86_64",),
    assets=("grub",),
    drivers=("virtio_pci", "virtio_blk"),
)
