"""An ISO that a BIOS starts, from a disc and from a USB stick."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import disc
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """GRUB, kernel and initrd as files of the disc."""
    made = disc.disk(tree, job=job, firmware=FORMAT.firmware)
    return {"disk": keep(job.store, made.chunks(), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".bios.iso"},
    kind="disk",
    arches=("x86_64",),
    firmware=("bios",),
    in_memory=True,
    assets=("grub",),
)
