"""Partition tables: written, read again, and read by others (sfdisk and sgdisk); others' read by us; hostile ones."""

import json
import struct
import subprocess
from uuid import UUID
from zlib import crc32

import pytest

from imagekit import toolbox
from imagekit.disk import gpt, mbr
from imagekit.disk.sparse import Piece, Sparse, laid, of_file
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

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


def test_an_mbr_has_no_partitions_that_overlap():
    parts = [mbr.Partition(1, mbr.LINUX, MIB, 2 * MIB), mbr.Partition(2, mbr.LINUX, 2 * MIB, MIB)]
    with pytest.raises(Problem, match="partition 2 overlaps"):
        mbr.table(parts, serial=1)


# --- others -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    tools = toolbox.tools("sfdisk", "sgdisk", mode="tree", store=open_store())

    def run(name, *args, stdin=""):
        done = subprocess.run(
            tools.argv(name, *args), input=stdin, capture_output=True, text=True, env=tools.env, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stderr.lower(), done.stderr
        return done.stdout

    return run


def laid_down(disk: Sparse, path):
    with open(path, "wb") as file:
        file.truncate(disk.size)
        for piece in disk.pieces:
            file.seek(piece.offset)
            file.write(piece.content)
    return path


def told_by_sfdisk(run, path):
    return json.loads(run("sfdisk", "--json", path))["partitiontable"]


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (DISK, PARTS),
        (gpt.HEAD + gpt.TAIL + 512, [gpt.Partition("one sector", KIND, UUID(int=5), gpt.HEAD, 512)]),
        (DISK, [gpt.Partition("n" * 36, KIND, UUID(int=5), MIB, MIB, 1 << 63 | 1)]),
        (DISK, [gpt.Partition(f"ä{n}", KIND, UUID(int=9 + n), MIB + n * 4096, 4096) for n in range(128)]),
        (DISK, ()),
        (3 << 40, [gpt.Partition("large", KIND, UUID(int=5), MIB, 3 * (1 << 40) - 2 * MIB)]),
    ],
)
@pytest.mark.parametrize("hybrid", [False, True])
def test_sfdisk_and_sgdisk_read_our_gpt(size, parts, hybrid, run, tmp_path):
    if hybrid and (not parts or size > DISK):
        pytest.skip("an MBR has no room for what is to be shown")
    shown = (gpt.Hybrid(1, mbr.FAT_LBA, active=True),) if hybrid else ()
    disk = laid(size, gpt.table(size, parts, guid=UUID(int=7), boot_code=b"\xfa" * 440, hybrid=shown))
    path = laid_down(disk, tmp_path / "disk")
    assert "No problems found" in run("sgdisk", "--verify", path)
    assert gpt.read(disk) == tuple(parts)
    if hybrid:  # sfdisk takes a hybrid for an MBR disk unless it is told
        return
    assert "No errors detected" in run("sfdisk", "--verify", path)
    found = told_by_sfdisk(run, path)
    assert UUID(found["id"]) == UUID(int=7)
    assert [
        (part["name"], UUID(part["type"]), UUID(part["uuid"]), part["start"] * 512, part["size"] * 512)
        for part in found.get("partitions", [])
    ] == [tuple(part)[:5] for part in parts]


def test_sfdisk_reads_our_mbr(run, tmp_path):
    parts = (mbr.Partition(1, mbr.FAT_LBA, MIB, 20 * MIB, True), mbr.Partition(3, mbr.LINUX, 21 * MIB, 43 * MIB))
    path = laid_down(laid(DISK, [mbr.table(parts, serial=0xABCD1234)]), tmp_path / "disk")
    assert "No errors detected" in run("sfdisk", "--verify", path)
    found = told_by_sfdisk(run, path)
    assert (found["label"], found["id"]) == ("dos", "0xabcd1234")
    rows = [(p["node"][-1], int(p["type"], 16), p["start"] * 512, p["size"] * 512, p.get("bootable", False))
            for p in found["partitions"]]  # fmt: skip
    assert rows == [(str(part.number), *part[1:]) for part in parts]


@pytest.mark.parametrize(
    "script",
    [
        "label: gpt\nlabel-id: 00000000-0000-0000-0000-000000000007\n"
        'start=2048, size=8192, type=U, name="boot"\nstart=10240, type=L, name="root"\n',
        "label: gpt\ntable-length: 8\nsize=8192, type=U\n",
        "label: dos\nlabel-id: 0xabcd1234\nstart=2048, size=8192, type=c, bootable\ntype=83\n",
    ],
)
def test_what_sfdisk_wrote_is_read(script, run, tmp_path):
    path = laid_down(Sparse(DISK, ()), tmp_path / "disk")
    run("sfdisk", "--quiet", path, stdin=script)
    disk, told = of_file(str(path), DISK), told_by_sfdisk(run, path)
    found = gpt.read(disk) if told["label"] == "gpt" else mbr.read(disk)
    assert [(p.start // 512, p.size // 512) for p in found] == [(p["start"], p["size"]) for p in told["partitions"]]
    if told["label"] == "gpt":
        assert gpt.disk_guid(disk) == UUID(told["id"])
        assert [p.name for p in found] == [p.get("name", "") for p in told["partitions"]]
    else:
        assert f"{mbr.serial(disk):#010x}" == told["id"]


# --- hostile ones -----------------------------------------------------------------------------------------------------


def forged(*, header=(), slots=b"", at=2 * 512) -> Sparse:
    """A disk whose table has these (offset, format, value) in its header and these entries, and right checksums."""
    data = bytearray(laid(DISK, gpt.table(DISK, PARTS, guid=UUID(int=7))).read(0, 64 * 1024))
    data[at : at + len(slots)] = slots
    for offset, form, value in header:
        struct.pack_into(form, data, 512 + offset, value)
    count, size = struct.unpack_from("<II", data, 512 + 80)
    entries = data[1024 : 1024 + min(count * size, 1 << 20)]
    struct.pack_into("<I", data, 512 + 88, crc32(entries.ljust(min(count * size, 1 << 20), b"\0")))
    length = min(struct.unpack_from("<I", data, 512 + 12)[0], 512)
    data[512 + 16 : 512 + 20] = bytes(4)
    struct.pack_into("<I", data, 512 + 16, crc32(data[512 : 512 + length]))
    return laid(DISK, [Piece(0, bytes(data))])


def slot(first: int, last: int) -> bytes:
    return gpt.SLOT.pack(
        KIND.bytes_le, UUID(int=9).bytes_le, first, last, 0, "évil\udc00".encode("utf-16-le", "replace")
    )


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (forged(header=[(8, "<I", 0x20000)]), "version that is not known"),
        (forged(header=[(12, "<I", 91)]), "damaged"),
        (forged(header=[(12, "<I", 0xFFFFFFFF)]), "damaged"),
        (forged(header=[(24, "<Q", 5)]), "damaged"),  # says to lie elsewhere
        (forged(header=[(40, "<Q", 3)]), "within itself"),
        (forged(header=[(72, "<Q", 1 << 62)]), "which cannot be"),
        (forged(header=[(72, "<Q", 0)]), "which cannot be"),
        (forged(header=[(80, "<I", 0xFFFFFFFF)]), "which cannot be"),
        (forged(header=[(80, "<I", 0)]), "which cannot be"),
        (forged(header=[(84, "<I", 0)]), "which cannot be"),
        (forged(header=[(84, "<I", 1 << 30)]), "which cannot be"),
        (forged(slots=slot(2048, 2000)), "before it begins"),
        (forged(slots=slot(1, 5000)), "overlaps the table"),
        (forged(slots=slot(2048, (1 << 64) - 1)), "ends beyond"),
        (forged(slots=slot(2048, DISK // 512)), "ends beyond"),
        (forged(slots=slot(43000, 43999)), "overlaps"),
    ],
)
def test_a_hostile_gpt_is_a_problem(disk, words):
    with pytest.raises(Problem, match=words):
        gpt.read(disk)


def test_the_copy_at_the_end_is_never_taken_for_the_table():
    disk = laid(DISK, gpt.table(DISK, PARTS, guid=UUID(int=7)))
    without = laid(DISK, [disk.pieces[0]._replace(content=disk.read(0, 512)), disk.pieces[1]])
    with pytest.raises(Problem, match="EFI PART"):
        gpt.read(without)


def test_a_disk_whose_mbr_protects_no_gpt_has_none():
    disk = laid(DISK, gpt.table(DISK, PARTS, guid=UUID(int=7)))
    with pytest.raises(Problem, match="does not protect"):
        gpt.read(with_byte(disk, 446 + 4, 0xEE ^ 0x83))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ((0x81, 0x83, 1, 1), "damaged"),
        ((0, 0x83, 0, 1), "damaged"),
        ((0, 0x83, 1, 0), "damaged"),
        ((0, 0x83, 1, 0xFFFFFFFF), "ends beyond"),
        ((0, 0x83, 0xFFFFFFFF, 0xFFFFFFFF), "ends beyond"),
    ],
)
def test_a_hostile_mbr_is_a_problem(entry, words):
    flag, kind, start, size = entry
    row = mbr.ENTRY.pack(flag, mbr.BEYOND, kind, mbr.BEYOND, start, size)
    with pytest.raises(Problem, match=words):
        mbr.read(laid(MIB, [Piece(0, bytes(446) + row + bytes(48) + mbr.SIGNATURE)]))
