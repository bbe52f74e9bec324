"""Partition tables that the guest enlarges with their disk, on files, by the program that is put into images."""

import os
import random
import struct
import subprocess
from itertools import pairwise
from pathlib import Path
from uuid import UUID

import pytest

from imagekit import early, toolbox
from imagekit.arch import host
from imagekit.disk import gpt, mbr
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.stores.directory import open_store
from imagekit.tree import Slice

PROGRAM = Path(early.__file__).parent / "inside/bin" / f"boot.{host().name}"
MIB = 1 << 20
DISK = 8 * MIB
KIND = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
CHANGES = UUID("89abcdef-0123-4567-89ab-cdef01234567")
ROOT = gpt.Partition("root", KIND, UUID(int=5), MIB, 2 * MIB, 1 << 60)
PARTS = (ROOT, gpt.Partition("changes", KIND, CHANGES, 3 * MIB, DISK - 3 * MIB - gpt.TAIL))
MOST_WRITES = 8


def write(path: Path, disk: Sparse, *, more: int = 0) -> Path:
    with open(path, "wb") as file:
        file.truncate(disk.size + more)
        for piece in disk.pieces:
            file.seek(piece.offset)
            file.write(piece.read(0, piece.size))
    return path


def read(path: Path) -> Sparse:
    size = path.stat().st_size
    return laid(size, [Piece(0, Slice(str(path), 0, size))])


def grow(path: Path, name: object = CHANGES, *writes: int) -> "subprocess.CompletedProcess[str]":
    words = [PROGRAM, "grow", path, str(name), *map(str, writes)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)


def new(path: Path, *, more: int, parts: tuple[gpt.Partition, ...] = PARTS) -> Path:
    return write(path, laid(DISK, gpt.table(DISK, parts, guid=UUID(int=7))), more=more)


def grown_size(disk: int) -> int:
    return (disk - gpt.TAIL) // 4096 * 4096 - PARTS[1].start


@pytest.mark.parametrize("more", [0, 512, 4096, 9 * 512, 33 * 512, MIB, 5 << 30, 3 << 40])
def test_the_last_partition_gets_what_the_disk_gained(tmp_path: Path, more: int) -> None:
    path = new(tmp_path / "disk", more=more)
    told = grow(path, str(CHANGES).upper())
    size = max(grown_size(DISK + more), PARTS[1].size)
    assert told.stdout == f"2 {3 * MIB // 512} {size // 512}\n"
    assert gpt.read(read(path)) == (ROOT, PARTS[1]._replace(size=size))
    assert backup(path) == gpt.read(read(path))
    (whole,) = mbr.read(read(path))
    assert whole.size // 512 == min((DISK + more) // 512 - 1, 0xFFFFFFFF)


def backup(path: Path) -> tuple[gpt.Partition, ...]:
    """What the copy at the end of a disk says, by reading it as the primary of another disk."""
    disk = read(path)
    tail = disk.read(disk.size - gpt.TAIL, gpt.TAIL)
    header = gpt.HEADER.unpack(tail[-512:][: gpt.HEADER.size])
    assert header[5:7] == (disk.size // 512 - 1, 1)
    assert header[10] == (disk.size - gpt.TAIL) // 512
    fields = (1, header[5], *header[7:10], 2, *header[11:])
    blank = gpt.HEADER.pack(*header[:3], 0, 0, *fields)
    head = gpt.HEADER.pack(*header[:3], gpt.crc32(blank), 0, *fields).ljust(512, b"\0")
    return gpt.read(laid(disk.size, [Piece(0, disk.read(0, 512) + head + tail[:-512])]))


def test_it_grows_again_and_again_and_nothing_happens_in_between(tmp_path: Path) -> None:
    path = new(tmp_path / "disk", more=0)
    for size in (DISK, 9 * MIB, 9 * MIB, 64 * MIB, 65 * MIB):
        os.truncate(path, size)
        grow(path)
        once = path.read_bytes()
        assert gpt.read(read(path))[1].size == max(grown_size(size), PARTS[1].size)
        grow(path)
        assert path.read_bytes() == once


@pytest.mark.parametrize("times", [1, 2])
def test_sfdisk_and_sgdisk_find_nothing_wrong_with_a_grown_table(tmp_path: Path, times: int) -> None:
    tools = toolbox.tools("sfdisk", "sgdisk", mode="tree", store=open_store())
    path = new(tmp_path / "disk", more=0)
    for _ in range(times):
        os.truncate(path, path.stat().st_size + 8 * MIB)
        grow(path)
    for tool, words in (("sfdisk", "No errors detected"), ("sgdisk", "No problems found")):
        argv = tools.argv(tool, "--verify", path)
        said = subprocess.run(argv, capture_output=True, text=True, env=tools.env, check=True)
        assert words in said.stdout
        assert "warning" not in (said.stdout + said.stderr).lower()


@pytest.mark.parametrize("before", [None, 5, 7])  # writes of an earlier growth: 5 leave the entries elsewhere
@pytest.mark.parametrize("more", [9 * 512, MIB])
def test_a_power_cut_leaves_the_old_table_or_the_new_one(tmp_path: Path, more: int, before: int | None) -> None:
    """After each write, and within each: a disk writes whole sectors, in any order."""
    path, whole = tmp_path / "disk", new(tmp_path / "whole", more=more if before else 0)
    if before:
        grow(whole, CHANGES, before)
    start = whole.read_bytes() + bytes(more)
    old = gpt.read(read(whole))
    states = [start]
    for writes in range(1, MOST_WRITES):
        path.write_bytes(start)
        is_whole = grow(path, CHANGES, writes).returncode == 0
        states.append(path.read_bytes())
        if is_whole:
            break
    wanted = gpt.read(read(path))
    assert (len(states), wanted[1].size) == (6 if before == 5 else 8, grown_size(len(start)))
    for earlier, later in pairwise(states):
        for torn in tears(earlier, later):
            path.write_bytes(torn)
            assert gpt.read(read(path)) in (old, wanted)
            grow(path)
            assert gpt.read(read(path)) == backup(path) == wanted


def tears(before: bytes, after: bytes) -> list[bytes]:
    """What a write may have done when it was cut off: some of its sectors, and all of them."""
    at = [n for n in range(0, len(before), 512) if before[n : n + 512] != after[n : n + 512]]
    assert at, "this write changed nothing"
    chance = random.Random(1)
    found = []
    for chosen in (at[:1], at[-1:], *(chance.sample(at, chance.randrange(len(at) + 1)) for _ in range(3)), at):
        torn = bytearray(before)
        for n in chosen:
            torn[n : n + 512] = after[n : n + 512]
        found.append(bytes(torn))
    return found


def test_on_an_mbr_as_well(tmp_path: Path) -> None:
    parts = (mbr.Partition(1, mbr.FAT_LBA, MIB, MIB, True), mbr.Partition(3, mbr.LINUX, 2 * MIB, MIB))
    path = write(tmp_path / "card", laid(4 * MIB, [mbr.table(parts, serial=0xABCD1234)]), more=12 * MIB)
    assert grow(path, "ABCD1234-03").stdout == f"3 4096 {14 * MIB // 512}\n"
    assert mbr.read(read(path)) == (parts[0], parts[1]._replace(size=14 * MIB))
    assert grow(path, "abcd1234-01").stdout == "1 2048 2048\n"  # not the last one


def test_only_the_last_one_grows(tmp_path: Path) -> None:
    path = new(tmp_path / "disk", more=MIB)
    before = path.read_bytes()
    assert grow(path, ROOT.guid).stdout == f"1 2048 {2 * MIB // 512}\n"
    assert path.read_bytes() == before


LOW = (ROOT._replace(start=34 * 512, size=MIB), PARTS[1])
BAD = [
    ("header", 512 + 40, 1, PARTS, "its GPT has a damaged header"),
    ("entries", 1024 + 130, 1, PARTS, "its GPT has damaged entries"),
    ("no GPT", 512, 1, PARTS, "it has no GPT"),
    ("no table", 510, 1, PARTS, "it has no partition table"),
    ("no room", 0, 0, LOW, "no room for a second table"),
    ("unknown", 0, 0, PARTS[:1], "it has no such partition"),
]


@pytest.mark.parametrize(("at", "flip", "parts", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_is_not_understood_is_left_alone(
    tmp_path: Path, at: int, flip: int, parts: tuple[gpt.Partition, ...], words: str
) -> None:
    path = new(tmp_path / "disk", more=MIB, parts=parts)
    data = bytearray(path.read_bytes())
    data[at] ^= flip
    path.write_bytes(data)
    told = grow(path)
    assert (told.returncode, words in told.stderr) == (1, True), told.stderr
    assert path.read_bytes() == data


HOSTILE = [
    (80, "<I", 0), (80, "<I", 129), (80, "<I", 0xFFFFFFFF), (84, "<I", 64), (72, "<Q", 1), (72, "<Q", 1 << 63),
    (72, "<Q", DISK // 512 - 1), (24, "<Q", 2), (12, "<I", 91), (12, "<I", 1 << 30),
]  # fmt: skip


@pytest.mark.parametrize(("at", "form", "value"), HOSTILE)
def test_a_hostile_header_with_the_right_sum_is_refused(tmp_path: Path, at: int, form: str, value: int) -> None:
    path = new(tmp_path / "disk", more=0)
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, 512 + at, value)
    struct.pack_into("<I", data, 512 + 16, 0)
    struct.pack_into("<I", data, 512 + 16, gpt.crc32(data[512 : 512 + 92]))
    path.write_bytes(data)
    assert grow(path).returncode == 1
    assert path.read_bytes() == data


def test_partitions_beyond_the_disk_are_none(tmp_path: Path) -> None:
    path = new(tmp_path / "disk", more=0)
    os.truncate(path, 4 * MIB)
    assert "no such partition" in grow(path).stderr


def test_any_bytes_are_survived(tmp_path: Path) -> None:
    chance = random.Random(4)
    path = new(tmp_path / "disk", more=0)
    good = path.read_bytes()[: 34 * 512]
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.randrange(1, 20)):
            data[chance.randrange(440, len(data))] = chance.randrange(256)
        path.write_bytes(bytes(data[: chance.choice([len(data), chance.randrange(len(data))])]))
        assert grow(path).returncode in (0, 1)


@pytest.mark.parametrize("name", ["/nowhere/disk", "/proc/self/mem"])
def test_what_is_no_disk_is_told(name: str) -> None:
    assert grow(Path(name)).returncode == 1
