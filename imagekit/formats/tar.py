"""The whole tree as one plain .tar.gz, which every tar program reads."""

from imagekit.artifact import Format, Job, Written
from imagekit.disk import gzip, segments, tar
from imagekit.store import Store
from imagekit.tree import Tree

RECIPE = f"tar 2 {gzip.VERSION}"  # raise the number when disk/tar writes other bytes


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """One gzip member of cached parts; the manifest names the compressor, whose version the bytes depend on."""
    parts = [_segment(job.store, part) for part in segments.parts(tree)]
    parts.append(gzip.segment([tar.END]))
    size = sum(part.size for part in parts)
    written = job.store.write(gzip.member(parts))
    facts = {"compressor": gzip.VERSION, "uncompressed": size, "tree": tree.digest}
    return {"root": Written(written, _length(parts), facts)}


def _segment(store: Store, part: Tree) -> gzip.Segment:
    def make(part: Tree) -> segments.Kept:
        made = gzip.segment(tar.chunks(part.items()))
        return segments.Kept(made.data, (made.crc, made.size))

    kept = segments.kept(store, RECIPE, part, make)
    return gzip.Segment(kept.data, *kept.facts)


def _length(parts: list[gzip.Segment]) -> int:
    return len(gzip.HEADER) + sum(len(part.data) for part in parts) + 10


FORMAT = Format(write, suffixes={"root": ".tar.gz"}, kind="root", bootable=False)
