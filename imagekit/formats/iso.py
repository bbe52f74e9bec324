"""An ISO that BIOS and UEFI start, from a disc and from a USB stick; UEFI alone on aarch64."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import disc
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """Kernel and initrd lie on it twice where there are both: GRUB cannot read a UKI."""
    firmware = tuple(name for name in FORMAT.firmware if name != "bios" or job.arch == "x86_64")
    made = disc.disk(tree, job=job, firmware=firmware)
    return {"disk": keep(job.store, made.chunks(), tree=tree.digest)}


FORMAT = Format(
    write, suffixes={"disk": ".iso"}, kind="disk", firmware=("bios", "uefi"), in_memory=True, assets=("stub", "grub")
)
