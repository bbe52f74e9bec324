"""A .deb becomes a plain package, or one Problem."""

import gzip
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard
from debian_archive import Item, ar, deb, folders, header, long_name, member, padded, tar, xz

from imagekit import kept
from imagekit.errors import Problem
from imagekit.package import Package
from imagekit.sources import _deb, _tar
from imagekit.store import Store
from imagekit.stores.directory import open_store

END = bytes(1024)
HELLO = Item("./usr/bin/hello", b"#!/bin/sh\necho hello\n", mode=0o755)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


def convert(data: bytes, store: Store) -> Package:
    return _deb.convert(data, sha256(data).hexdigest(), store)


def test_a_package_is_its_files_and_their_owners(store: Store) -> None:
    items = [*folders("bin", "usr", "usr/bin"), HELLO._replace(uid=5, gid=6), Item("./bin/hi", link="/usr/bin/hello")]
    package = convert(deb("tiny", items, version="1:2-3", architecture="amd64"), store)
    assert (package.name, package.version, package.architecture) == ("tiny", "1:2-3", "amd64")
    assert list(package.tree) == ["/usr", "/usr/bin", "/usr/bin/hello", "/usr/bin/hi"]
    hello = package.tree["/usr/bin/hello"]
    assert (hello.mode, hello.uid, hello.gid, hello.owner) == (0o755, 5, 6, "tiny")
    assert package.tree.read("/usr/bin/hello") == HELLO.data
    assert package.tree["/usr/bin/hi"].target == "/usr/bin/hello"
    assert package.digest == package.tree.digest


def test_what_was_converted_is_loaded(store: Store) -> None:
    data = deb("tiny", [*folders("usr", "usr/bin"), HELLO], scripts={"triggers": "activate-noawait ldconfig\n"})
    package = convert(data, store)
    assert _deb.load(sha256(data).hexdigest(), store) == package
    assert _deb.load(sha256(b"another").hexdigest(), store) is None


def test_a_package_without_files(store: Store) -> None:
    data = deb("meta", folders())
    assert len(convert(data, store).tree) == 0
    loaded = _deb.load(sha256(data).hexdigest(), store)
    assert loaded is not None
    assert len(loaded.tree) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda note, _: note.write_bytes(note.read_bytes()[:-40]),
        lambda note, _: note.write_bytes(note.read_bytes().replace(b"hello", b"hallo")),
        lambda note, _: note.write_bytes(b""),
        lambda note, _: note.write_bytes(bytes(4096)),
        lambda _, blob: blob.unlink(),
        lambda _, blob: blob.write_bytes(blob.read_bytes()[:-1]),
        lambda _, blob: blob.write_bytes(blob.read_bytes() + b"x"),
        lambda _, blob: blob.write_bytes(blob.read_bytes()[:-1] + b"x"),
    ],
    ids=["note cut", "note changed", "note empty", "note zeros", "gone", "cut", "longer", "same size, other bytes"],
)
def test_a_damaged_cache_means_converting_again(store: Store, damage: Callable[[Path, Path], object]) -> None:
    data = deb("tiny", [*folders("usr", "usr/bin"), HELLO])
    digest = sha256(data).hexdigest()
    convert(data, store)
    blob = store.path(sha256(HELLO.data or b"").hexdigest())
    note = Path(store.location) / "notes" / _deb.NOTE / f"{digest}-{_deb.FORM}"
    for path in (blob, note):
        path.chmod(0o600)
    damage(note, blob)
    assert _deb.load(digest, store) is None
    assert convert(data, store).tree.read("/usr/bin/hello") == HELLO.data


def test_a_cache_that_was_copied_is_hashed_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    data = deb("tiny", [*folders("usr", "usr/bin"), HELLO])
    digest = sha256(data).hexdigest()
    convert(data, store)
    os.utime(store.path(sha256(HELLO.data or b"").hexdigest()), (1, 1))
    assert _deb.load(digest, store) is not None
    monkeypatch.setattr(kept, "remember", lambda *_: pytest.fail("hashed again"))
    assert _deb.load(digest, store) is not None


def test_the_order_of_the_archive_leaves_no_trace(store: Store) -> None:
    items = [
        Item("./usr/b", b"same"),
        Item("./usr/a", hard="./usr/b"),
        Item("./usr/c", hard="./usr/b"),
        Item("./usr/z", b""),
    ]
    package = convert(deb("tiny", [*folders("usr"), *items]), store)
    assert [(path, entry.kind, entry.target) for path, entry in package.tree.items()] == [
        ("/usr", "dir", ""),
        ("/usr/a", "file", ""),
        ("/usr/b", "hardlink", "/usr/a"),
        ("/usr/c", "hardlink", "/usr/a"),
        ("/usr/z", "file", ""),
    ]
    other = [
        Item("./usr/z", b""),
        Item("./usr/a", b"same"),
        Item("./usr/b", hard="usr/a"),
        Item("./usr/c", hard="./usr/b"),
    ]
    assert convert(deb("tiny", [*folders("usr"), *other]), store).digest == package.digest
    assert package.tree.read("/usr/c") == b"same"


def test_long_names(store: Store) -> None:
    name, target = "usr/" + "n" * 120, "t" * 300
    package = convert(
        deb("tiny", [*folders("usr"), Item("./" + name, link=target), Item("./usr/" + "f" * 200, b"x")]), store
    )
    assert package.tree["/" + name].target == target
    assert package.tree.read("/usr/" + "f" * 200) == b"x"


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".gz", gzip.compress), (".xz", xz), (".zst", zstandard.ZstdCompressor().compress)],
    ids=["plain", "gz", "xz", "zst"],
)
def test_every_compression_reads_alike(store: Store, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    big = bytes(range(256)) * 20_000  # several pieces
    plain = tar([*folders("usr", "usr/bin"), HELLO, Item("./usr/big", big), Item("./usr/end", b"end")])
    packed = compress(plain)
    package = convert(deb(data_tar=("data.tar" + suffix, packed)), store)
    assert package.tree.read("/usr/big") == big
    assert package.tree.read("/usr/end") == b"end"
    with pytest.raises(Problem):
        convert(deb(data_tar=("data.tar" + suffix, packed[: len(packed) - 20] if suffix else plain[:-600])), store)
    with pytest.raises(Problem):
        convert(deb(data_tar=("data.tar" + suffix, packed + b"more")), store)


@pytest.mark.parametrize(
    ("items", "kept"),
    [
        ([Item("./lib64", link="usr/lib64")], []),
        ([Item("./lib/x", b"1"), Item("./usr/lib/x", link="/lib/x")], ["/usr/lib/x"]),
        ([Item("./usr/bin/x", link="../../bin/x"), Item("./bin/x", b"1")], "twice"),
        ([Item("./bin/x", b"1"), Item("./usr/bin/x", b"2")], "twice"),
        ([Item("./bin/", mode=0o755), Item("./usr/bin/", mode=0o755)], ["/usr/bin"]),
        ([Item("./bin/", mode=0o755), Item("./usr/bin/", mode=0o700)], "twice"),
    ],
)
def test_usrmerge(store: Store, items: list[Item], kept: list[str] | str) -> None:
    data = deb("tiny", items)
    if isinstance(kept, str):
        with pytest.raises(Problem, match=kept):
            convert(data, store)
    else:
        tree = convert(data, store).tree
        assert list(tree) == kept
        assert all(entry.kind != "symlink" for entry in tree.values())


BAD_TARS = {
    "outside": (member(Item("./../x", b"")) + END, "no name"),
    "inside out": (member(Item("./usr/../../x", b"")) + END, "no name"),
    "absolute": (member(Item("/etc/x", b"")) + END, "no name"),
    "empty component": (member(Item("./usr//x", b"")) + END, "no name"),
    "file with slash": (member(Item("./usr/x/", b"1")) + END, "no name"),
    "too deep": (member(Item("./" + "a/" * 70 + "x", b"")) + END, "no name"),
    "long component": (member(Item("./" + "a" * 256, b"")) + END, "no name"),
    "too long": (member(Item("./" + "a/" * 2100 + "x", b"")) + END, "too long"),
    "newline": (member(Item("./a\nb", b"")) + END, "control characters"),
    "escape": (member(Item("./a\x1b[2J", b"")) + END, "control characters"),
    "NUL in a long name": (long_name(b"./a\0b", b"L") + member(Item("./x", b"")) + END, "control characters"),
    "not UTF-8": (header(b"./\xff", b"0") + END, "UTF-8"),
    "symlink to nothing": (header(b"./x", b"2") + END, "link to nothing"),
    "device": (header(b"./null", b"3") + END, "type"),
    "fifo": (header(b"./pipe", b"6") + END, "type"),
    "sparse": (header(b"./sparse", b"S") + END, "type"),
    "PAX": (header(b"./x", b"x", size=10) + padded(b"9 path=x\n") + END, "type"),
    "global PAX": (header(b"./x", b"g", size=10) + padded(b"9 path=x\n") + END, "type"),
    "folder with bytes": (header(b"./d/", b"5", size=3) + padded(b"abc") + END, "with a size"),
    "link with bytes": (header(b"./l", b"2", size=3, link=b"x") + padded(b"abc") + END, "with a size"),
    "two long names": (long_name(b"./a", b"L") * 2 + member(Item("./x", b"")) + END, "repeated"),
    "dangling long name": (long_name(b"./a", b"L") + END, "belongs to no member"),
    "endless long name": (header(b"././@LongLink", b"L", size=1 << 30) + END, "too long"),
    "base-256 size": (
        bytes(header(b"./x", b"0"))[:124] + b"\x80" + bytes(10) + b"\x01" + header(b"./x", b"0")[136:],
        "checksum",
    ),
    "wrong checksum": (header(b"./x", b"0").replace(b"./x", b"./y") + END, "checksum"),
    "other magic": (header(b"./x", b"0").replace(b"ustar  ", b"pax..  ") + END, "neither ustar nor GNU"),
    "no end": (member(Item("./x", b"1")), "cut short"),
    "one zero block": (member(Item("./x", b"1")) + bytes(512), "cut short"),
    "member after the end": (member(Item("./x", b"1")) + END + member(Item("./y", b"1")) + END, "follows the end"),
    "cut in a file": (member(Item("./x", bytes(5000)))[:3000], "cut short"),
    "hard link to nothing": (tar([Item("./a", hard="./b")]), "no file before it"),
    "hard link forward": (tar([Item("./a", hard="./b"), Item("./b", b"")]), "no file before it"),
    "hard link to a symlink": (tar([Item("./b", link="/etc/passwd"), Item("./a", hard="./b")]), "no file before it"),
    "hard link outside": (tar([Item("./a", hard="../../etc/passwd")]), "no name"),
    "twice": (tar([Item("./a", b"1"), Item("./a", b"2")]), "twice"),
    "file below a symlink": (tar([Item("./a", link="/etc"), Item("./a/passwd", b"root")]), "lies below"),
    "file below a file": (tar([Item("./a", b""), Item("./a/b", b"")]), "lies below"),
}


@pytest.mark.parametrize(("bad", "words"), BAD_TARS.values(), ids=BAD_TARS)
def test_a_bad_data_tar_is_refused(store: Store, bad: bytes, words: str) -> None:
    with pytest.raises(Problem, match=words):
        convert(deb(data_tar=("data.tar", bad)), store)
    assert not list(Path(store.location).rglob("objects/*/*"))
    assert not list(Path(store.location).rglob("drafts/*"))


def test_limits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    data = deb("tiny", [Item(f"./f{n}", bytes(1000)) for n in range(20)])
    monkeypatch.setattr(_tar, "MAX_MEMBERS", 10)
    with pytest.raises(Problem, match="more than 10 members"):
        convert(data, store)
    monkeypatch.setattr(_tar, "MAX_MEMBERS", 100)
    monkeypatch.setattr(_tar, "MAX_BYTES", 8000)
    with pytest.raises(Problem, match="more than 8000 bytes"):
        convert(data, store)


WHOLE = deb("tiny", [Item("./a", b"1")])
SIGN = ("debian-binary", b"2.0\n")
CONTROL = ("control.tar", tar([Item("./control", b"Package: x\nVersion: 1\nArchitecture: all\n")]))
BAD_DEBS = {
    "empty": (b"", "no ar archive"),
    "no ar": (b"PK\x03\x04", "no ar archive"),
    "only the magic": (b"!<arch>\n", "format 2"),
    "cut header": (WHOLE[:100], "malformed|cut short"),
    "cut member": (WHOLE[:-30], "cut short"),
    "negative size": (b"!<arch>\n" + b"x".ljust(48) + b"-1        `\n", "malformed"),
    "no data": (ar((SIGN, CONTROL)), "0 members data.tar"),
    "two datas": (ar((SIGN, CONTROL, ("data.tar", tar([])), ("data.tar.xz", b""))), "2 members data.tar"),
    "format 3": (WHOLE.replace(b"2.0\n", b"3.0\n", 1), "format 2"),
    "same member twice": (ar((SIGN, SIGN)), "malformed"),
    "unknown compression": (deb(data_tar=("data.tar.lz", b"LZIP")), "compressed in a way"),
    "broken xz": (deb(data_tar=("data.tar.xz", b"\xfd7zXZ\0garbage of some length")), "xz data is broken"),
    "name with a path": (deb("../../x", []), "has the Package"),
    "no version": (deb("x", [], version=""), "has the Version"),
}  # fmt: skip


@pytest.mark.parametrize(("bad", "words"), BAD_DEBS.values(), ids=BAD_DEBS)
def test_a_bad_deb_is_refused(store: Store, bad: bytes, words: str) -> None:
    with pytest.raises(Problem, match=words):
        convert(bad, store)


def test_every_cut_and_many_flips_are_refused_or_change_nothing(store: Store) -> None:
    data = deb(
        "tiny", [*folders("usr", "usr/bin"), HELLO], data_tar=("data.tar", tar([*folders("usr", "usr/bin"), HELLO]))
    )
    for cut in range(0, len(data) - 1, 7):
        with pytest.raises(Problem):
            convert(data[:cut], store)
    for at in range(0, len(data), 11):
        flipped = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        try:
            package = convert(flipped, store)
        except Problem:
            continue
        for path, entry in package.tree.items():  # a flip in a file's bytes is the digest's business, not the reader's
            assert path.startswith("/usr")
            assert entry.kind in ("dir", "file")


def test_what_the_scripts_would_have_done_is_noted(store: Store) -> None:
    postinst = """#!/bin/sh
set -e
case "$1" in configure)
  update-alternatives --quiet --install /usr/bin/awk awk /usr/bin/mawk 5 \\
      --slave /usr/bin/nawk nawk /usr/bin/mawk
  adduser --system --group www || true
  if setcap cap_net_raw+ep /bin/ping; then :; fi
  dpkg-statoverride --update --add root www 4754 /usr/lib/x >/dev/null 2>&1
  # chown this is a comment
esac
"""
    package = convert(deb("tiny", [], scripts={"postinst": postinst, "triggers": "activate-noawait ldconfig\n"}), store)
    assert package.notes == (
        "alternative: update-alternatives --quiet --install /usr/bin/awk awk /usr/bin/mawk 5 "
        "--slave /usr/bin/nawk nawk /usr/bin/mawk",
        "user: adduser --system --group www",
        "mode: setcap cap_net_raw+ep /bin/ping",
        "mode: dpkg-statoverride --update --add root www 4754 /usr/lib/x",
        "trigger: activate-noawait ldconfig",
    )
