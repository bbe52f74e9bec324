"""A stream-optimised VMDK for VMware and VirtualBox."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium, vmdk
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk in deflated grains."""
    made = vmdk.chunks(medium.common(tree, job=job))
    return {"disk": keep(job.store, made, tree=tree.digest, compressor=vmdk.VERSION)}


FORMAT = Format(
    write,
    suffixes={"disk": ".vmdk"},
    kind="disk",
    firmware=("bios", "uefi"),
    assets=("stub", "grub"),
    modules=("vmxnet3",),
    drivers=("vmw_pvscsi", "sd_mod", "ahci", "nvme", "ata_piix", "virtio_pci", "virtio_blk"),
    # Debian's cloud kernels have no ahci and no mptspi (LSI Logic): a machine's disk goes to a paravirtual SCSI
    # controller, to NVMe or to IDE there. On arm64, where there is no vmw_pvscsi either, it is NVMe.
)
