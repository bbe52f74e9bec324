"""Rooted: where the root of a disk lies, in a partition or in the initrd, and how the kernel is told."""

from collections.abc import Mapping
from uuid import UUID

from imagekit import early
from imagekit.artifact import Job
from imagekit.disk import ids
from imagekit.disk.discoverable import DATA, READ_ONLY, ROOTS
from imagekit.disk.plan import Part
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.tree import Slice, Tree

CHANGES = 16 << 20  # bytes of the partition of changes as it is shipped
SECTOR = 512


def parts(tree: Tree, *, job: Job) -> list[Part]:
    """The partitions of the root and of its changes, where they lie on the disk."""
    layout, seed = job.layout, tree.digest
    if layout.root == "initrd":
        return []
    from imagekit.disk import roots  # here: most disks have their root in the initrd

    written = roots.write(without_boot(tree), kind=layout.root, seed=seed, job=job)
    found = [Part("root", ROOTS[job.arch], _of(written), READ_ONLY)]
    if layout.changes == "disk":
        found.append(Part("changes", DATA, _of(roots.changes(CHANGES, seed=seed, job=job)), grows=True))
    return found


def initrd(tree: Tree, *, job: Job) -> Tree:
    """The whole tree, or what finds the root on the disk."""
    return without_boot(tree) if job.layout.root == "initrd" else early.initrd(tree)


def without_boot(tree: Tree) -> Tree:
    """The tree without kernel, arguments and what else a boot takes."""
    return tree.without(("/boot",))


def partition_id(tree: Tree, name: str) -> UUID:
    """The unique id of a partition, by which the kernel's arguments name it."""
    return ids.guid(tree.digest, f"partition {name}")


def where(tree: Tree, *, job: Job) -> Mapping[str, str]:
    """What the kernel is told of the root and its changes, by the names that `uki.arguments` has for them."""
    if job.layout.root == "initrd":
        return {}
    names = ("root", "changes") if job.layout.changes == "disk" else ("root",)
    return {name: f"PARTUUID={partition_id(tree, name)}" for name in names}


def _of(written: Slice) -> Sparse:
    return laid(-(-written.size // SECTOR) * SECTOR, [Piece(0, written)])
