"""A fixed VHD for Azure, whose disk is a whole number of MiB."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium, vhd
from imagekit.tree import Tree

MULTIPLE = 1 << 20  # bytes ("Prepare a VHD for Azure": a virtual size that is a multiple of 1 MiB)


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """Machines of generation 1 start it by BIOS, those of generation 2 by UEFI."""
    disk = medium.common(tree, job=job, multiple=MULTIPLE)
    return {"disk": keep(job.store, vhd.chunks(disk), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".azure.vhd"},
    kind="disk",
    firmware=("bios", "uefi"),
    assets=("stub", "grub"),
    modules=("hv_netvsc",),
    drivers=("hv_storvsc", "sd_mod", "nvme", "virtio_pci", "virtio_blk"),
)
