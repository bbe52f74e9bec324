"""Kernel, initrd and command line as one .efi file, a unified kernel image, which UEFI starts by itself."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import initrd, uki
from imagekit.store import flow
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """A stub from the image's suite, and behind it what kernel_initrd writes in three files."""
    initrd.check(tree, format="uki", arch=job.arch)
    if job.layout.guards:
        from imagekit.disk import guarded  # here: most have nothing of it

        signed, told = guarded.alone(tree, job=job)
        return {"uki": keep(job.store, flow(signed), **told, **initrd.facts(tree.digest))}
    parts = initrd.laid(initrd.root(tree), store=job.store)
    of = uki.programs(tree, arch=job.arch)
    made = uki.contents(tree, parts, arguments=uki.arguments(tree, job=job), of=of)
    return {"uki": keep(job.store, flow(made), **initrd.facts(tree.digest))}


FORMAT = Format(
    write,
    suffixes={"uki": ".efi"},
    kind="kernel",
    firmware=("uefi",),
    assets=("stub",),
    protects=("secure_boot", "seal"),
    drivers=("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "nvme", "ahci"),  # of somebody else's, to be opened
)
