"""EROFS file systems that are mounted out of files of ours, and what guards those files.

Linux mounts a file from version 6.12 on, for root, and not one in memory. Whether it does here is tried, not guessed.
"""

# ruff: noqa: PTH102 - as in namespace.py: pathlib costs as much as the rest of a start

import os
import struct
from contextlib import suppress

from imagekit import asked, namespace, roots

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable

COVER = "/sys"  # what a root of one run lies on: nothing that is still to be loaded lies below it
FS_IOC_ENABLE_VERITY, FS_IOC_MEASURE_VERITY = 0x40806685, 0xC0046686  # fsverity.rst; one number for all machines
DM_VERITY = "dm-verity: not used: it needs a block device, and this is a file"


def is_possible(image: str) -> bool:
    """Whether this kernel mounts an image for us, tried in a process and a namespace of their own."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            namespace.unshare(inside=0)
            asked.mount_image(image, COVER)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def is_mapped() -> bool:
    """Whether user ids mean something else here than on the machine: not all of them are mapped to themselves."""
    with open("/proc/self/uid_map", "rb", buffering=0) as file:
        return file.read(100).split() != [b"0", b"0", b"4294967295"]


def mount_unnamed(write: "Callable[[int], None]", beside: str) -> bool:
    """Mount a file system out of a file without a name, in the first place where that can be; False for nowhere."""
    os.mkdir(f"{COVER}/root")
    for place in (roots.location(), "/var/tmp", "/tmp", beside):
        try:
            handle = os.open(place, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o400)
        except OSError:
            continue
        try:
            write(handle)
            asked.mount_image(f"/proc/self/fd/{handle}", f"{COVER}/root")
            return True
        except PermissionError:  # not for us, wherever the file lies
            break
        except OSError:  # full, or a file system in memory
            continue
        finally:
            os.close(handle)
    os.rmdir(f"{COVER}/root")  # noqa: PTH106
    return False


def guard(image: str) -> None:
    """Let the kernel verify each block that it reads of the image from now on, where it can."""
    import fcntl

    handle = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # the kernel, or the file system, has no fs-verity: `guarded` tells
            fcntl.ioctl(handle, FS_IOC_ENABLE_VERITY, struct.pack("<IIII112x", 1, 1, 4096, 0))  # SHA-256
    finally:
        os.close(handle)


def guarded(image: str) -> str:
    """Whether the kernel verifies what it reads of an image, in words."""
    import fcntl

    handle = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        digest = bytearray(struct.pack("<HH", 1, 32) + bytes(32))
        fcntl.ioctl(handle, FS_IOC_MEASURE_VERITY, digest)
    except OSError as error:
        return f"fs-verity: no: {error.strerror}; it is a copy that only its owner can write to"
    finally:
        os.close(handle)
    return "fs-verity: yes, the kernel verifies each block that it reads"
