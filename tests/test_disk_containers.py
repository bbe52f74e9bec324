"""Containers of disks: what QEMU reads of what we write, what we read of what it writes, and what we refuse."""

import json
import subprocess
from hashlib import sha256

import pytest

from imagekit import toolbox
from imagekit.disk import qcow2, vhd, vhdx, vmdk
from imagekit.disk.sparse import Piece, is_zeros, laid
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
NOISE = b"".join(sha256(b"%d" % number).digest() for number in range(8 * KIB))  # 256 KiB that do not shrink
TEXT = b"".join(b"line %d of a text\n" % number for number in range(40_000))
DISKS = {
    "empty": laid(3 * MIB, []),
    "a sector": laid(512, [Piece(0, b"\x55" * 512)]),
    "no whole sectors": laid(MIB + 777, [Piece(0, b"begin"), Piece(MIB + 770, b"the end")]),
    "the end alone": laid(64 * MIB, [Piece(64 * MIB - 512, NOISE[:512])]),
    "all ones": laid(5 * MIB, [Piece(0, b"\xff" * (5 * MIB))]),
    "text and noise": laid(40 * MIB, [Piece(1000, TEXT), Piece(9 * MIB - 7, NOISE), Piece(33 * MIB, TEXT)]),
    "pieces that are zeros": laid(20 * MIB, [Piece(MIB, bytes(3 * MIB) + b"1" + bytes(MIB)), Piece(9 * MIB, bytes(9))]),
    "neighbours": laid(8 * MIB, [Piece(n * 64 * KIB + 5, b"%d" % n) for n in range(0, 128, 3)]),
    "large": laid(6 * GIB, [Piece(0, NOISE), Piece(5 * GIB + 512, NOISE), Piece(6 * GIB - 1, b"!")]),
}
CONTAINERS = {  # our module's writer and reader, and what QEMU calls it
    "qcow2": (qcow2.chunks, qcow2.read, "qcow2"),
    "vhd": (vhd.chunks, vhd.read, "vpc"),
    "vhd_dynamic": (vhd.dynamic, vhd.read, "vpc"),
    "vhdx": (vhdx.chunks, vhdx.read, "vhdx"),
    "vmdk": (vmdk.chunks, vmdk.read, "vmdk"),
}


@pytest.fixture(scope="module")
def qemu_img():
    """The reader and writer that is not ours; it says what went wrong."""
    tools = toolbox.tools("qemu-img", mode="tree", store=open_store())

    def run(*words):
        done = subprocess.run(
            [*tools.argv("qemu-img"), *map(str, words)], env=tools.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def put(path, chunks):
    """Write a file as a store does: zeros leave a hole."""
    with open(path, "wb") as file:
        for chunk in chunks:
            if is_zeros(chunk):
                file.seek(len(chunk), 1)
            else:
                file.write(chunk)
        file.truncate()
    return path


def raw_of(disk, path):
    """The disk as a raw file, of whole sectors; its zeros are not even looked at."""
    with open(path, "wb") as file:
        for piece in disk.pieces:
            file.seek(piece.offset)
            file.write(piece.content)
        file.truncate(-(-disk.size // 512) * 512)
    return path


def same(one, other):
    """Whether two disks have the same bytes, but for zeros up to a whole sector; holes are not read."""
    if -(-one.size // 512) != -(-other.size // 512):
        return False
    pairs = zip(one.filled(MIB), other.filled(MIB), strict=True)
    return all(a == b and data.rstrip(b"\0") == more.rstrip(b"\0") for (a, data), (b, more) in pairs)


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_is_written_is_the_disk(kind, disk, tmp_path, qemu_img):
    write, read, name = CONTAINERS[kind]
    if kind == "vhd" and disk == "large":
        pytest.skip("a fixed one writes every zero")
    path, raw = put(tmp_path / "disk", write(DISKS[disk])), raw_of(DISKS[disk], tmp_path / "raw")
    assert same(read(path), DISKS[disk])
    if name in ("qcow2", "vhdx", "vmdk"):
        qemu_img("check", "-f", name, path)
    if (kind, disk) != ("vhdx", "large"):  # of whose zeros QEMU reads every byte
        qemu_img("compare", "-f", name, "-F", "raw", path, raw)
    told = json.loads(qemu_img("info", "-f", name, "--output=json", path))
    assert told["virtual-size"] == raw.stat().st_size


@pytest.mark.parametrize("disk", [name for name in DISKS if name != "large"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qcow2", ()),
        ("qcow2", ("-c",)),
        ("qcow2", ("-c", "-o", "compression_type=zstd")),
        ("qcow2", ("-o", "compat=0.10,cluster_size=4096")),
        ("qcow2", ("-o", "cluster_size=2M")),
        ("vhd", ("-o", "subformat=fixed,force_size=on")),
        ("vhd_dynamic", ("-o", "subformat=dynamic,force_size=on")),
        ("vhdx", ()),
        ("vhdx", ("-o", "subformat=fixed")),
        ("vhdx", ("-o", "block_size=1M")),
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vmdk", ("-o", "subformat=monolithicSparse")),
    ],
    ids=str,
)
def test_what_qemu_wrote_is_read(kind, options, disk, tmp_path, qemu_img):
    _, read, name = CONTAINERS[kind]
    raw, path = raw_of(DISKS[disk], tmp_path / "raw"), tmp_path / "disk"
    qemu_img("convert", "-f", "raw", "-O", name, *options, raw, path)
    assert same(read(path), DISKS[disk])


def test_snapshots_and_room_that_was_set_aside_do_not_disturb(tmp_path, qemu_img):
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", "-o", "preallocation=metadata,lazy_refcounts=on", path, "70M")
    assert same(qcow2.read(path), laid(70 * MIB, []))
    path.write_bytes(b"".join(qcow2.chunks(DISKS["text and noise"])))
    qemu_img("snapshot", "-c", "before", path)
    qemu_img("resize", "-f", "qcow2", path, "+8M")
    assert same(qcow2.read(path), laid(48 * MIB, DISKS["text and noise"].pieces))


def test_an_empty_file_is_one_of_an_empty_disk():
    for size in (MIB, 6 * GIB, 1 << 44):
        assert qcow2.empty(size) == b"".join(qcow2.chunks(laid(size, [])))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_disk_that_a_format_cannot_hold_is_refused(kind):
    for size in (0, 1 << 60):
        with pytest.raises(Problem, match="it holds 1 to"):
            list(CONTAINERS[kind][0](laid(size, [])))
