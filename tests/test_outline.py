"""Outlines: what is told of files that somebody else made, whole, cut, damaged and hostile."""

import io
import json
import os
import random
import struct
import subprocess
import tarfile
import time
from uuid import UUID

import pytest
from toy_program import program

from imagekit import artifact, cli, inspection, toolbox
from imagekit.disk import containers, fat, fatfiles, gpt, mbr, outline, parts, pe, tarlist
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

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


def told(disk: Sparse, name: str = "x.img") -> str:
    """The lines, with a space where there are several."""
    return "\n".join(" ".join(line.split()) for line in outline.outline(disk, name).lines())


def in_memory(data: bytes) -> Sparse:
    return laid(len(data), [Piece(0, data)])


DISK = disk_of(fat.volume(FILES, label="BOOT", serial=0x1234ABCD))


def test_a_disk_is_told_down_to_the_arguments_of_the_kernel():
    text = told(DISK)
    for words in ("GPT disk", "EFI system partition", "FAT 16, label BOOT, id 1234abcd, files 6", ".linux size 2,",
                  "ID=toy", "linux /kernel quiet", "UKI yes", "a/b/c/deep text, size 70000",
                  "UEFI starts, on x86_64 program EFI/BOOT/BOOTX64.EFI"):  # fmt: skip
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


MANIFEST = {
    "name": "x", "arch": "x86_64", "format": "raw_efi", "kind": "disk", "version": "1\x1b[2J", "tree": "", "lock": "",
    "definition": "", "packages": [], "parts": [],
}  # fmt: skip


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        (MANIFEST, "1\\x1b[2J"),
        ({**MANIFEST, "packages": 1}, "is no manifest of an image"),
        ({**MANIFEST, "packages": [{}]}, "is no manifest of an image"),
        ({**MANIFEST, "parts": [{"file": "../x"}]}, "is no file beside it"),
        ({name: MANIFEST[name] for name in ("name", "arch", "format", "kind", "parts")}, "is no manifest of an image"),
    ],
)
def test_a_manifest_may_say_anything(manifest, words, tmp_path, capsys):
    path = tmp_path / "x.manifest.json"
    path.write_bytes(artifact.canonical(manifest))
    cli.main(["inspect", os.fspath(path)])
    said = "".join(capsys.readouterr())
    assert words in said
    assert "\x1b" not in said


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
        (ROOT + 96 + 26, b"\0\0", "has no end, or none at all"),
        (ROOT + 32, b"D          ", "twice"),  # beside the folder of that name
        (ROOT + 32, b"A/         ", "of the name"),
        (17, b"\0\0", "a table for others"),
        (16, b"\x05", "tables do not fit"),
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
    text = told(disk)
    assert "MBR disk" in text
    assert "id abcd1234" in text
    assert "type FAT32" in text


# --- other things -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"quiet console=ttyS0", "text| quiet"),
        (b'{"Cmd": ["/bin/sh"]}', 'text| "/bin/sh"'),
        (b"{" * 100_000, "damaged no JSON"),
        (b"\xff\xfe\0\x01", "data"),
        ("\u202egnp.exe".encode(), "data"),  # turns the direction of what follows
        (b"\x1f\x8b\x08", "gzip"),
        (bytes(510) + b"\x55\xaa" + bytes(2) + b"HdrS" + bytes(8) + b"\x10\x00" + bytes(0x300), "kernel for x86"),
        (b"MZ" + bytes(54) + b"ARM\x64" + bytes(100), "kernel for aarch64"),
        (b"hsqs" + struct.pack("<III", 7, 0, 131072) + bytes(4) + b"\6\0" + bytes(18) + struct.pack("<Q", 96)
         + bytes(48), "squashfs, size 96, packed by zstd, inodes 7"),
        (b"hsqs" + bytes(36) + struct.pack("<Q", 1 << 40) + bytes(48), "damaged it is cut"),
        (bytes(1024) + b"\xe2\xe1\xf5\xe0" + bytes(8) + b"\xff" + bytes(200), "does not know"),
        (bytes(1024 + 24) + b"\xff" * 4 + bytes(28) + b"\x53\xef" + bytes(1000), "does not know"),
        (bytes(1024 + 4) + b"\xff" * 4 + bytes(48) + b"\x53\xef" + bytes(1000), "damaged it is cut"),
        (b"MZ" + bytes(100), "damaged the file is no program"),
        (b"QFI\xfb" + bytes(100), "qcow2"),
    ],
)  # fmt: skip
def test_what_a_file_is_told_to_be(data, words):
    assert words in told(in_memory(data))


@pytest.mark.parametrize("name", ["evil\x1b[2J", "evil\nsignature: good", "evil\u202e", "evil\udc80", "e" * 500])
def test_no_name_steers_a_terminal_or_forges_a_line(name):
    lines = list(parts.Part(name, {name: name + "\n" + name, "b": name}, (parts.Part(name, {}),)).lines())
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("signature") for line in lines)
    json.dumps(parts.Part(name, {}).json())


def test_a_tar_is_told_by_its_members():
    volume = b"".join(fat.volume(FILES, serial=1).chunks())
    members = {"a" * 150 + "/long": b"1" * 999, "boot.img": volume, "index.json": b'{"a": 1}'}
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as archive:
            for name, data in members.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
        disk = in_memory(file.getvalue())
        assert [(m.name, disk.read(m.offset, m.size)) for m in tarlist.members(disk)] == list(members.items())
        assert "UEFI starts, on x86_64" in told(disk)


def tar_with(*headers: bytes) -> Sparse:
    return in_memory(b"".join(headers) + bytes(1024))


def tar_header(kind: bytes = b"0", size: bytes = b"00000000000", name: bytes = b"x") -> bytes:
    raw = bytearray(
        name.ljust(124, b"\0") + size.ljust(12, b"\0") + bytes(12) + b" " * 8 + kind + bytes(100) + b"ustar\00000"
    )
    raw += bytes(512 - len(raw))
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (tar_with(tar_header()[:300] + b"!" + tar_header()[301:]), "its checksum"),
        (tar_with(tar_header(size=b"99999999999")), "has the number"),
        (tar_with(tar_header(size=b"77777777777")), "cut short"),
        (tar_with(tar_header(size=b"\x80" + b"\xff" * 11)), "cut short"),
        (tar_with(tar_header(b"x", b"00000000020"), b"99999 path=x\n".ljust(512, b"\0")), "PAX record"),
        (tar_with(tar_header(b"x", b"00000000020"), b"0 path=xxxxxxxxx".ljust(512, b"\0")), "PAX record"),
        (tar_with(tar_header(b"x", b"00000000014"), b"12 size=-11\n".ljust(512, b"\0")), "no size"),
        (tar_with(tar_header(b"x", b"00000400000"), bytes(1 << 17)), "bytes of records"),
        (tar_with(*[tar_header()] * 65537), "more than 65536"),
    ],
)
def test_a_hostile_tar_is_a_problem(disk, words):
    with pytest.raises(Problem, match=words):
        list(tarlist.members(disk))


def test_a_disk_in_itself_without_end_is_told_soon():
    """Each sector is an MBR whose four partitions all begin right behind it: four to the power of the sectors."""
    count = 4000
    rows = [mbr.ENTRY.pack(0, mbr.BEYOND, 0x83, mbr.BEYOND, 1, count - at - 1) for at in range(count - 1)]
    disk = in_memory(b"".join(bytes(446) + row * 4 + mbr.SIGNATURE for row in rows) + bytes(512))
    started = time.process_time()
    assert "too much lies in each other" in told(disk)
    assert time.process_time() - started < 20


def test_so_many_bytes_are_not_hashed(monkeypatch):
    monkeypatch.setattr(outline, "MOST_HASHED", 1000)
    assert outline.Look(hashed=1000).digest(Sparse(1001, ())) == {"sha256": "not taken, of so many bytes"}


KINDS = {
    "qcow2": "qcow2",
    "vhd": "VHD",
    "vhd_dynamic": "VHD",
    "vhdx": "VHDX",
    "vmdk": "VMDK",
    "gcp": "gzip",
    "ova": "tar",
}


@pytest.mark.parametrize("name", KINDS)
def test_a_disk_for_virtual_machines_is_told_like_any_other(name, tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"".join(containers.KINDS[name].write(DISK, tmp_path)))
    found = inspection.inside(path)
    assert (found.facts["kind"], found.facts["holds"]) == (KINDS[name], name)
    assert found.parts[0].parts == outline.outline(DISK, "disk").parts
    if name == "gcp":  # a GiB of zeros takes seconds
        return
    path.write_bytes(path.read_bytes()[:-2000])
    found = inspection.inside(path)
    assert "holds" not in found.facts or name == "qcow2", "only zeros may be missing at the end"


def test_what_unpacks_to_too_much_is_left(tmp_path, monkeypatch):
    path = tmp_path / "disk"
    path.write_bytes(b"".join(containers.KINDS["gcp"].write(DISK, tmp_path)))
    monkeypatch.setattr(inspection, "MOST_UNPACKED", 1000)
    assert inspection.inside(path).facts == {"kind": "gzip", "size": path.stat().st_size}


def test_what_a_pi_starts_is_told():
    kernel = bytes(56) + b"ARM\x64" + bytes(100)
    files = {
        "bootcode.bin": b"b", "start.elf": b"s", "fixup.dat": b"f", "kernel8.img": kernel, "bcm2710-rpi-3-b.dtb": b"d",
        "config.txt": b"arm_64bit=1\ninitramfs initrd followkernel\n", "cmdline.txt": b"quiet\nmore\n", "initrd": b"i",
    }  # fmt: skip
    text = told(fat.volume(files, serial=1))
    assert (
        "Raspberry Pi 3 B starts kernel kernel8.img, initrds initrd, device tree bcm2710-rpi-3-b.dtb, arguments quiet"
        in text
    )
    assert "Raspberry Pi 4 B starts nothing" in text
    assert "'start4.elf' is missing" in text


def test_a_luks_volume_is_told_by_what_cryptsetup_wrote(tmp_path):
    name, key = "0b1e4a3c-3d5f-4d0e-8a57-6a2c8f3d1b90", tmp_path / "key"
    key.write_bytes(b"k" * 32)
    (tmp_path / "disk").write_bytes(bytes(20 * MIB))
    tools = toolbox.tools("cryptsetup", mode="tree", store=open_store())
    quick = ("--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--batch-mode", f"--uuid={name}")
    words = tools.argv("cryptsetup", "luksFormat", *quick, "--label=data", f"--key-file={key}", tmp_path / "disk")
    done = subprocess.run(words, env=tools.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert f"LUKS, size 20971520 (20.0 MiB), version 2, id {name}, label data" in told(
        in_memory((tmp_path / "disk").read_bytes())
    )
