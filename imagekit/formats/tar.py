"""The whole tree as one plain .tar.gz, which every tar program reads, and `imagekit sign` signs as it is."""

from imagekit import early
from imagekit.artifact import Format, Job, Written
from imagekit.disk import gzip, segments, tar
from imagekit.store import Store
from imagekit.tree import Tree

RECIPE = f"tar 4 {gzip.VERSION}"  # raise the number when disk/tar or disk/gzip writes other bytes


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """One gzip member of cached parts; the manifest names the compressor, whose version the bytes depend on.

    No key is used: whoever builds the image again with another key has the same bytes. A part is packed in pieces that
    can be unpacked by themselves, so that signing finds the chunks of docs/format.md there.
    """
    parts = [_segment(job.store, part) for part in segments.parts(tree)]
    parts.append(gzip.segment([tar.END]))
    size = sum(part.size for part in parts)
    written = job.store.write(gzip.member(parts))
    facts = {"compressor": gzip.VERSION, "uncompressed": size, "tree": tree.digest, **_start(tree)}
    return {"root": Written(written, _length(parts), facts)}


def _segment(store: Store, part: Tree) -> gzip.Segment:
    def make(part: Tree) -> segments.Kept:
        made = gzip.joined(tar.runs(part.items()))
        return segments.Kept(made.data, (made.crc, made.size))

    kept = segments.kept(store, RECIPE, part, make)
    return gzip.Segment(kept.data, *kept.facts)


def _start(tree: Tree) -> dict[str, object]:
    """What whoever runs the image in place of a machine starts: its only service; nothing where there is a choice."""
    starts = early.starts(tree)
    if len(starts) != 1:
        return {}
    [only] = starts
    return {"start": {"arguments": [*only.argv], "environment": [*only.env], "user": _numbers(tree, only.user)}}


def _numbers(tree: Tree, user: str) -> str:
    """UID:GID of a user of the tree."""
    lines = tree.read("/etc/passwd").decode().splitlines() if "/etc/passwd" in tree else []
    known = {name: f"{uid}:{gid}" for name, _, uid, gid, *_ in (line.split(":") for line in lines)}
    return known.get(user, "0:0" if user == "root" else "")


def _length(parts: list[gzip.Segment]) -> int:
    return len(gzip.HEADER) + sum(len(part.data) for part in parts) + 10


FORMAT = Format(write, suffixes={"root": ".tar.gz"}, kind="root", bootable=False)
