"""A dynamic VHD for Hyper-V: those blocks of the disk that are not all zeros."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium, vhd
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk of vhd, in blocks."""
    return {"disk": keep(job.store, vhd.dynamic(medium.common(tree, job=job)), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".dynamic.vhd"},
    kind="disk",
    firmware=("bios", "uefi"),
    assets=("stub", "grub"),
    modules=("hv_netvsc",),
    drivers=("hv_storvsc", "sd_mod", "ata_piix", "virtio_pci", "virtio_blk"),
)
