"""An SD card for the Raspberry Pi 4: what it starts of by itself."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import card, raspi
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The whole card as it is written to one, with the firmware that the definition opted in to."""
    disk = card.card(tree, job=job, board=raspi.BOARDS["raspi4b"])
    return {"disk": keep(job.store, disk.chunks(), tree=tree.digest)}


FORMAT = Format(
    write,
    suffixes={"disk": ".rpi4.img"},
    kind="disk",
    arches=("aarch64",),
    firmware=("raspi4b",),
    assets=("raspi", "raspi-licence"),
    modules=card.MODULES,
)
