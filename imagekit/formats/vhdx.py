"""A VHDX for Hyper-V's machines of generation 2, and for those of generation 1."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium, vhdx
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk of vhd, in blocks."""
    return {"disk": keep(job.store, vhdx.chunks(medium.common(tree, job=job)), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".vhdx"},
    kind="disk",
    firmware=("bios", "uefi"),
    assets=("stub", "grub"),
    modules=("hv_netvsc",),
    drivers=("hv_storvsc", "sd_mod", "ata_piix", "virtio_pci", "virtio_blk"),
)
