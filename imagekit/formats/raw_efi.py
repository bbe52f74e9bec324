"""A raw disk that UEFI starts: a UKI on an EFI system partition, and what the layout says of the root."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium
from imagekit.tree import Tree

FIRMWARE = ("uefi",)


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk as it is, byte by byte."""
    plan = None
    if job.layout.guards:
        from imagekit.disk import guarded  # here: most disks have nothing of it

        plan = guarded.plan(tree, job=job)
    disk = medium.disk(tree, job=job, firmware=FIRMWARE, plan=plan)
    return {"disk": keep(job.store, disk.chunks(), tree=tree.digest, **(plan.facts if plan else {}))}


FORMAT = Format(
    write,
    suffixes={"disk": ".efi.img"},
    kind="disk",
    firmware=FIRMWARE,
    assets=("stub",),
    protects=("verity", "secure_boot", "seal", "slots"),
    drivers=("virtio_pci", "virtio_blk"),
)
