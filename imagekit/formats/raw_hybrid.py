"""A raw disk that both a BIOS and UEFI start."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium
from imagekit.tree import Tree

FIRMWARE = ("bios", "uefi")


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk as it is, byte by byte."""
    disk = medium.disk(tree, job=job, firmware=FIRMWARE)
    return {"disk": keep(job.store, disk.chunks(), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".img"},
    kind="disk",
    firmware=FIRMWARE,
    arches=("x86_64",),
    assets=("grub", "stub"),
    drivers=("virtio_pci", "virtio_blk"),
)
