"""What differs first, named: in archives, programs, disks and fields of known files."""

import gzip as python_gzip
import io
import json
import struct
import tarfile

import pytest
import zstandard
from test_disk import TREE
from toy_program import program

from imagekit import difference
from imagekit.disk import anatomy, cpio, fat, gpt, ids, pe, tar
from imagekit.disk.sparse import Piece, laid
from imagekit.tree import Tree, directory, file

MOTD = {"/etc/motd": file(b"hello\n")}


def tree(**changes):
    return TREE.override(Tree({path.replace("_", "/"): entry for path, entry in changes.items()}))


def packed(given):
    return b"".join(tar.chunks(given.items())) + tar.END


def zipped(data, *, mtime=0):
    return python_gzip.compress(data, mtime=mtime)


def initrd(given):
    parts = [given.filter(lambda path: given[path].kind == "dir"), given.filter(lambda p: given[p].kind != "dir")]
    archives = [zstandard.compress(cpio.archive(part.items())) for part in parts]
    return b"".join(data + bytes(-len(data) % 4) for data in archives)


def uki(**sections):
    return pe.uki(program(), {f".{name}": data for name, data in sections.items()})


def volume(**files):
    return b"".join(fat.volume({"EFI/A": b"a", **files}, serial=1).chunks())


def disk(content, *, seed="x"):
    part = gpt.Partition("root", ids.guid("type", "t"), ids.guid(seed, "root"), 1 << 20, len(content))
    table = gpt.table(8 << 20, [part], guid=ids.guid("disk", "d"))
    return b"".join(laid(8 << 20, [*table, Piece(1 << 20, content)]).chunks())


def superblock(at, magic, where, value, *, size=70000):
    data = bytearray(size)
    data[at : at + len(magic)] = magic
    struct.pack_into("<I", data, where, value)
    return bytes(data)


def patched(data, at, value):
    return data[:at] + value + data[at + len(value) :]


ROWS = (
    (b"", b"", ""),
    (b"short", b"other", "it: short against other"),
    (b"", b"x", "it: nothing against x"),
    (b"\0", b"\1", "it: 0x00 against 0x01"),
    (bytes(99), bytes(98) + b"\1", "it: 0x00 against 0x01 at byte offset 98"),
    (bytes(99), bytes(100), "it: one goes on at byte offset 99, of 99 and 100 bytes"),
    (b"a" * 99, b"a" * 70 + b"bc" + b"a" * 27, "it: 'aaaaaaaaaaaaaaaa' against 'bcaaaaaaaaaaaaaa' at byte offset 70"),
    (json.dumps({"a": [1, {"b": 2}]}).encode(), json.dumps({"a": [1, {"b": 3}]}).encode(), "it: a[1].b: 2 against 3"),
    (b'{"a":1}', b'{"a":1,"c":2}', "it: c is only in the other"),
    (b'{"a":1,"c":2}', b'{"c":2,"a":1}', "it: the same in another order, from a on"),
    (b"{", b"{}", "it: { against {}"),
    (packed(tree(**MOTD)), packed(TREE), "it: /etc/motd: type is only in one"),
    (packed(tree(_run=directory(0o700))), packed(TREE), "it: /run: mode: 448 against 493"),
    (packed(tree(_empty=file(b"12"))), packed(tree(_empty=file(b"13"))), "it: /empty: 12 against 13"),
    (zipped(packed(tree(_empty=file(b"12")))), zipped(packed(tree(_empty=file(b"13")))), "content: /empty: 12 ag"),
    (zipped(b"x", mtime=1), zipped(b"x", mtime=2), "it: time: 0x01000000 against 0x02000000"),
    (zipped(b"x" * 99), python_gzip.compress(b"x" * 99, 1, mtime=0), "it: level"),
    (initrd(tree(_empty=file(b"12"))), initrd(tree(_empty=file(b"13"))), "it: archive (2): /empty: 12 against 13"),
    (initrd(tree(_run=directory(0o700))), initrd(TREE), "it: archive: /run: mode: "),
    (uki(cmdline=b"a b", linux=program()), uki(cmdline=b"a c", linux=program()), "section .cmdline: a b against a c"),
    (volume(), patched(volume(), 39, b"\x99"), "it: serial number: 0x01000000 against 0x99000000"),
    (volume(), volume(**{"EFI/B": b"b"}), "it: /EFI/B is only in the other"),
    (volume(b=b"1"), volume(b=b"2"), "it: /b: 1 against 2"),
    (disk(volume(b=b"1")), disk(volume(b=b"2")), "it: partition 1 (root): /b: 1 against 2"),
    (disk(b"1" * 512), disk(b"2" * 512), "it: partition 1 (root): '1111111111111111' against '222"),
    (disk(bytes(512)), disk(bytes(512), seed="y"), "it: partition 1: guid: "),
    (superblock(0, b"hsqs", 8, 1), superblock(0, b"hsqs", 8, 2), "it: time: 0x01000000 against 0x02000000"),
    (superblock(1080, b"\x53\xef", 1288, 1), superblock(1080, b"\x53\xef", 1288, 2), "it: time of creation: "),
    (superblock(1024, b"\xe2\xe1\xf5\xe0", 1072, 1), superblock(1024, b"\xe2\xe1\xf5\xe0", 1072, 2), "it: UUID: 0x01"),
    (superblock(32769, b"CD001", 33581, 1), superblock(32769, b"CD001", 33581, 2), "it: time of creation: "),
    (superblock(0, b"conectix", 68, 1), superblock(0, b"conectix", 68, 2), "it: id: "),
)  # fmt: skip


@pytest.mark.parametrize(("one", "other", "words"), ROWS, ids=range(len(ROWS)))
def test_the_first_difference_is_named(one, other, words):
    found = difference.of_bytes(one, other, what="it")
    assert words in found
    assert bool(words) == bool(found)


def test_what_only_seems_to_be_something_is_compared_by_bytes():
    for kind in (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"070701", b"MZ", b"{", b"[" * 9999, bytes(257) + b"ustar",
                 bytes(512) + b"EFI PART", bytes(450) + b"\x83" + bytes(59) + b"\x55\xaa"):  # fmt: skip
        one, other = kind.ljust(10000, b"\xff"), kind.ljust(9999, b"\xff") + b"\xfe"
        assert difference.of_bytes(one, other, what="it").endswith("at byte offset 9999"), kind


def test_large_files_are_compared_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(difference, "LARGEST", 10)
    (tmp_path / "a").write_bytes(bytes(3 << 20))
    (tmp_path / "b").write_bytes(bytes((2 << 20) + 5) + b"\1" + bytes((1 << 20) - 6))
    words = difference.first(tmp_path / "a", tmp_path / "b", what="it")
    assert words.startswith("it: 0x00") or "0x0000" in words
    assert words.endswith("at byte offset 2097152 + 5")


def test_members_that_come_again_are_told_apart():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for data in (b"1", b"2"):
            member = tarfile.TarInfo("same")
            member.size = 1
            archive.addfile(member, io.BytesIO(data))
    kind, parts = anatomy.parts(file.getvalue())
    assert kind == "tar"
    assert (parts["/same"], parts["/same (2)"]) == (b"1", b"2")
