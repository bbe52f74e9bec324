"""Kernel, initrd and command line apart: what direct boot, PXE and kexec take."""

from imagekit.artifact import Format, Job, Written
from imagekit.disk import initrd
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The whole root is the initrd."""
    initrd.check(tree, format="kernel_initrd", arch=job.arch)
    return {
        "kernel": initrd.whole(tree, initrd.KERNEL, store=job.store),
        "initrd": initrd.write(initrd.root(tree), store=job.store, of=tree.digest),
        "cmdline": initrd.whole(tree, initrd.CMDLINE, store=job.store),
    }


FORMAT = Format(write, suffixes={"kernel": ".kernel", "initrd": ".initrd", "cmdline": ".cmdline"}, kind="kernel")
