"""Partition tables: written, read again, and read by others."""

from uuid import UUID

import pytest

from imagekit.disk import gpt, mbr
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem

MIB = 1 << 20
DISK = 64 * MIB
KIND = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
PARTS = (
    gpt.Partition("boot", KIND, UUID(int=5), MIB, 20 * MIB),
    gpt.Partition("root", KIND, UUID(int=6), 21 * MIB, DISK - 21 * MIB - gpt.TAIL, 1 << 60),
)


def with_byte(disk: Sparse, at: int, value: int) -> Sparse:
    data = bytearray(b"".join(disk.chunks()))
    data[at] ^= value
    return laid(disk.size, [Piece(0, bytes(data))])


def test_a_gpt_is_read_as_it_was_written():
    disk = laid(DISK, gpt.table(DISK, PARTS, guid=UUID(int=7), boot_code=b"code"))
    assert gpt.read(disk) == PARTS
    assert gpt.disk_guid(disk) == UUID(int=7)
    assert disk.read(0, 4) == b"code"
    assert [part.type for part in mbr.read(disk)] == [mbr.PROTECTIVE]


def test_a_hybrid_shows_partitions_to_both():
    shown = gpt.Hybrid(1, mbr.FAT_LBA, active=True)
    disk = laid(DISK, gpt.table(DISK, PARTS, guid=UUID(int=7), hybrid=(shown,)))
    assert mbr.read(disk)[1] == mbr.Partition(2, mbr.FAT_LBA, MIB, 20 * MIB, active=True)


def test_an_mbr_is_read_as_it_was_written():
    parts = (mbr.Partition(1, mbr.FAT_LBA, MIB, 20 * MIB, True), mbr.Partition(3, mbr.LINUX, 21 * MIB, 43 * MIB))
    disk = laid(DISK, [mbr.table(parts, serial=0xABCD1234)])
    assert mbr.read(disk) == parts
    assert mbr.serial(disk) == 0xABCD1234


@pytest.mark.parametrize(
    ("at", "words"),
    [(512, "EFI PART"), (512 + 40, "its checksum"), (1024 + 3, "entries of the GPT do not match"), (510, "55 AA")],
)
def test_a_flipped_bit_is_told(at, words):
    disk = with_byte(laid(DISK, gpt.table(DISK, PARTS, guid=UUID(int=7))), at, 1)
    with pytest.raises(Problem, match=words):
        (mbr.read if at == 510 else gpt.read)(disk)


@pytest.mark.parametrize("size", [0, 511, 512, 513, 4096])
def test_a_short_disk_has_no_table(size):
    for read in (gpt.read, mbr.read):
        with pytest.raises(Problem):
            read(Sparse(size, ()))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([PARTS[0], PARTS[1]._replace(start=20 * MIB)], "overlaps"),
        ([PARTS[0]._replace(start=0)], "overlaps the table"),
        ([PARTS[1]._replace(size=PARTS[1].size + 512)], "ends beyond"),
        ([PARTS[0]._replace(size=100)], "whole number of sectors"),
        ([PARTS[0]._replace(name="n" * 37)], "longer than 36"),
    ],
)
def test_partitions_that_do_not_fit_are_told(parts, words):
    with pytest.raises(Problem, match=words):
        gpt.table(DISK, parts, guid=UUID(int=7))


def test_an_mbr_ends_at_two_tebibytes():
    with pytest.raises(Problem, match="2 TiB"):
        mbr.table([mbr.Partition(1, mbr.LINUX, 2 << 40, MIB)], serial=1)
