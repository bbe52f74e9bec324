"""Unified kernel images: read by objdump, refused when they are not what their headers say."""

import random
import re
import struct
import subprocess
from itertools import pairwise

import pytest
from toy_program import program

from imagekit import toolbox
from imagekit.arch import host
from imagekit.disk import pe
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

STUB, KERNEL = program("x86_64"), program("x86_64", text=b"kernel" * 999)
SECTIONS = {".linux": KERNEL, ".cmdline": b"quiet", ".initrd": b"initrd" * 12345, ".osrel": b"ID=toy\n", ".uname": b"6"}


@pytest.fixture(scope="module")
def tools():
    return toolbox.tools("objdump", mode="tree", store=open_store())


def listed(data, tools, tmp_path):
    """{section: (size, address, offset, flags)}, as binutils sees a program."""
    (tmp_path / "uki.efi").write_bytes(data)
    argv = tools.argv("objdump", "-h", "-w", tmp_path / "uki.efi")
    done = subprocess.run(argv, env=tools.env, capture_output=True, text=True, check=True)
    assert not done.stderr
    rows = (line.split(None, 7) for line in done.stdout.splitlines() if re.match(r" +[0-9]+ \.", line))
    return {name: (int(size, 16), int(vma, 16), int(offset, 16), flags)
            for _, name, size, vma, _, offset, _, flags in rows}  # fmt: skip


def test_a_uki_is_what_objdump_reads(tools, tmp_path):
    made = pe.uki(program(host().name), SECTIONS)  # objdump knows no other machine's; ours differ in a number
    found = listed(made, tools, tmp_path)
    assert list(found) == [".text", ".osrel", ".cmdline", ".uname", ".initrd", ".linux"], "the kernel last"
    for name, content in SECTIONS.items():
        size, address, offset, flags = found[name]
        assert made[offset : offset + len(content)] == content
        assert size in (len(content), -(-len(content) // 512) * 512)  # binutils tells the larger of the two
        assert address % 4096 == 0
        assert ("CODE" in flags) == (name == ".linux")
    addresses = sorted((address, size) for size, address, *_ in found.values())
    assert all(a + size <= b for (a, size), (b, _) in pairwise(addresses))


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_what_is_written_is_read(arch):
    made = pe.uki(program(arch), SECTIONS)
    assert pe.machine(made) == arch
    found = pe.sections(made)
    assert {name: data for name, data in found.items() if SECTIONS.get(name, b"\xc3") != data} == {}
    assert found.keys() == {".text", *SECTIONS}
    assert pe.uki(program(arch), dict(reversed(SECTIONS.items()))) == made, "in whatever order"
    assert made.count(b"symbols") == KERNEL.count(b"symbols"), "none of the stub's"


def test_pieces_are_the_whole():
    pieces = {name: (data[:7], data[7:]) for name, data in SECTIONS.items()}
    assert b"".join(pe.contents(STUB, pieces)) == pe.uki(STUB, SECTIONS)


def test_headers_speak_of_the_whole():
    made = pe.uki(STUB, SECTIONS)
    read = pe.read(made)
    last, optional = read.sections[-1], read.optional
    image, headers, checksum = struct.unpack_from("<III", made, optional + 56)
    assert image % 4096 == 0
    assert last.address + last.size <= image < last.address + last.size + 4096
    assert (headers, checksum) == (read.sections[0].offset, 0)
    assert struct.unpack_from("<II", made, optional + 112 + 32) == (0, 0), "no certificates"
    assert len(made) % 512 == 0


def patched(data, at, pattern, *values):
    out = bytearray(data)
    struct.pack_into(pattern, out, at, *values)
    return bytes(out)


UKI = pe.uki(STUB, SECTIONS)
COFF, OPTIONAL, TABLE = pe.read(UKI).header, pe.read(UKI).optional, pe.read(UKI).table
NO_PROGRAMS = (
    (b"", "no PE header"),
    (b"\x1f\x8b" + bytes(99), r"no PE header \(it is compressed\)"),
    (b"MZ" + bytes(10), "no PE header"),
    (b"MZ" + b"\xff" * 99, "no PE header"),
    (UKI[: COFF + 2], "ends within its headers"),
    (UKI[: TABLE + 60], "ends within its headers"),
    (patched(UKI, COFF, "<H", 0x14C), "no 64-bit program for UEFI"),
    (patched(UKI, OPTIONAL, "<H", 0x10B), "no 64-bit program for UEFI"),
    (patched(UKI, COFF + 2, "<H", 97), "97 sections, more than the 96"),
    (patched(UKI, OPTIONAL + 36, "<I", 3), "aligned to 4096 and 3"),
    (patched(UKI, OPTIONAL + 32, "<I", 0), "aligned to 0 and 512"),
    (UKI[:-512], "'.linux' ends at .*, behind the end of the file"),
    (patched(UKI, TABLE + 40 + 20, "<I", 0xFFFFFE00), "'.osrel' ends at .*, behind the end of the file"),
    (patched(UKI, TABLE + 40 + 20, "<I", pe.read(UKI).sections[2].offset), "overlaps another one"),
)


@pytest.mark.parametrize(("data", "words"), NO_PROGRAMS)
def test_no_program_is_refused(data, words):
    with pytest.raises(Problem, match=words):
        pe.sections(data)


@pytest.mark.parametrize(
    ("stub", "sections", "words"),
    [
        (program(room=3), SECTIONS, "no room for 5 more sections"),
        (program(name=b".linux"), SECTIONS, "has a section .linux of its own"),
        (UKI, SECTIONS, "of its own"),
        (STUB, {".text": b""}, "a UKI has no section .text"),
        (patched(STUB, TABLE + 8, "<I", 0xFFFFE000), SECTIONS, "4 GiB"),
    ],
)
def test_a_stub_that_will_not_do_is_refused(stub, sections, words):
    with pytest.raises(Problem, match=words):
        pe.uki(stub, sections)


def test_two_sections_of_one_name_are_refused():
    with pytest.raises(Problem, match="two sections have the same name"):
        pe.sections(patched(UKI, TABLE + 40, "<8s", b".text"))


def test_bytes_that_anybody_changed_are_read_or_refused_and_never_more_than_there_are():
    chance = random.Random(4)
    for _ in range(500):
        data = bytearray(UKI)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(TABLE + 240)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        data = bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])
        try:
            assert sum(map(len, pe.sections(data).values())) <= len(data)
            pe.uki(data, {})
        except Problem:
            continue
