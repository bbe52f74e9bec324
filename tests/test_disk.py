"""The writers of disk/, each against a reader that is not ours."""

import gzip as python_gzip
import io
import os
import shutil
import subprocess
import tarfile
import zlib
from hashlib import sha256

import pytest

from imagekit.disk import cpio, gzip, segments, tar
from imagekit.errors import Problem
from imagekit.stores.directory import open_store
from imagekit.tree import Entry, Tree, directory, file, symlink

LONG = "/" + "d" * 90 + "/" + "f" * 90

TREE = Tree(
    {
        "/etc/passwd": file(b"root:x:0:0\n", mode=0o600, uid=1, gid=2),
        "/etc/same": Entry("hardlink", target="/etc/passwd"),
        "/bin/su": file(b"\x7fELF" + bytes(5000), mode=0o4755),
        "/link": symlink("etc/passwd"),
        "/far": symlink("x" * 130),
        "/dev/null": Entry("char", 0o666, device=(1, 3)),
        "/dev/loop": Entry("block", 0o660, device=(7, 0)),
        "/run/fifo": Entry("fifo", 0o600),
        "/tmp": directory(0o1777),
        "/große Datei": file("ü".encode()),
        LONG: file(b"deep"),
        "/empty": file(b""),
    }
).complete()


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {"/" + m.name: m for m in archive}


def written(tree):
    return b"".join(tar.chunks(tree.items())) + tar.END


def test_tar_holds_every_kind_and_attribute():
    found = members(written(TREE))
    assert found.keys() == set(TREE)
    kinds = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE,
             "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE}  # fmt: skip
    for path, entry in TREE.items():
        member = found[path]
        if entry.kind == "hardlink":  # with its file's, which some readers take
            entry = entry._replace(**{name: getattr(TREE[entry.target], name) for name in ("mode", "uid", "gid")})
        assert (member.type, member.mode, member.uid, member.gid, member.mtime) == (
            kinds[entry.kind], entry.mode, entry.uid, entry.gid, 0)  # fmt: skip
        assert member.size == (entry.size if entry.kind == "file" else 0)
        assert (member.devmajor, member.devminor) == entry.device
    assert found["/far"].linkname == "x" * 130
    assert found["/etc/same"].linkname == "etc/passwd"


def test_tar_keeps_large_ids_and_attributes():
    capability = bytes.fromhex("0100000200000000")
    tree = Tree({"/ping": Entry("file", 0o755, 2**31, 4_000_000, 0, file(b"").sha256,
                                xattrs=(("security.capability", capability),))})  # fmt: skip
    member = members(written(tree))["/ping"]
    assert (member.uid, member.gid) == (2**31, 4_000_000)
    assert member.pax_headers["SCHILY.xattr.security.capability"].encode("utf-8", "surrogateescape") == capability


def test_tar_says_of_a_long_name_that_it_is_bytes():
    tree = Tree({"/" + "\udcff" * 120: file(b""), "/\udcff": file(b"")})
    names = {info.name for info in members(written(tree)).values()}
    assert names == {"\udcff" * 120, "\udcff"}
    assert b"hdrcharset=BINARY" in written(tree)
    utf8 = [("/" + "ü" * 120, file(b""))]
    assert b"hdrcharset" not in b"".join(tar.chunks(utf8))
    assert b"hdrcharset" in b"".join(tar.chunks(utf8, binary=True))


def test_gnu_tar_reads_the_same():
    listed = subprocess.run(
        ["tar", "--list", "--quoting-style=literal"], input=written(TREE), capture_output=True, check=True
    )
    assert {"/" + line.rstrip("/") for line in listed.stdout.decode().splitlines()} == set(TREE)
    assert not listed.stderr


def test_what_changed_in_a_tree_changes_its_own_run_alone():
    """One file that is large, one that is not, one more, one less: every other run is packed to the same bytes."""
    files = {f"/usr/share/{n}": file(b"%d\n" % n * (n % 90)) for n in range(400)}
    files |= {f"/usr/lib/{n}": file(b"%d\n" % n * 20_000) for n in range(4)}
    before = Tree(files)
    runs = [gzip.segment(run).data for run in tar.runs(before.items())]
    assert 10 < len(runs) < 40
    whole = gzip.joined(tar.runs(before.items()))
    assert whole.data == b"".join(runs)
    assert python_gzip.decompress(b"".join(gzip.member([whole]))) == b"".join(tar.chunks(before.items()))
    changes = ({"/usr/share/7": file(b"other")}, {"/usr/lib/2": file(b"2" * 100_000)}, {"/usr/share/71": file(b"")})
    for change in changes:
        after = [gzip.segment(run).data for run in tar.runs({**files, **change}.items())]
        assert len(set(after) - set(runs)) == 1
    gone = [gzip.segment(run).data for run in tar.runs((path, files[path]) for path in files if path != "/usr/share/9")]
    assert len(set(gone) - set(runs)) <= 1


def test_tar_does_not_depend_on_the_order_of_insertion():
    backwards = Tree(list(TREE.items())[::-1])
    assert written(backwards) == written(TREE)


def cpio_members(data):
    """newc as its specification says, read independently of the writer: {path: (mode, uid, gid, links, rdev, data)}."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_end = at + 110 + fields[11]
        name = data[at + 110 : name_end - 1].decode("utf-8", "surrogateescape")
        start = -(-name_end // 4) * 4
        body = data[start : start + fields[6]]
        at = -(-(start + fields[6]) // 4) * 4
        if name == "TRAILER!!!":
            assert at == len(data)
            return found
        assert fields[5] == 0, "a time"
        found["/" + name] = (fields[0], fields[1], fields[2], fields[3], fields[4], (fields[9], fields[10]), body)


def test_cpio_holds_every_kind_and_attribute():
    found = cpio_members(cpio.archive(TREE.items()))
    assert found.keys() == set(TREE)
    for path, entry in TREE.items():
        _, mode, uid, gid, links, device, _ = found[path]
        if entry.kind != "hardlink":
            assert (mode, uid, gid, device) == (cpio.TYPES[entry.kind] | entry.mode, entry.uid, entry.gid, entry.device)
        assert links == (2 if path in ("/etc/passwd", "/etc/same") else 1)
    assert found["/etc/passwd"][0] == found["/etc/same"][0], "one inode"
    assert found["/etc/same"][6] == b"root:x:0:0\n", "the bytes come with the last name"
    assert found["/far"][6] == b"x" * 130


@pytest.mark.skipif(
    not shutil.which("cpio"), reason="GNU cpio is not on this machine; busybox reads it in test_formats"
)
def test_gnu_cpio_reads_the_same():
    listed = subprocess.run(
        ["cpio", "--list", "--quiet"], input=cpio.archive(TREE.items()), capture_output=True, check=True
    )
    assert {"/" + line for line in listed.stdout.decode().splitlines()} == set(TREE)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"/x": Entry("file", xattrs=(("user.a", b"1"),))}, "extended attributes"),
        ({"/x": Entry("hardlink", target="/gone")}, "not in the same part"),
        ({"/x": Entry("file", size=1 << 32)}, "4 GiB"),
        ({f"/d/{'ä' * 128}": Entry("dir")}, "names of 255 bytes"),
        ({"/d" * 2049: Entry("dir")}, "paths of 4095"),
    ],
)
def test_cpio_refuses(entries, words):
    with pytest.raises(Problem, match=words):
        cpio.archive(entries.items())


def test_cpio_holds_names_and_targets_that_are_not_utf_8():
    long = f"/{'x' * 255}"
    found = cpio_members(cpio.archive({"/\udcff": symlink("\udcfe/x"), long: file(b"1")}.items()))
    assert {path: member[-1] for path, member in found.items()} == {"/\udcff": b"\xfe/x", long: b"1"}


@pytest.mark.parametrize("sizes", [(0,), (1, 0, 7), (100_000, 3, 65_536), (5,) * 40])
def test_segments_make_one_gzip_member(sizes):
    bodies = [os.urandom(size) + b"text " * size for size in sizes]
    packed = b"".join(gzip.member(gzip.segment([body[:3], body[3:]]) for body in bodies))
    assert python_gzip.decompress(packed) == b"".join(bodies)
    one = zlib.decompressobj(31)
    assert one.decompress(packed) == b"".join(bodies)
    assert one.eof
    assert not one.unused_data, "a second member, at which several readers stop without a word"
    subprocess.run(["gzip", "--test"], input=packed, check=True)


@pytest.mark.parametrize("size", [0, 1, 7, 65_535, 65_536, 200_000])
def test_what_does_not_shrink_is_deflate_too(size):
    data = os.urandom(size)
    packed = b"".join(gzip.stored(data, is_last=True))
    assert len(packed) == size + 5 * -(-size // 65_535)
    if data:
        one = zlib.decompressobj(-15)
        assert (one.decompress(packed), one.eof, one.unused_data) == (data, True, b"")
    parts = [gzip.segment([b"first" * 99]), gzip.unshrunk(data), gzip.segment([b"last"])]
    assert python_gzip.decompress(b"".join(gzip.member(parts))) == b"first" * 99 + data + b"last"


NOISE = b"".join(sha256(b"%d" % number).digest() for number in range(2048))


@pytest.mark.parametrize(
    ("data", "is_worth_it"),
    [
        (b"", False),
        (NOISE, False),
        (NOISE[:100], False),
        (zlib.compress(NOISE + bytes(9999)), False),
        (NOISE[:-3000] + bytes(3000), False),
        (b"x", False),
        (bytes(1 << 16), True),
        (b"text " * 4000, True),
        (b"".join(b"%d\n" % number for number in range(9999)), True),
        (b"".join(number.to_bytes(4) for number in range(1 << 14)), True),
        (NOISE[: 1 << 15] + bytes(1 << 15), True),
    ],
)
def test_what_is_worth_deflating(data, is_worth_it):
    assert gzip.shrinks(data) == is_worth_it


@pytest.mark.parametrize(("a", "b"), [(b"", b""), (b"a", b""), (b"", b"b"), (b"abc", b"x" * 100_003)])
def test_crc_of_a_concatenation(a, b):
    assert gzip.combine(zlib.crc32(a), zlib.crc32(b), len(b)) == zlib.crc32(a + b)


def test_parts_put_parents_first_and_owners_apart():
    tree = Tree({"/a/x": file(b"1", owner="zlib"), "/a/y": file(b"2", owner="busybox")}).complete()
    assert [set(part) for part in segments.parts(tree)] == [{"/a"}, {"/a/y"}, {"/a/x"}]


def test_a_kept_part_is_made_once_and_a_damaged_one_again(tmp_path):
    store, made = open_store(tmp_path / "cache"), []

    def make(part):
        made.append(part)
        return segments.Kept(b"packed", (7, 8))

    part = Tree({"/x": file(b"1")})
    assert segments.kept(store, "r1", part, make) == segments.kept(store, "r1", part, make)
    assert len(made) == 1
    (bad,) = [path for path in (tmp_path / "cache" / "objects").rglob("*") if path.is_file()]
    bad.chmod(0o600)
    bad.write_bytes(b"pucked")
    assert segments.kept(store, "r1", part, make).data == b"packed"
    assert len(made) == 2
    segments.kept(store, "r2", part, make)
    assert len(made) == 3, "another recipe"
