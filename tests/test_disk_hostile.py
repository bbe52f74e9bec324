"""Files that hold a disk, made by somebody who means harm: refused in words, in no time, and nothing else is opened."""

import builtins
import random
import re
import struct
import time
import zlib
from tempfile import TemporaryFile

import pytest
from test_disk_containers import MIB, NOISE, TEXT, put, qemu_img, raw_of  # noqa: F401 - a fixture

from imagekit.disk import containers, gcp, gzip, ova, qcow2, tarhead, vhd, vhdx, vmdk
from imagekit.disk.sparse import Piece, laid
from imagekit.errors import Problem

DISK = laid(9 * MIB, [Piece(0, TEXT), Piece(3 * MIB + 5, NOISE), Piece(9 * MIB - 512, NOISE[:512])])
WRITERS = {
    "qcow2": qcow2.chunks,
    "vhd": vhd.chunks,
    "vhd_dynamic": vhd.dynamic,
    "vhdx": vhdx.chunks,
    "vmdk": vmdk.chunks,
    "gcp": lambda disk: gzip.member(
        gzip.segment([chunk]) for chunk in (tarhead.header("disk.raw", disk.size), *disk.chunks(), gcp.END)
    ),  # less than a GiB, which is as sound to read
}
CLUSTER = 64 << 10


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of DISK in every container."""
    folder = tmp_path_factory.mktemp("files")
    made = {kind: b"".join(write(DISK)) for kind, write in WRITERS.items()}
    return made | {"ova": b"".join(ova.chunks(DISK, folder=folder))}


def whole(path):
    """Read all of a disk, as whoever converts it does; how much there was."""
    with containers.opened(path) as (_, disk):
        return sum(len(data) for _, data in disk.filled(MIB))


def opened_files(path, monkeypatch):
    """Every path that is opened while a disk is read."""
    seen, real = set(), builtins.open

    def noted(name, *rest, **more):
        seen.add(str(name))
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "open", noted)
    try:
        whole(path)
    except Problem as problem:
        return seen, str(problem)
    return seen, ""


def vhd_summed(data, at, size, sum_at):
    """The bytes with the checksum of the structure at `at` made right again."""
    part = bytearray(data[at : at + size])
    part[sum_at : sum_at + 4] = bytes(4)
    part[sum_at : sum_at + 4] = struct.pack(">I", ~sum(part) & 0xFFFFFFFF)
    return data[:at] + bytes(part) + data[at + size :]


def patched(data, *edits):
    for at, new in edits:
        at = at if at >= 0 else len(data) + at
        data = data[:at] + new + data[at + len(new) :]
    return data


def footer(data, at, new):
    """A dynamic or fixed VHD whose footer is another one, with its right checksum."""
    base = len(data) - 512
    return vhd_summed(patched(data, (base + at, new)), base, 512, 64)


def sparse(data, at, new):
    """A dynamic VHD with another header, with its right checksum."""
    return vhd_summed(patched(data, (512 + at, new)), 512, 1024, 36)


def summed(data, at, size):
    """A VHDX whose structure at `at` has its right checksum."""
    return data[:at] + vhdx._summed(patched(data[at : at + size], (4, bytes(4)))) + data[at + size :]


def headers(data, at, new):
    return summed(summed(patched(data, (65536 + at, new), (131072 + at, new)), 65536, 4096), 131072, 4096)


def regions(data, at, new):
    return summed(summed(patched(data, (196608 + at, new), (262144 + at, new)), 196608, 65536), 262144, 65536)


def described(data, old, new):
    return data.replace(old, new.ljust(len(old)), 1)


def ended(data, at, new):
    """A VMDK whose footer has other bytes."""
    return patched(data, (len(data) - 1024 + at, new))


def be(value, size=8):
    return value.to_bytes(size)


def le(value, size=8):
    return value.to_bytes(size, "little")


LEVEL = 3 * CLUSTER  # of the file above: header, table, block, first level, second level, clusters
SECOND = 4 * CLUSTER
META = 2 * MIB
BAT = 3 * MIB
BAD = [
    ("qcow2", lambda d: patched(d, (8, be(104)), (16, be(11, 4))), "backing file, which is never opened"),
    ("qcow2", lambda d: patched(d, (72, be(4))), "data file, which is never opened"),
    ("qcow2", lambda d: patched(d, (72, be(2))), "marked corrupt"),
    ("qcow2", lambda d: patched(d, (72, be(1 << 40))), "features that are unknown"),
    ("qcow2", lambda d: patched(d, (72, be(16))), "features that are unknown"),
    ("qcow2", lambda d: patched(d, (32, be(1, 4))), "encrypted"),
    ("qcow2", lambda d: patched(d, (4, be(4, 4))), "version 4"),
    ("qcow2", lambda d: patched(d, (20, be(40, 4))), r"clusters have 2\^40"),
    ("qcow2", lambda d: patched(d, (20, be(0, 4))), r"clusters have 2\^0"),
    ("qcow2", lambda d: patched(d, (24, be(1 << 62))), "its disk has"),
    ("qcow2", lambda d: patched(d, (24, be(0))), "its disk has 0"),
    ("qcow2", lambda d: patched(d, (24, be(1 << 40))), "entries, and 2048 are needed"),
    ("qcow2", lambda d: patched(d, (36, be(0xFFFFFFFF, 4))), "first level has 4294967295 entries"),
    ("qcow2", lambda d: patched(d, (40, be(1 << 50))), "lies beyond its end"),
    ("qcow2", lambda d: patched(d, (40, be(LEVEL + 8))), "no cluster's beginning"),
    ("qcow2", lambda d: patched(d, (LEVEL, be(1 << 40))), "a second level .* beyond its end"),
    ("qcow2", lambda d: patched(d, (LEVEL, be(SECOND + 512))), "no cluster's beginning"),
    ("qcow2", lambda d: patched(d, (LEVEL, be(0))), "used twice|none"),
    ("qcow2", lambda d: patched(d, (SECOND, be(1 << 40))), "beyond its end"),
    ("qcow2", lambda d: patched(d, (SECOND, be(SECOND + CLUSTER))), "none"),  # the right one
    ("qcow2", lambda d: patched(d, (SECOND + 8, be(SECOND + CLUSTER))), "used twice"),
    ("qcow2", lambda d: patched(d, (SECOND, be(SECOND))), "used twice"),
    ("qcow2", lambda d: patched(d, (SECOND, be(1 << 62 | 255 << 54 | SECOND))), "compressed cluster cannot be read"),
    ("qcow2", lambda d: patched(d, (SECOND, be(1 << 62 | 1 << 50))), "beyond its end"),
    ("vhd", lambda d: footer(d, 60, be(4, 4)), "parent's file, which is never opened"),
    ("vhd", lambda d: footer(d, 60, be(9, 4)), "of type 9"),
    ("vhd", lambda d: footer(d, 48, be(1 << 40)), "beyond its end"),
    ("vhd", lambda d: footer(d, 48, be(777)), "its disk has 777"),
    ("vhd", lambda d: patched(d, (-500, b"\xff")), "checksum"),
    ("vhd_dynamic", lambda d: footer(d, 60, be(4, 4)), "parent's file, which is never opened"),
    ("vhd_dynamic", lambda d: footer(d, 16, be(1 << 60)), "beyond its end"),
    ("vhd_dynamic", lambda d: footer(d, 16, be(0)), "checksum|no header"),
    ("vhd_dynamic", lambda d: footer(d, 48, be(1 << 40)), "5 blocks of 2097152"),
    ("vhd_dynamic", lambda d: sparse(d, 16, be(1 << 60)), "beyond its end"),
    ("vhd_dynamic", lambda d: sparse(d, 28, be(1, 4)), "1 blocks of"),
    ("vhd_dynamic", lambda d: sparse(d, 32, be(0, 4)), "blocks of 0 bytes"),
    ("vhd_dynamic", lambda d: sparse(d, 32, be(512, 4)), "blocks of 512 bytes"),
    ("vhd_dynamic", lambda d: sparse(d, 64, b"/etc/passwd".decode().encode("utf-16-be")), "names a parent"),
    ("vhd_dynamic", lambda d: sparse(d, 576, b"W2ru" + be(22, 4)), "names a parent"),
    ("vhd_dynamic", lambda d: patched(d, (1536, be(0xFFFFFFF0, 4))), "beyond its end"),
    ("vhd_dynamic", lambda d: patched(d, (1540, d[1536:1540])), "used twice"),
    ("vhd_dynamic", lambda d: patched(d, (1536, be(0, 4))), "used twice"),
    ("vhdx", lambda d: headers(d, 48, b"\1" * 16), "last changes are in its log"),
    ("vhdx", lambda d: headers(d, 66, le(2, 2)), "version 2"),
    ("vhdx", lambda d: patched(d, (65536, b"HEAD"), (131072, b"HEAD")), "both of its headers"),
    ("vhdx", lambda d: regions(d, 8, le(2047, 4)), "comes twice|unknown|lies where"),
    ("vhdx", lambda d: regions(d, 8, le(4000, 4)), "both tables of its regions"),
    ("vhdx", lambda d: regions(d, 16, b"\7" * 16), "a region of it is unknown"),
    ("vhdx", lambda d: regions(d, 32, le(1 << 60)), "beyond its end"),
    ("vhdx", lambda d: regions(d, 32, le(META)), "in state|used twice"),
    ("vhdx", lambda d: regions(d, 40, le(0, 4)), "its table has 0 bytes"),
    ("vhdx", lambda d: patched(d, (META + 65536 + 4, le(2, 4))), "parent's file, which is never opened"),
    ("vhdx", lambda d: patched(d, (META + 32, vhdx.PARENT.bytes_le)), "parent's file, which is never opened"),
    ("vhdx", lambda d: patched(d, (META + 32, b"\7" * 16)), "unknown here"),
    ("vhdx", lambda d: patched(d, (META + 65536, le(3 * MIB, 4))), "its blocks have"),
    ("vhdx", lambda d: patched(d, (META + 65536 + 8, le(1 << 45))), "bytes, and .* are needed"),
    ("vhdx", lambda d: patched(d, (META + 65536 + 8, le(777))), "its disk has 777"),
    ("vhdx", lambda d: patched(d, (META + 32 + 16, le(0xFFFFFF, 4))), "metadata are damaged"),
    ("vhdx", lambda d: patched(d, (BAT, le(1 << 50 | 6))), "beyond its end"),
    ("vhdx", lambda d: patched(d, (BAT, le(7))), "state 7"),
    ("vhdx", lambda d: patched(d, (BAT, d[BAT + 24 : BAT + 32])), "used twice"),
    ("vhdx", lambda d: patched(d, (BAT, le(6))), "used twice"),
    ("vmdk", lambda d: described(d, b"parentCID=ffffffff", b"parentCID=12345678"), "parent's file"),
    ("vmdk", lambda d: described(d, b"# Extent description", b"parentFileNameHint=1"), "parent's file"),
    ("vmdk", lambda d: described(d, b'SPARSE "disk.vmdk"', b'FLAT "/etc/passwd"'), "lies in other files"),
    ("vmdk", lambda d: described(d, b"# Extent description", b'RW 9 SPARSE "/a"'), "lies in other files"),
    ("vmdk", lambda d: ended(d, 12, le(1 << 60)), "its disk has"),
    ("vmdk", lambda d: ended(d, 12, le(1 << 31)), "its directory .* beyond its end"),
    ("vmdk", lambda d: ended(d, 20, le(3)), "grains have 3 sectors"),
    ("vmdk", lambda d: ended(d, 28, le(1 << 40)), "its descriptor .* beyond its end"),
    ("vmdk", lambda d: ended(d, 36, le(1 << 40)), "its descriptor has"),
    ("vmdk", lambda d: ended(d, 44, le(0xFFFFFFFF, 4)), "grain tables have"),
    ("vmdk", lambda d: ended(d, 56, le(1 << 40)), "beyond its end"),
    ("vmdk", lambda d: ended(d, 77, le(9, 2)), "compression is of kind 9"),
    ("vmdk", lambda d: ended(d, 73, b"\r\n\r\n"), "line ends"),
    ("vmdk", lambda d: patched(d, (-1536 + 12, le(9, 4))), "no footer"),
    ("vmdk", lambda d: patched(d, (CLUSTER, le(55))), "lies no grain"),
    ("vmdk", lambda d: patched(d, (CLUSTER + 8, le(1 << 30, 4))), "lies no grain"),
    ("vmdk", lambda d: patched(d, (CLUSTER + 12, b"\xff" * 9)), "compressed grain cannot be read"),
    ("ova", lambda d: d.replace(b'ovf:href="disk.vmdk"', b'ovf:href="/etc/pass"'), "names 1 files"),
    ("ova", lambda d: patched(d, (0, tarhead.header("machine.txt", 10))), "damaged|0 OVF|cut short"),
]


@pytest.mark.parametrize(("kind", "edit", "words"), BAD, ids=[f"{k}: {w}" for k, _, w in BAD])
def test_what_is_wrong_is_told_and_no_other_file_is_opened(kind, edit, words, files, tmp_path, monkeypatch):
    path = tmp_path / "disk"
    path.write_bytes(edit(files[kind]))
    assert path.read_bytes() != files[kind] or "none" in words
    started = time.process_time()
    seen, said = opened_files(path, monkeypatch)
    assert time.process_time() - started < 10
    assert seen == {str(path)}
    if "none" in words.split("|"):
        return
    assert re.search(words, said), said


TAILS = (1, 8, 9, 512, 513, 1024, 1536)


@pytest.mark.parametrize("kind", [*WRITERS, "ova"])
def test_a_file_cut_short_is_refused_wherever_it_was_cut(kind, files, tmp_path):
    data, path = files[kind], tmp_path / "disk"
    draw = random.Random(kind)
    cuts = {1, MIB, *range(0, 2049, 512), *(n * CLUSTER for n in range(8)), *(len(data) - n for n in TAILS)}
    cuts |= {draw.randrange(len(data)) for _ in range(40)}
    for cut in sorted(cut for cut in cuts if 0 <= cut < len(data)):
        path.write_bytes(data[:cut])
        if kind == "ova" and cut >= len(data) - 1536:
            continue  # nothing is needed of the end of an archive
        with TemporaryFile() as scratch, pytest.raises(Problem):
            list(READERS[kind](path, lambda made=scratch: made).filled(MIB))


READERS = {kind: containers.KINDS[kind].read for kind in (*WRITERS, "ova")}


SPANS = {  # what is not content
    "qcow2": [(0, 112), (LEVEL, LEVEL + 8), (SECOND, SECOND + 256)],
    "vhd_dynamic": [(512, 1600), (-512, -430)],
    "vhdx": [(65536, 65640), (META, META + 200), (META + 65536, META + 65590), (BAT, BAT + 80)],
    "vmdk": [(512, 1100), (-1024, -940), (CLUSTER, CLUSTER + 20)],
    "ova": [(0, 512), (512, 1400)],
    "gcp": [(0, 64), (-64, 0)],
}


@pytest.mark.parametrize("kind", SPANS)
def test_no_other_byte_makes_a_reader_fail_otherwise(kind, files, tmp_path):
    """Other bytes in what is not content: each is read, or is a Problem; nothing else, and soon."""
    data, path, draw = bytearray(files[kind]), tmp_path / "disk", random.Random(kind)
    started = time.process_time()
    for _ in range(150):
        start, end = draw.choice(SPANS[kind])
        edited = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8))):
            edited[draw.randrange(start, end) % len(edited)] = draw.choice(
                (0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256))
            )
        if kind == "vhd_dynamic":
            edited = vhd_summed(vhd_summed(bytes(edited), 512, 1024, 36), len(edited) - 512, 512, 64)
        if kind == "vhdx":
            edited = summed(bytes(edited), 65536, 4096)
        path.write_bytes(edited)
        try:
            whole(path)
        except Problem:
            continue
    assert time.process_time() - started < 60


def test_a_compressed_bomb_is_cut_at_its_grain(tmp_path):
    """A grain of less than 64 KiB that would be 60 MiB."""
    data = bytearray(b"".join(vmdk.chunks(laid(64 << 10, [Piece(0, NOISE[:CLUSTER])]))))
    bomb = zlib.compress(bytes(60 * MIB), 9)
    grain = vmdk.GRAIN_MARKER.pack(0, len(bomb)) + bomb
    assert len(bomb) < CLUSTER
    data[CLUSTER : CLUSTER + len(grain)] = grain
    path = put(tmp_path / "disk", [bytes(data)])
    with pytest.raises(Problem, match="holds more than 65536 bytes"):
        whole(path)


def test_a_gzip_bomb_is_cut_at_its_disk(tmp_path):
    path = tmp_path / "disk.tar.gz"
    parts = [gzip.segment([tarhead.header("disk.raw", MIB)]), *[gzip.segment([bytes(MIB)])] * 3000]
    put(path, gzip.member(parts))
    with pytest.raises(Problem, match="something follows"):
        whole(path)


def test_pieces_are_counted(tmp_path, monkeypatch):
    from imagekit.disk import container

    monkeypatch.setattr(container, "MAX_PIECES", 3)
    path = put(tmp_path / "disk", qcow2.chunks(laid(MIB, [Piece(n << 17, b"x") for n in range(8)])))
    with pytest.raises(Problem, match="more than 3 pieces"):
        whole(path)


def test_what_qemu_made_with_another_file_is_refused(tmp_path, qemu_img):  # noqa: F811
    raw = raw_of(DISK, tmp_path / "raw")
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", tmp_path / "above.qcow2")
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", tmp_path / "apart.qcow2", "1M")
    qemu_img("convert", "-O", "vmdk", raw, tmp_path / "base.vmdk")
    qemu_img("create", "-f", "vmdk", "-b", tmp_path / "base.vmdk", "-F", "vmdk", tmp_path / "above.vmdk")
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw, tmp_path / "flat.vmdk")
    for name in ("above.qcow2", "apart.qcow2", "above.vmdk", "flat.vmdk"):
        with pytest.raises(Problem, match="never opened"):
            whole(tmp_path / name)
