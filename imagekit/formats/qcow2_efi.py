"""A qcow2 disk that UEFI starts."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import medium, qcow2
from imagekit.tree import Tree

FIRMWARE = ("uefi",)


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The disk of raw_efi, without its zeros."""
    plan = None
    if job.layout.guards:
        from imagekit.disk import guarded  # here: most disks have nothing of it

        plan = guarded.plan(tree, job=job)
    disk = medium.disk(tree, job=job, firmware=FIRMWARE, plan=plan)
    return {"disk": keep(job.store, qcow2.chunks(disk), tree=tree.digest, **(plan.facts if plan else {}))}


FORMAT = Format(
    write,
    suffixes={"disk": ".efi.qcow2"},
    kind="disk",
    firmware=FIRMWARE,
    assets=("stub",),
    protects=("verity", "secure_boot", "seal", "slots"),
    drivers=("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod"),
)
