"""Kernel, initrd and command line apart: what direct boot, PXE and kexec take."""

import zstandard

from imagekit.artifact import Format, Job, Written
from imagekit.disk import cpio, segments
from imagekit.errors import Problem
from imagekit.store import Store
from imagekit.tree import Tree

LEVEL = -1  # a fifth larger than 3, and unpacked a quarter sooner, which is what a machine waits for first
RECIPE = f"cpio zstandard {zstandard.__version__} level {LEVEL}"
KERNEL, CMDLINE = "/boot/kernel", "/boot/cmdline"


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The initrd is a concatenation of cached parts, each an archive of its own (see disk/cpio)."""
    if KERNEL not in tree or CMDLINE not in tree:
        raise Problem("format kernel_initrd needs a kernel", 'give the image kernel="debian:linux-image-cloud"')
    parts = [_segment(job.store, part) for part in segments.parts(tree.without((KERNEL, CMDLINE)))]
    facts = {"compressor": RECIPE.removeprefix("cpio "), "tree": tree.digest}
    return {
        "kernel": _whole(job.store, tree, KERNEL),
        "initrd": Written(job.store.write(parts), sum(map(len, parts)), facts),
        "cmdline": _whole(job.store, tree, CMDLINE),
    }


def _segment(store: Store, part: Tree) -> bytes:
    def make(part: Tree) -> segments.Kept:
        packed = zstandard.ZstdCompressor(level=LEVEL).compress(cpio.archive(part.items()))
        return segments.Kept(packed + bytes(-len(packed) % 4), ())  # the kernel wants each archive at a multiple of 4

    return segments.kept(store, RECIPE, part, make).data


def _whole(store: Store, tree: Tree, path: str) -> Written:
    """One file of the tree as it is; a kernel that the store has is not written again (it is hashed when opened)."""
    entry = tree[path]
    if not store.has(entry.sha256):
        store.write([tree.read(path)])
    return Written(entry.sha256, entry.size, {})


FORMAT = Format(write, suffixes={"kernel": ".kernel", "initrd": ".initrd", "cmdline": ".cmdline"}, kind="kernel")
