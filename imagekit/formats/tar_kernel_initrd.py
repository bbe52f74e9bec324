"""Kernel, initrd and command line as one tar, with the names that LinuxKit's tar-kernel-initrd gives them."""

from itertools import chain

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import initrd, tar
from imagekit.tree import Entry, Slice, Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """What kernel_initrd writes, as kernel, initrd.img and cmdline."""
    initrd.check(tree, format="tar_kernel_initrd", arch=job.arch)
    made = {
        "/kernel": initrd.whole(tree, initrd.KERNEL, store=job.store),
        "/initrd.img": initrd.write(initrd.root(tree), store=job.store, of=tree.digest),
        "/cmdline": initrd.whole(tree, initrd.CMDLINE, store=job.store),
    }
    members = [(path, _entry(job, part)) for path, part in made.items()]
    return {"archive": keep(job.store, chain(tar.chunks(members), [tar.END]), **made["/initrd.img"].facts)}


def _entry(job: Job, part: Written) -> Entry:
    content = Slice(str(job.store.path(part.sha256)), 0, part.size)
    return Entry("file", 0o644, size=part.size, sha256=part.sha256, content=content)


FORMAT = Format(write, suffixes={"archive": ".kernel-initrd.tar"}, kind="kernel")
