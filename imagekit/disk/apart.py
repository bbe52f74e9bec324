"""Kernel, initrd, arguments and root apart: what starts a kernel directly, with its root on the first virtio disk."""

from imagekit import early
from imagekit.artifact import Job, Written, keep
from imagekit.disk import cmdline, initrd, roots
from imagekit.tree import Tree

DISK = "/dev/vda"


def write(tree: Tree, *, kind: str, job: Job) -> dict[str, Written]:
    """A root of this kind beside a kernel whose arguments name it; the initrd has what finds it, and no more."""
    initrd.check(tree, format=f"kernel_{kind}", arch=job.arch)
    arguments = cmdline.arguments(tree, (f"root={DISK}", f"rootfstype={kind}")).encode("utf-8", "surrogateescape")
    return {
        "kernel": initrd.whole(tree, initrd.KERNEL, store=job.store),
        "initrd": initrd.write(early.initrd(tree), store=job.store, of=tree.digest),
        "cmdline": keep(job.store, [arguments]),
        "root": roots.written(initrd.root(tree), kind=kind, seed=tree.digest, job=job),
    }


def suffixes(kind: str) -> dict[str, str]:
    """Names of the parts; those of other formats, which lie in the same folder, are other ones but for the kernel."""
    return {"kernel": ".kernel", "initrd": f".{kind}.initrd", "cmdline": f".{kind}.cmdline", "root": f".{kind}"}


def modules(kind: str) -> tuple[str, ...]:
    """The kernel modules that find such a root and lay changes over it."""
    return ("virtio_blk", *early.ROOT_MODULES[kind])
