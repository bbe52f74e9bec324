"""An ISO that UEFI starts, from a disc and from a USB stick."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import disc
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """A UKI in a small FAT volume."""
    made = disc.disk(tree, job=job, firmware=FORMAT.firmware)
    return {"disk": keep(job.store, made.chunks(), tree=tree.digest)}


FORMAT = Format(write, suffixes={"disk": ".efi.iso"}, kind="disk", firmware=("uefi",), in_memory=True, assets=("stub",))
