"""Image files with bytes that nobody wrote: every reader reads them or says what is wrong, soon and in little memory.

Each seed is a small file as we write it. Its bytes are changed where it has any structure, most checksums are put right
again, and what reads such files is asked for everything. The draws are the same in every run; LONGER makes more.
"""

import os
import random
import resource
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import pytest
from test_disk_hostile import headers, regions, vhd_summed
from test_iso import volume as iso_volume
from test_outline import DISK as EFI_DISK
from test_outline import FILES
from toy_program import kernel

from imagekit import inspection
from imagekit.arch import ARCHES
from imagekit.disk import (
    containers,
    fat,
    fatfiles,
    fdt,
    gcp,
    gpt,
    grub,
    gzip,
    isoread,
    loader,
    mbr,
    outline,
    ova,
    pe,
    qcow2,
    raspi,
    tarhead,
    tarlist,
    vhd,
    vhdx,
    vmdk,
)
from imagekit.disk.sparse import Piece, laid
from imagekit.errors import Problem

MIB = 1 << 20
LONGER = int(os.environ.get("HOSTILE_ROUNDS", "0"))
ROUNDS = LONGER or 120
SLOW = {"vhdx": 6, "gcp": 2, "vhd_dynamic": 2}  # what is large, or has large checksums
NOISE = random.Random(1).randbytes(5000)
DISK = laid(3 * MIB, [Piece(0, b"text " * 900), Piece(MIB + 5, NOISE), Piece(3 * MIB - 512, NOISE[:512])])
NUMBERS = (
    *(0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 16),
    *(0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1),
)


def flat(disk) -> bytes:
    return b"".join(disk.chunks())


def tar_summed(data: bytes) -> bytes:
    """A tar whose headers, as far as they are where they were, have their right checksums."""
    made = bytearray(data)
    for at in range(0, min(len(made) - 511, 8192), 512):
        if made[at + 257 : at + 262] == b"ustar":
            made[at + 148 : at + 156] = b" " * 8
            made[at + 148 : at + 156] = b"%06o\0 " % sum(made[at : at + 512])
    return bytes(made)


def gpt_summed(data: bytes) -> bytes:
    """A disk whose first table has its right checksums, if it is one at all."""
    if len(data) < 34 * 512:
        return data
    head = bytearray(data[512:1024])
    at, count, size = struct.unpack_from("<QII", head, 72)
    array = data[at * 512 : at * 512 + count * size] if count * size < MIB else b""
    head[88:92] = struct.pack("<I", zlib.crc32(array))
    length = min(struct.unpack_from("<I", head, 12)[0], 512)
    head[16:20] = bytes(4)
    head[16:20] = struct.pack("<I", zlib.crc32(head[:length]))
    return data[:512] + bytes(head) + data[1024:]


def vhd_right(data: bytes) -> bytes:
    return vhd_summed(vhd_summed(data, 512, 1024, 36), len(data) - 512, 512, 64) if len(data) > 2048 else data


def vhdx_right(data: bytes) -> bytes:
    return regions(headers(data, 0, b""), 0, b"") if len(data) > MIB else data


def gcp_file() -> bytes:
    """Less than a GiB, which is as sound to read."""
    parts = (tarhead.header("disk.raw", DISK.size), *DISK.chunks(), gcp.END)
    return b"".join(gzip.member(gzip.segment([chunk]) for chunk in parts))


def ova_file(folder) -> bytes:
    return b"".join(ova.chunks(DISK, folder=folder))


# --- what is read -----------------------------------------------------------------------------------------------------


def in_memory(*reads: Callable[[object], object]) -> Callable[[bytes, object], None]:
    """Ask each of these for all there is in a disk of these bytes."""

    def ask(data, path):
        _ = path
        disk = laid(len(data), [Piece(0, data)])
        for read in (*reads, lambda disk: list(outline.outline(disk, "x").lines())):
            refusing(partial(read, disk))

    return ask


def in_a_file(data, path):
    """Ask for the disk in a container, and for what `imagekit inspect` tells of it."""
    path.write_bytes(data)
    refusing(lambda: contents(path))
    list(inspection.inside(path).lines())  # has no excuse


def contents(path):
    with containers.opened(path) as (_, disk):
        for _, data in disk.filled(MIB):
            assert len(data) <= MIB


def files_of(read):
    def ask(disk):
        for file in read(disk).values():
            assert sum(len(chunk) for chunk in file.content().chunks()) == file.size

    return ask


def refusing(ask):
    with suppress(Problem):
        ask()


def of_every_board(disk):
    for board in raspi.BOARDS.values():
        refusing(partial(raspi.boot, fatfiles.read(disk), board))


def of_every_machine(disk):
    for arch in ARCHES:
        refusing(partial(loader.find, disk, arch=arch))


FAT = fat.volume({**FILES, "a" * 60: b"1" * 3000, "d/e/f/" + "b" * 30: b"2"}, serial=1)
ISO = iso_volume()
UKI = pe.uki(kernel(), {".osrel": b"ID=toy\n", ".cmdline": b"quiet", ".initrd": b"i" * 99, ".linux": kernel()})
TREE = fdt.Fdt(fdt.Node("", {"compatible": b"a\0b\0"}, (fdt.Node("soc", {"reg": b"1234"}, ()),)))
MBR = bytes(mbr.table([mbr.Partition(1, mbr.FAT_LBA, 512, 1 << 19, True)], serial=7).content)
TAR = tarhead.header("a", 600) + bytes(1024) + tarhead.header("b/c", 0) + bytes(1024)


def vhd_fixed_right(data: bytes) -> bytes:
    return vhd_summed(data, len(data) - 512, 512, 64) if len(data) > 512 else data


def whole(*reads: Callable[[bytes], object]) -> Callable[[bytes, object], None]:
    """Ask each of these that wants bytes."""
    return in_memory(*(partial(_whole, read) for read in reads))


def _whole(read, disk):
    return read(disk.read(0, disk.size))


SEEDS = {  # the file, who puts its checksums right, who reads it
    "qcow2": (lambda _: b"".join(qcow2.chunks(DISK)), bytes, in_a_file),
    "vhd": (lambda _: b"".join(vhd.chunks(DISK)), vhd_fixed_right, in_a_file),
    "vhd_dynamic": (lambda _: b"".join(vhd.dynamic(DISK)), vhd_right, in_a_file),
    "vhdx": (lambda _: b"".join(vhdx.chunks(DISK)), vhdx_right, in_a_file),
    "vmdk": (lambda _: b"".join(vmdk.chunks(DISK)), bytes, in_a_file),
    "ova": (ova_file, tar_summed, in_a_file),
    "gcp": (lambda _: gcp_file(), bytes, in_a_file),
    "gpt": (
        lambda _: flat(EFI_DISK.part(0, 4 * MIB)),
        gpt_summed,
        in_memory(gpt.read, gpt.disk_guid, of_every_machine),
    ),
    "mbr": (lambda _: MBR + flat(FAT)[: 1 << 19], bytes, in_memory(mbr.read, mbr.serial)),
    "fat": (lambda _: flat(FAT), bytes, in_memory(files_of(fatfiles.read), of_every_board)),
    "iso": (lambda _: flat(ISO), bytes, in_memory(files_of(lambda d: isoread.read(d).files), of_every_machine)),
    "pe": (lambda _: UKI, bytes, whole(pe.sections, loader.of_uki)),
    "tar": (lambda _: TAR, tar_summed, in_memory(lambda d: list(tarlist.members(d)))),
    "device tree": (lambda _: fdt.write(TREE), bytes, whole(fdt.read)),
    "grub.cfg": (lambda _: grub.script("quiet a=b,c d=/e"), bytes, whole(grub.arguments)),
}


# --- what is changed --------------------------------------------------------------------------------------------------


@cache
def structure(data: bytes) -> tuple[int, ...]:
    """Offsets of 16 bytes that are neither zeros nor our content: where a change may matter."""
    rows = range(0, len(data), 16)
    return tuple(at for at in rows if data[at : at + 16].strip(b"\0\xff") and data[at : at + 16] not in NOISE) or (0,)


def changed(data: bytes, draw: random.Random) -> bytes:
    """The same bytes with one to six changes, most of them numbers of a kind that readers stumble over."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        at = draw.choice(structure(data)) + draw.randrange(16) if draw.random() < 0.9 else draw.randrange(len(data))
        at = min(at, len(made) - 1)
        kind = draw.randrange(8)
        if kind < 4:
            size = draw.choice((1, 2, 4, 8))
            at -= at % size if draw.random() < 0.8 else 0
            number = draw.choice((*NUMBERS, len(data), len(data) // 512, draw.randrange(1 << 16))) & (1 << 8 * size) - 1
            made[at : at + size] = number.to_bytes(size, draw.choice(("little", "big")))
        elif kind == 4:
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 5:  # something from elsewhere in it
            size, other = draw.choice((4, 8, 16, 32, 512)), draw.choice(structure(data))
            made[at : at + size] = data[other : other + size]
        elif kind == 6:
            del made[draw.choice((at, at, len(made) - 1)) :]
        else:
            made[at : at + draw.choice((1, 16, 512))] = b""
        made = made or bytearray(b"\0")
    return bytes(made)


@pytest.fixture
def little_memory():
    """A gibibyte beyond what is taken by now: who wants more gets a MemoryError, which is no Problem."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", SEEDS)
def test_bytes_that_nobody_wrote_are_read_or_refused(kind, tmp_path):
    make, right, ask = SEEDS[kind]
    data = make(tmp_path)
    ask(data, tmp_path / "disk")
    for number in range(ROUNDS // SLOW.get(kind, 1)):
        draw = random.Random(f"{kind} {number}")
        hostile = changed(data, draw)
        hostile = right(hostile) if draw.random() < 0.8 else hostile
        started = time.process_time()
        try:
            ask(hostile, tmp_path / "disk")
        except Exception as error:
            raise AssertionError(f"draw {number}: {type(error).__name__}: {error}") from error
        assert time.process_time() - started < 20, f"draw {number}"
