"""ISO 9660 with El Torito: what a machine starts from a disc.

pycdlib lays the volume out, and only that: of the files it is told the sizes, and their bytes never pass through it.
What comes from elsewhere is read by disk/isoread, which believes nothing.

Sources: ECMA-119 (ISO 9660), "El Torito" Bootable CD-ROM Format Specification 1.0, IEEE P1282 (Rock Ridge), UEFI 2.10
section 13.3.2.1 (platform EF).
"""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from types import SimpleNamespace
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, cast

from imagekit.disk.sparse import SECTOR, Piece, laid
from imagekit.errors import Problem

if TYPE_CHECKING:
    from pycdlib import PyCdlib  # at run time only when an ISO is written

BLOCK = 2048
PLATFORMS = {"bios": 0x00, "uefi": 0xEF}
NAME = re.compile(r"[a-z0-9_]{1,8}(\.[a-z0-9_]{1,3})?\Z")  # in capitals: what every reader of ISO 9660 can tell apart
LABEL = re.compile(r"[A-Z0-9_]{1,32}\Z")  # d-characters (ECMA-119, 7.4.1)
MOST_LOADED = 0xFFFF  # sectors, the largest that an entry can say
LARGEST_FILE = (1 << 32) - BLOCK
CATALOG = "boot.cat"
BOOT_INFO = 8  # where the boot information table of mkisofs lies in a program for a BIOS

FIRST = 16  # blocks before the volume
_ONE = Lock()  # pycdlib's clock is a global of its modules


class Boot(NamedTuple):
    """A file that firmware starts."""

    platform: str  # "bios" or "uefi"
    file: str
    sectors: int = 0  # of 512 bytes, that a BIOS loads; 0: all


class Planned(NamedTuple):
    """A volume without its files."""

    size: int
    pieces: tuple[Piece, ...]
    places: Mapping[str, int]  # file -> offset; they lie in the order in which they were given


def plan(sizes: Mapping[str, int], *, label: str, boots: Sequence[Boot]) -> Planned:
    """Where the files of a volume lie, and all else that is in it; sizes: in bytes, none empty.

    Raises Problem for names and sizes that ISO 9660 cannot hold.
    """
    _check(sizes, label)
    import pycdlib

    disc, sink = pycdlib.PyCdlib(), _Sink()
    with _still_clock():
        disc.new(interchange_level=1, vol_ident=label, rock_ridge="1.09")
        for name, size in sizes.items():
            disc.add_fp(cast(BinaryIO, _Zeros(size)), size, _identifier(name), rr_name=name, file_mode=0o100444)
        for boot in boots:
            _add_boot(disc, boot, sizes[boot.file])
        disc.write_fp(cast(BinaryIO, sink))
        places = {name: disc.get_record(iso_path=_identifier(name)).extent_location() * BLOCK for name in sizes}
        disc.close()
    return Planned(-(-sink.end // BLOCK) * BLOCK, sink.pieces(), places)


def with_boot_info(program: bytes, *, at: int) -> bytes:
    """A program for a BIOS that is told its offset on the disc (mkisofs(8), "EL TORITO BOOT INFORMATION TABLE")."""
    padded = program + bytes(-len(program) % 4)
    total = sum(word for (word,) in struct.iter_unpack("<I", padded[64:])) & 0xFFFFFFFF
    table = struct.pack("<IIII40x", FIRST, at // BLOCK, len(program), total)
    return program[:BOOT_INFO] + table + program[BOOT_INFO + len(table) :]


def _check(sizes: Mapping[str, int], label: str) -> None:
    if not LABEL.match(label):
        raise Problem(
            f"ISO 9660 cannot hold the label {label!r}", "at most 32 of the letters A to Z, digits and underscores"
        )
    for name, size in sizes.items():
        if not NAME.match(name) or name == CATALOG:
            raise Problem(
                f"ISO 9660 cannot hold the name {name!r} so that all who read it find it",
                "eight letters, digits or underscores, a dot, and three more, none of them capitals",
            )
        if not 0 < size <= LARGEST_FILE:
            raise Problem(f"ISO 9660 cannot hold {name!r} with {size} bytes", "at most 4 GiB, and not none")


def _identifier(name: str) -> str:
    stem, _, extension = name.upper().partition(".")
    return f"/{stem}.{extension};1"


def _add_boot(disc: "PyCdlib", boot: Boot, size: int) -> None:
    sectors = boot.sectors or -(-size // SECTOR)
    if sectors > MOST_LOADED:
        sectors = 1  # 0 and 1 say "to the end of the disc" (UEFI 2.10, 13.3.2.1)
    platform = PLATFORMS[boot.platform]
    disc.add_eltorito(_identifier(boot.file), platform_id=platform, efi=boot.platform == "uefi", boot_load_size=sectors)


@contextmanager
def _still_clock() -> Iterator[None]:
    """pycdlib writes the time at which it runs in many places, and knows no other."""
    import sys
    import time

    clock = SimpleNamespace(**vars(time))
    clock.time, clock.localtime = (lambda: 0.0), (lambda *_: time.gmtime(0))
    with _ONE:
        told = [
            module for name, module in sys.modules.items() if name.startswith("pycdlib.") and hasattr(module, "time")
        ]
        for module in told:
            module.time = clock  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for module in told:
                module.time = time  # type: ignore[attr-defined]


class _Zeros:
    """A file of so many bytes for those who need its size alone."""

    mode = "rb"

    def __init__(self, size: int) -> None:
        self.size, self.at = size, 0

    def read(self, size: int = -1) -> bytes:
        size = max(min(size if size >= 0 else self.size, self.size - self.at), 0)
        self.at += size
        return bytes(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at


class _Sink:
    """A file that keeps what is written to it, less the zeros."""

    def __init__(self) -> None:
        self.at = self.end = 0
        self.kept: dict[int, bytes] = {}

    def write(self, data: bytes) -> int:
        if data.count(0) != len(data):
            self.kept[self.at] = bytes(data)
        self.at += len(data)
        self.end = max(self.end, self.at)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.end)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def pieces(self) -> tuple[Piece, ...]:
        return laid(self.end, (Piece(at, data) for at, data in self.kept.items())).pieces
