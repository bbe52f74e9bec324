"""An OVA, which VMware and VirtualBox import as a machine."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium, ova, vmdk
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk of vmdk, and what describes its machine."""
    made = ova.chunks(medium.common(tree, job=job), folder=job.store.folder("drafts-of-disks"))
    return {"disk": keep(job.store, made, tree=tree.digest, compressor=vmdk.VERSION)}


FORMAT = Format(
    write,
    suffixes={"disk": ".ova"},
    kind="disk",
    firmware=("bios", "uefi"),
    assets=("stub", "grub"),
    modules=("vmxnet3",),
    drivers=("vmw_pvscsi", "sd_mod", "ahci", "nvme", "ata_piix", "virtio_pci", "virtio_blk"),  # as vmdk has them
)
