"""An update of an image in two slots: its UKI, root and hashes as one signed file, which `imagekit update` installs."""

from imagekit.artifact import Format, Job, Written, keep
from imagekit.disk import guarded, uki, updatefile
from imagekit.disk.sparse import Piece, Sparse, laid, one_after_the_other
from imagekit.errors import Defect, Problem
from imagekit.tree import Tree


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """What raw_efi lays into the first slot, byte by byte, for either."""
    uki.check(tree)
    if job.layout.slots == 1:
        raise Problem(
            "an update needs a second slot to go to", "write Layout(slots=2), for the disk that it updates too"
        )
    if not job.key:
        raise Defect("an update is signed, and nobody brought a key")
    made = guarded.slot(tree, job=job)
    parts = _parts(made)
    said = _said(made, parts, job)
    return {"update": keep(job.store, updatefile.write(said, parts, key=job.key), tree=tree.digest)}


def _parts(made: guarded.Slot) -> updatefile.Parts:
    program = one_after_the_other(made.program)
    if not made.root:
        return updatefile.Parts(Sparse(0, ()), Sparse(0, ()), program)
    device = made.root.hashes.device
    return updatefile.Parts(made.root.data, laid(len(device), [Piece(0, device)]), program)


def _said(made: guarded.Slot, parts: updatefile.Parts, job: Job) -> updatefile.Said:
    generation = job.layout.seal.generation if job.layout.seal else 0
    root_hash, salt = (made.root.hashes.root_hash.hex(), made.root.salt.hex()) if made.root else ("", "")
    sizes = tuple(part.size for part in parts)
    return updatefile.Said(job.name, job.version, job.arch, generation, root_hash, salt, *sizes)


FORMAT = Format(
    write,
    suffixes={"update": ".update"},
    kind="update",
    assets=("stub",),
    protects=("verity", "secure_boot", "seal", "slots"),
    drivers=("virtio_pci", "virtio_blk"),
)
