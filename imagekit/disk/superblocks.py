"""Superblocks: what the heads of file systems and kernels say of themselves, of files that may be anybody's.

Nothing here unpacks anything, or reads more than a head. Sources: squashfs_fs.h, erofs_fs.h and
Documentation/filesystems/ext4/super.rst of Linux; its Documentation/arch/x86/boot.rst and arm64/booting.rst; the "LUKS2
On-Disk Format Specification"; for dm-verity see disk/verity.
"""

import struct
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from imagekit.disk import verity as hashes
from imagekit.disk.sparse import Sparse
from imagekit.errors import Problem

Facts = Mapping[str, Any]
PACKERS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}


def squashfs(disk: Sparse) -> Facts:
    """A squashfs; raises Problem when it is cut."""
    head = disk.read(0, 96).ljust(96, b"\0")
    inodes, time, block = struct.unpack_from("<III", head, 4)
    (packer,), (used,) = struct.unpack_from("<H", head, 20), struct.unpack_from("<Q", head, 40)
    _check_used(used, disk)
    return {"packed by": PACKERS.get(packer, packer), "inodes": inodes, "block": block, "used": used, "time": time}


def erofs(disk: Sparse) -> Facts:
    """An erofs; raises Problem when it is cut."""
    head = disk.read(1024, 128).ljust(128, b"\0")
    if not 9 <= head[12] <= 16:
        raise Problem("its blocks have a size that erofs does not know")
    used = struct.unpack_from("<I", head, 36)[0] << head[12]
    _check_used(used, disk)
    return {"id": str(UUID(bytes=head[48:64])), **_label(head[64:80]), "used": used}


def ext(disk: Sparse) -> Facts:
    """An ext2, ext3 or ext4; raises Problem when it is cut."""
    head = disk.read(1024, 1024).ljust(1024, b"\0")
    inodes, blocks = struct.unpack_from("<II", head)
    (shift,), (features,) = struct.unpack_from("<I", head, 24), struct.unpack_from("<I", head, 96)
    if shift > 6:
        raise Problem("its blocks have a size that ext4 does not know")
    if features & 0x80:  # 64bit
        blocks |= struct.unpack_from("<I", head, 0x150)[0] << 32
    _check_used(blocks << 10 + shift, disk)
    journal = {"journal": "to be replayed"} if features & 0x4 else {}  # needs_recovery
    used = blocks << 10 + shift
    return {"id": str(UUID(bytes=head[104:120])), **_label(head[120:136]), "inodes": inodes, "used": used, **journal}


def linux_x86(disk: Sparse) -> Facts:
    """A kernel for x86 with the version that it tells."""
    (at,) = struct.unpack("<H", disk.read(0x20E, 2).ljust(2, b"\0"))
    version = disk.read(at + 0x200, 128) if at else b""
    return {"machine": "x86", **_told("version", version)}


def linux_arm64(disk: Sparse) -> Facts:
    """A kernel for aarch64 with what it takes in memory."""
    (size,) = struct.unpack("<Q", disk.read(16, 8).ljust(8, b"\0"))
    return {"machine": "aarch64", "in memory": size}


def swap(disk: Sparse) -> Facts:
    """A swap space."""
    head = disk.read(1024, 512).ljust(512, b"\0")
    return {"id": str(UUID(bytes=head[12:28])), **_label(head[28:44])}


def luks(disk: Sparse) -> Facts:
    """A LUKS volume, version 1 or 2, by its first header."""
    head = disk.read(0, 4096).ljust(4096, b"\0")
    (version,) = struct.unpack_from(">H", head, 6)
    label = _label(head[24:72]) if version == 2 else {}
    return {"version": version, **_told("id", head[168:208]), **label}


def verity(disk: Sparse) -> Facts:
    """The hashes of a disk: of how many blocks, and their salt."""
    found = hashes.read(disk.read(0, hashes.BLOCK))
    return {"id": str(found.uuid), "blocks": found.blocks, "salt": found.salt.hex()}


def nothing(disk: Sparse) -> Facts:
    """What is only known by its first bytes."""
    _ = disk
    return {}


def _check_used(used: int, disk: Sparse) -> None:
    if used > disk.size:
        raise Problem(f"it is cut: it has {used} bytes, and there are {disk.size}")


def _label(raw: bytes) -> Facts:
    return _told("label", raw)


def _told(name: str, raw: bytes) -> Facts:
    text = raw.partition(b"\0")[0].decode("utf-8", "backslashreplace").replace("\n", "\\n")
    return {name: text} if text else {}
