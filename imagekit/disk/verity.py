"""dm-verity: a tree of hashes beside a read-only disk, by which the kernel checks every block that it reads.

Source: Documentation/admin-guide/device-mapper/verity.rst of the Linux kernel ("On-disk format", "Hash Tree"), and
cryptsetup's "DMVerity" page for the superblock in front of the tree. Version 1: the salt is hashed before the block,
a block of hashes is filled with zeros. What is written is what `veritysetup format` writes, to the bit.
"""

import struct
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from imagekit.disk.sparse import CHUNK, Sparse
from imagekit.errors import Problem

BLOCK = 4096  # bytes, of data and of hashes
DIGEST = 32  # bytes of sha256
PER_BLOCK = BLOCK // DIGEST
SUPERBLOCK = struct.Struct("<8sII16s32sIIQH6x256s168x")
SIGNATURE = b"verity\0\0"
MAX_SALT = 256  # bytes


class Verity(NamedTuple):
    """What the kernel is told, and what lies on the other disk."""

    root_hash: bytes
    device: bytes  # superblock and tree


class Superblock(NamedTuple):
    """What a hash device says of itself."""

    uuid: UUID
    blocks: int  # of the data
    salt: bytes


def tree(data: Sparse, *, salt: bytes, uuid: UUID) -> Verity:
    """The hashes of a disk. Raises Problem unless it has a whole number of blocks and the salt fits."""
    if not data.size or data.size % BLOCK:
        raise Problem(f"dm-verity takes a whole number of blocks of {BLOCK} bytes, and the root has {data.size} bytes")
    if len(salt) > MAX_SALT:
        raise Problem(f"a salt of {len(salt)} bytes is longer than the {MAX_SALT} that dm-verity has room for")
    levels = [_leaves(data, salt)]
    while len(levels[-1]) > DIGEST:
        levels.append(_digests(_filled(levels[-1]), salt))
    blocks = data.size // BLOCK
    head = SUPERBLOCK.pack(SIGNATURE, 1, 1, uuid.bytes, b"sha256", BLOCK, BLOCK, blocks, len(salt), salt)
    below = [_filled(level) for level in levels[:-1]]  # the last one is the root's own hash
    return Verity(levels[-1], b"".join((_filled(head), *reversed(below))))


def size(blocks: int) -> int:
    """Bytes of the hash device of so many blocks of data."""
    level, total = blocks, 1  # the superblock
    while level > 1:
        level = -(-level // PER_BLOCK)
        total += level
    return total * BLOCK


def read(device: bytes) -> Superblock:
    """The superblock of a hash device. Raises Problem for one that is not as `tree` makes it."""
    if len(device) < BLOCK or device[:8] != SIGNATURE:
        raise Problem("this is no hash device of dm-verity: it has no superblock")
    _, version, kind, uuid, algorithm, block, hash_block, blocks, size, salt = SUPERBLOCK.unpack_from(device)
    told = (version, kind, algorithm.rstrip(b"\0"), block, hash_block)
    if told != (1, 1, b"sha256", BLOCK, BLOCK) or size > MAX_SALT:
        raise Problem(f"this hash device of dm-verity is of another kind: {told}, salt of {size} bytes")
    return Superblock(UUID(bytes=uuid), blocks, salt[:size])


def verify(data: Sparse, device: bytes, *, root_hash: bytes) -> None:
    """Raise a Problem unless data and hashes are those of the root hash; it names the first block that differs."""
    about = read(device)
    if about.blocks * BLOCK != data.size:
        raise Problem(f"the hash device is of {about.blocks * BLOCK} bytes, and the root has {data.size}")
    right = tree(data, salt=about.salt, uuid=about.uuid)
    if len(device) != len(right.device):
        raise Problem(f"the hash device has {len(device)} bytes, not {len(right.device)}")
    leaves = len(device) - len(_filled(bytes(about.blocks * DIGEST))) * (about.blocks > 1)
    if (at := _first_difference(right.device[leaves:], device[leaves:])) is not None:
        raise Problem(f"block {at // DIGEST} is not the one that was hashed, at byte {at // DIGEST * BLOCK}")
    if (at := _first_difference(right.device[:leaves], device[:leaves])) is not None:
        raise Problem(f"the hash device is damaged at byte {at}")
    if right.root_hash != root_hash:
        raise Problem(f"the root hash is {right.root_hash.hex()}, not {root_hash.hex()}")


def _leaves(data: Sparse, salt: bytes) -> bytes:
    """The hash of every block; a mebibyte of zeros is hashed once."""
    zeros: dict[int, bytes] = {}
    found = []
    for offset, chunk in data.blocks(CHUNK):
        size = min(CHUNK, data.size - offset)
        if chunk is None:
            chunk_hashes = zeros.get(size) or zeros.setdefault(size, _digests(bytes(BLOCK), salt) * (size // BLOCK))
        else:
            chunk_hashes = _digests(chunk, salt)
        found.append(chunk_hashes)
    return b"".join(found)


def _digests(data: bytes, salt: bytes) -> bytes:
    """The hashes of all blocks in a row. Copying a state that has the salt costs less than hashing it again."""
    start, view, found = sha256(salt), memoryview(data), []
    for at in range(0, len(view), BLOCK):
        state = start.copy()
        state.update(view[at : at + BLOCK])
        found.append(state.digest())
    return b"".join(found)


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def _first_difference(one: bytes, other: bytes) -> int | None:
    return next((at for at in range(len(one)) if one[at] != other[at]), None) if one != other else None
