"""A raw disk that UEFI starts: a UKI on an EFI system partition, and what the layout says of the root."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import guarded, medium
from imagekit.tree import Tree

FIRMWARE = ("uefi",)


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk as it is, byte by byte."""
    plan = guarded.plan(tree, job=job)
    disk = medium.disk(tree, job=job, firmware=FIRMWARE, plan=plan)
    return {"disk": keep(job.store, disk.chunks(), tree=tree.digest, **guarded.facts(plan))}


FORMAT = Format(
    write,
    suffixes={"disk": ".efi.img"},
    kind="disk",
    firmware=FIRMWARE,
    assets=("stub",),
    protects=("verity", "secure_boot", "seal", "slots"),
    drivers=("virtio_pci", "virtio_blk"),
)
