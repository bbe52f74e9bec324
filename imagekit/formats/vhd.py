"""A fixed VHD for Hyper-V: every byte of the disk, and a footer."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium, vhd
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """BIOS is generation 1 of Hyper-V's machines, UEFI generation 2, which wants a VHDX."""
    return {"disk": keep(job.store, vhd.chunks(medium.common(tree, job=job)), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".vhd"},
    kind="disk",
    firmware=("bios", "uefi"),
    assets=("stub", "grub"),
    modules=("hv_netvsc",),
    drivers=("hv_storvsc", "sd_mod", "ata_piix", "virtio_pci", "virtio_blk"),
)
