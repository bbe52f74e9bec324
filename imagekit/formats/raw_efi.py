"""A raw disk that UEFI starts: a UKI on an EFI system partition, and what the layout says of the root."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium
from imagekit.tree import Tree

FIRMWARE = ("uefi",)


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk as it is, byte by byte."""
    disk = medium.disk(tree, job=job, firmware=FIRMWARE)
    return {"disk": keep(job.store, disk.chunks(), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".efi.img"},
    kind="disk",
    firmware=FIRMWARE,
    assets=("stub",),
    drivers=("virtio_pci", "virtio_blk"),
)
