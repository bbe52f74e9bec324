"""Containers: every kind of file that holds a disk, known by its content, never by its name.

The file may be anybody's. No other file is ever opened, whatever it names.
"""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import BufferedRandom
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any, BinaryIO, NamedTuple

from imagekit.disk import container, gcp, ova, qcow2, vhd, vhdx, vmdk
from imagekit.disk.container import Map
from imagekit.disk.parts import size as in_words
from imagekit.disk.sparse import SECTOR, Sparse
from imagekit.errors import Problem, RigProblem

MIB = 1 << 20
Scratch = Callable[[], BinaryIO]  # a file that has no name and is gone when it is closed


class Container(NamedTuple):
    """A kind of file that holds a disk."""

    suffixes: tuple[str, ...]  # of file names, for those that are to be written
    write: Callable[[Sparse, Path], Iterator[bytes]]  # (disk, folder for what must be made before)
    read: Callable[[Path, Scratch], Sparse]
    magics: tuple[bytes, ...] = ()  # by which it is known; none: it is written, and read as another kind
    at: int = 0  # where they are; below 0: from the end


def _knows(kind: Container, head: bytes, tail: bytes) -> bool:
    return bool(kind.magics) and (head[kind.at :] if kind.at >= 0 else tail[kind.at :]).startswith(kind.magics)


def _alone(write: Callable[[Sparse], Iterator[bytes]]) -> Callable[[Sparse, Path], Iterator[bytes]]:
    return lambda disk, _folder: write(disk)


def _direct(read: Callable[[Path], Sparse]) -> Callable[[Path, Scratch], Sparse]:
    return lambda path, _scratch: read(path)


def _unpacked(path: Path, scratch: Scratch) -> Sparse:
    return gcp.read(container.file(path, "gcp"), scratch())


def raw(path: Path) -> Sparse:
    """A raw disk in a file; its holes are not looked at."""
    file = container.file(path, "raw")
    if not file.size or file.size % SECTOR:
        raise Problem(f"{path} is no disk: {file.size} bytes are no whole number of sectors", f"it can be: {NAMES}")
    found = Map(file, file.size)
    with open(path, "rb") as handle:
        for start, end in _filled(handle.fileno(), file.size):
            found.add(start, start, end - start, what="its bytes")
    return found.disk()


def _filled(handle: int, size: int) -> Iterator[tuple[int, int]]:
    """(from, to) of what is no hole (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            start = os.lseek(handle, end, os.SEEK_DATA)
            end = min(os.lseek(handle, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a file system without holes
                yield end, size
            return
        yield start, end


KINDS: Mapping[str, Container] = {
    "qcow2": Container((".qcow2",), _alone(qcow2.chunks), _direct(qcow2.read), (qcow2.MAGIC,)),
    "vhdx": Container((".vhdx",), _alone(vhdx.chunks), _direct(vhdx.read), (vhdx.MAGIC,)),
    "vmdk": Container((".vmdk",), _alone(vmdk.chunks), _direct(vmdk.read), (vmdk.MAGIC, vmdk.DESCRIPTOR)),
    "vhd_dynamic": Container((".dynamic.vhd",), _alone(vhd.dynamic), _direct(vhd.read), (vhd.COOKIE,)),
    "vhd": Container((".vhd",), _alone(vhd.chunks), _direct(vhd.read), (vhd.COOKIE,), -SECTOR),
    "azure": Container((".azure.vhd",), _alone(partial(vhd.chunks, multiple=MIB)), _direct(vhd.read)),
    "gcp": Container((".gcp.tar.gz", ".tar.gz"), _alone(gcp.chunks), _unpacked, (b"\x1f\x8b",)),
    "ova": Container(
        (".ova",), lambda disk, folder: ova.chunks(disk, folder=folder), _direct(ova.read), (b"ustar",), 257
    ),
    "raw": Container((".raw", ".img"), _alone(Sparse.chunks), _direct(raw)),
}
NAMES = ", ".join(sorted(KINDS))
FOREIGN = {  # what would be taken for a raw disk, and is none
    b"QED\0": "a QED disk",
    b"COWD": "a VMDK of ESX 2",
    b"<<< ": "a VDI",
    b"Bochs Virtual HD": "a disk of Bochs",
    b"\xfd7zXZ\0": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"BZh": "compressed by bzip2",
    b"PK\3\4": "a zip archive",
}


def recognised(path: Path) -> str:
    """The name of the kind of container that a file is, by its content; raises Problem for what holds no disk."""
    file = container.file(path, "disk")
    size = min(file.size, SECTOR)
    head, tail = (file.read(at, size, what="its begin") for at in (0, file.size - size))
    for magic, what in FOREIGN.items():
        if head.startswith(magic):
            raise Problem(f"{path} is {what}, and no disk of a kind that can be read", f"it can be: {NAMES}")
    return next((name for name, kind in KINDS.items() if _knows(kind, head, tail)), "raw")


@contextmanager
def opened(path: Path, *, folder: Path | None = None, most: int = 0) -> Iterator[tuple[str, Sparse]]:
    """(kind, disk) of a file of any kind, while the block lasts.

    folder: where what has to be unpacked goes, in files without a name (default: the system's temporary folder).
    most: how many bytes at most, of anybody's file that is only to be looked at; 0 for all of them.
    """
    with ExitStack() as stack:
        name = recognised(path)
        yield name, KINDS[name].read(path, lambda: stack.enter_context(Unpacked(folder, most=most)))


class Unpacked(BufferedRandom):
    """A file without a name for what has to be unpacked; raises RigProblem where a disk is full."""

    def __init__(self, folder: Path | None = None, *, most: int = 0) -> None:
        self._folder, self._most, self._taken = folder or gettempdir(), most, 0
        with self._room():
            super().__init__(TemporaryFile(dir=folder, buffering=0))  # noqa: SIM115 - closed with this one

    def write(self, data: Any, /) -> int:
        """Take bytes, if there are not too many by now."""
        self._taken += len(data)
        if self._most and self._taken > self._most:
            raise Problem(f"it unpacks to more than {in_words(self._most)}", "`imagekit convert` unpacks all of it")
        with self._room():
            return super().write(data)

    def flush(self) -> None:
        """Write what is still in memory."""
        with self._room():
            super().flush()

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RigProblem(
                f"cannot unpack to {self._folder}: {error.strerror}", "make room there; TMPDIR names another folder"
            ) from error

    def close(self) -> None:
        """Forget it, and with it what could not be written."""
        with suppress(RigProblem, OSError):
            super().close()
