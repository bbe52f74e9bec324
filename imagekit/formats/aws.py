"""A raw disk for Amazon's EC2, as its import-snapshot takes it."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """Nitro machines show disks as NVMe and networks as ENA, the Xen ones before them Xen's own."""
    return {"disk": keep(job.store, medium.common(tree, job=job).chunks(), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".aws.raw"},
    kind="disk",
    firmware=("bios", "uefi"),
    assets=("stub", "grub"),
    modules=("ena",),
    drivers=("nvme", "xen_blkfront", "virtio_pci", "virtio_blk"),
)
