"""A tar.gz for Google Compute Engine, with a disk of whole GiB."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import gcp, medium
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """Its machines have virtio-scsi, NVMe, virtio's network and Google's own."""
    disk = medium.common(tree, job=job, multiple=gcp.MULTIPLE)
    return {"disk": keep(job.store, gcp.chunks(disk), tree=tree.digest, compressor=gcp.VERSION)}


FORMAT = Format(
    write,
    suffixes={"disk": ".gcp.tar.gz"},
    kind="disk",
    firmware=("bios", "uefi"),
    assets=("stub", "grub"),
    modules=("virtio_net", "gve"),
    drivers=("virtio_pci", "virtio_scsi", "sd_mod", "nvme", "virtio_blk"),
)
