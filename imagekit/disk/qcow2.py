"""qcow2: disks that hold what was written, above others that stay as they are (docs/interop/qcow2.txt of QEMU)."""

import struct
from typing import NamedTuple

from imagekit.errors import Problem

MAGIC = b"QFI\xfb"
CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")  # version 3, without extensions
MAX_SIZE = 1 << 44  # bytes: 16 TiB, for which the first level takes a quarter of a MiB
EXTERNAL = 1 << 2  # an incompatible feature: the bytes lie in another file


class Header(NamedTuple):
    """What an overlay needs to know of a qcow2 file."""

    size: int  # bytes of the disk
    is_alone: bool  # no other file is needed to read it


def empty(size: int) -> bytes:
    """A file whose disk is `size` bytes of what lies under it, or zeros: it has no backing file in its header.

    Header, refcount table, refcount block, first level; a cluster each, the last one as many as it takes.
    """
    if not 0 < size <= MAX_SIZE:
        raise Problem(f"a disk of {size} bytes cannot be made", f"1 to {MAX_SIZE}")
    entries = -(-size // (CLUSTER * CLUSTER // 8))  # each points to a table of 8192 clusters
    first_level = -(-entries * 8 // CLUSTER)
    header = HEADER.pack(
        MAGIC, 3, 0, 0, CLUSTER_BITS, size, 0, entries, 3 * CLUSTER, CLUSTER, 1, 0, 0, 0, 0, 0, 4, HEADER.size
    )
    counts = struct.pack(">H", 1) * (3 + first_level)
    table = struct.pack(">Q", 2 * CLUSTER)
    return b"".join(part.ljust(CLUSTER, b"\0") for part in (header, table, counts)) + bytes(first_level * CLUSTER)


def header(first: bytes) -> Header | None:
    """What the first bytes of a file say; None when it is no qcow2 file."""
    if not first.startswith(MAGIC):
        return None
    if len(first) < HEADER.size:
        raise Problem("a qcow2 file of that few bytes has lost the others")
    _, version, backing, _, _, size, *_ = HEADER.unpack(first[: HEADER.size])
    features = struct.unpack_from(">Q", first, 72)[0] if version >= 3 else 0
    return Header(size, not backing and not features & EXTERNAL)
