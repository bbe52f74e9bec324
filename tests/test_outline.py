"""Outlines: what is told of files that somebody else made, whole, cut, damaged and hostile."""

import json
import os
import random
from uuid import UUID

import pytest
from toy_program import program

from imagekit import cli
from imagekit.disk import fat, fatfiles, gpt, mbr, outline, pe
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem

MIB = 1 << 20
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
UKI = pe.uki(program(), {".osrel": b"ID=toy\n", ".cmdline": b"quiet \x1b[31m", ".initrd": b"i" * 99, ".linux": b"MZ"})
FILES = {
    "EFI/BOOT/BOOTX64.EFI": UKI,
    "grub.cfg": b"linux /kernel quiet\nboot\n",
    "config.txt": b"arm_64bit=1",
    "ümläut with a long name.txt": b"u" * 5000,
    "empty": b"",
    "a/b/c/deep": b"d" * 70000,
}


def disk_of(volume: Sparse) -> Sparse:
    size = 64 * MIB
    part = gpt.Partition("boot", ESP, UUID(int=5), MIB, volume.size)
    content = [piece._replace(offset=piece.offset + MIB) for piece in volume.pieces]
    return laid(size, (*gpt.table(size, [part], guid=UUID(int=7)), *content))


DISK = disk_of(fat.volume(FILES, label="BOOT", serial=0x1234ABCD))


def test_a_disk_is_told_down_to_the_arguments_of_the_kernel():
    text = "\n".join(outline.outline(DISK, "x.img").lines())
    for words in ("GPT disk", "EFI system partition", "FAT 16, label BOOT, id 1234abcd, files 6", ".linux: size 2",
                  "ID=toy", "linux /kernel quiet", "kind UKI", "a/b/c/deep: size 70000"):  # fmt: skip
        assert words in text
    assert "quiet \\x1b[31m" in text, "nothing in a file steers a terminal"


@pytest.mark.parametrize("size", [0, 8 * MIB, 600 * MIB])
def test_the_files_of_a_volume_are_read_as_they_were_written(size):
    found = fatfiles.read(fat.volume(FILES, size=size, serial=1))
    assert {path: file.read() for path, file in found.items()} == FILES


def test_a_file_is_inspected_with_its_signature(tmp_path, capsys):
    path = tmp_path / "x.img"
    path.write_bytes(b"".join(DISK.chunks()))
    assert cli.main(["inspect", os.fspath(path)]) == 0
    assert "signature: none: " in capsys.readouterr().out
    assert cli.main(["inspect", "--json", os.fspath(path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parts"][0]["parts"][0]["kind"] == "FAT"


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 1024, 4096, MIB, MIB + 100, 2 * MIB, 33 * MIB])
def test_what_is_cut_is_told_as_damaged_and_raises_nothing_else(size):
    lines = list(outline.outline(DISK.part(0, size), "cut").lines())
    assert lines
    if size >= 1024:
        assert any(word in "\n".join(lines) for word in ("damaged", "UKI"))


def test_no_flipped_byte_of_the_tables_does_more_than_damage():
    whole = bytearray(DISK.read(0, 3 * MIB))
    draw = random.Random(5)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            at = draw.choice((draw.randrange(0, 2048), MIB + draw.randrange(0, 60000)))
            data[at] = draw.randrange(256)
        list(outline.outline(laid(DISK.size, [Piece(0, bytes(data))]), "x").lines())


def volume_with(at: int, value: bytes) -> Sparse:
    whole = bytearray(b"".join(fat.volume({"a": b"1" * 5000, "d/b": b"2"}, serial=1).chunks()))
    whole[at : at + len(value)] = value
    return laid(len(whole), [Piece(0, bytes(whole))])


TABLE = 512  # of FAT16: the first sector is reserved
ROOT = TABLE + 2 * 17 * 512


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (510, b"\0", "55 AA"),
        (11, b"\x01\x02", "sectors or clusters have no size"),
        (13, b"\x03", "sectors or clusters have no size"),
        (22, b"\0\0", "a table for others"),
        (19, b"\xff\xff", "tables do not fit"),
        (TABLE + 4, b"\x02\0", "share cluster 2"),  # a chain that comes back to itself
        (TABLE + 4, b"\xff\xff", "fewer clusters"),
        (TABLE + 4, b"\xf0\xee", "fewer clusters"),  # beyond the volume
        (ROOT + 32 + 28, b"\xff\xff\xff\xff", "fewer clusters"),
    ],
)
def test_a_hostile_volume_is_a_problem(at, value, words):
    with pytest.raises(Problem, match=words):
        fatfiles.read(volume_with(at, value))


def test_a_folder_that_holds_itself_ends():
    whole = bytearray(b"".join(fat.volume({"d/b": b"2"}, serial=1).chunks()))
    entry = whole.index(b"D          ")
    cluster = int.from_bytes(whole[entry + 26 : entry + 28], "little")
    inner = ROOT + 512 * 32 + (cluster - 2) * 512
    whole[inner + 64 : inner + 96] = whole[entry : entry + 32]  # d/b becomes d itself
    with pytest.raises(Problem, match="share cluster"):
        fatfiles.read(laid(len(whole), [Piece(0, bytes(whole))]))


def test_partitions_of_an_old_table_are_told():
    disk = laid(8 * MIB, [mbr.table([mbr.Partition(1, mbr.FAT_LBA, MIB, 4 * MIB, True)], serial=0xABCD1234)])
    text = "\n".join(outline.outline(disk, "card.img").lines())
    assert "MBR disk" in text
    assert "id abcd1234" in text
    assert "type FAT32" in text
