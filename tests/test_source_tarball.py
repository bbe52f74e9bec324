"""A tar that somebody published is laid out as the definition says, or refused in one message."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard
from debian_archive import Item, header, long_name, member, padded, tar
from debian_mirror import Answer, Mirror, serving
from source_rig import locked, obtained, taken

from imagekit import download, plugs
from imagekit.errors import Problem
from imagekit.package import Gone
from imagekit.sources import _packed, _placed, _tar
from imagekit.store import Store
from imagekit.stores.directory import open_store

END = bytes(1024)
ITEMS = [
    Item("app-1/", mode=0o775),
    Item("app-1/run", b"#!/bin/sh\n", mode=0o775, uid=501, gid=20),
    Item("app-1/secret", b"s", mode=0o600),
    Item("app-1/su", b"x", mode=0o4755),
    Item("app-1/again", hard="app-1/run"),
    Item("app-1/link", link="run"),
]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".tar": bytes,
    ".tar.gz": gzip.compress,
    ".tgz": gzip.compress,
    ".tar.xz": lzma.compress,
    ".tar.bz2": bz2.compress,
    ".tar.zst": zstandard.ZstdCompressor().compress,
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as made:
        yield made


def lay(folder: Path, data: bytes, store: Store, options: str = "") -> dict[str, tuple[str, int, str]]:
    """The tree that an archive becomes, in short."""
    (folder / "x.tar").write_bytes(data)
    tree = taken(folder, f"tarball:x.tar{options}", store=store).tree
    return {path: (entry.kind, entry.mode, entry.target) for path, entry in tree.items()}


@pytest.mark.parametrize(("suffix", "pack"), PACKERS.items(), ids=PACKERS)
def test_an_archive_is_laid_out_below_its_prefix(
    suffix: str, pack: Callable[[bytes], bytes], tmp_path: Path, store: Store
) -> None:
    (tmp_path / f"app{suffix}").write_bytes(pack(tar(ITEMS)))
    package = taken(tmp_path, f"tarball:app{suffix} strip=1 prefix=/opt/app", store=store)
    assert (package.name, package.version, package.architecture) == ("app", "0", "all")
    assert {p: (e.kind, e.mode, e.uid, e.gid, e.target) for p, e in package.tree.items()} == {
        "/opt/app/again": ("file", 0o755, 0, 0, ""),
        "/opt/app/link": ("symlink", 0o777, 0, 0, "run"),
        "/opt/app/run": ("hardlink", 0o755, 0, 0, "/opt/app/again"),
        "/opt/app/secret": ("file", 0o600, 0, 0, ""),
        "/opt/app/su": ("file", 0o755, 0, 0, ""),
    }
    assert package.tree.read("/opt/app/run") == b"#!/bin/sh\n"
    assert package.notes == ("mode: /su was 4755",)


WRITERS = {
    "GNU": ["tar", "--format=gnu"], "PAX": ["tar", "--format=posix"], "ustar": ["tar", "--format=ustar"],
    "1979": ["tar", "--format=v7"], "busybox": ["busybox", "tar"],
    "bsdtar": ["bsdtar", "--format=pax"], "Python": [],
}  # fmt: skip


@pytest.mark.parametrize(("name", "writer"), WRITERS.items(), ids=WRITERS)
def test_real_programs_write_what_is_read(name: str, writer: list[str], tmp_path: Path, store: Store) -> None:
    long = "d" * (60 if name in ("1979", "ustar", "busybox") else 120)
    (tmp_path / "in" / long).mkdir(parents=True)
    (tmp_path / "in" / long / ("f" * 30)).write_bytes(b"data" * 1000)
    (tmp_path / "in/link").symlink_to(f"{long}/{'f' * 30}")
    os.link(tmp_path / "in" / long / ("f" * 30), tmp_path / "in/second")
    if writer:
        try:
            subprocess.run([*writer, "-cf", "made.tar", "in"], cwd=tmp_path, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip(f"there is no {writer[0]} here")
    else:
        with tarfile.open(tmp_path / "made.tar", "w", format=tarfile.PAX_FORMAT) as made:
            made.add(tmp_path / "in", "in")
    tree = taken(tmp_path, "tarball:made.tar strip=1 prefix=/opt", store=store).tree
    assert set(tree) == {f"/opt/{long}", f"/opt/{long}/{'f' * 30}", "/opt/link", "/opt/second"}
    assert tree.read("/opt/second") == tree.read(f"/opt/{long}/{'f' * 30}") == b"data" * 1000
    assert tree["/opt/link"].target == f"{long}/{'f' * 30}"


def test_what_git_archives_is_read(tmp_path: Path, store: Store) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "a").write_text("a")
    for words in (["init", "-q"], ["add", "a"], ["commit", "-qm", "a"], ["archive", "-o", "x.tar.gz", "HEAD"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    assert list(taken(tmp_path, "tarball:x.tar.gz", store=store).tree) == ["/a"]


def pax(*records: tuple[str, str], flag: bytes = b"x") -> bytes:
    """A PAX header."""
    body = b""
    for key, value in records:
        line = f" {key}={value}\n".encode()
        size = len(line) + len(str(len(line)))
        body += str(size if len(str(size)) == len(str(len(line))) else size + 1).encode() + line
    return header(b"PaxHeader", flag, size=len(body)) + padded(body)


def raw(flag: bytes, name: bytes = b"x", *, size: bytes | None = None, link: bytes = b"", magic: bytes = b"") -> bytes:
    """A header with a field that no writer would write."""
    made = bytearray(header(name, flag, link=link))
    if size is not None:
        made[124:136] = size
    if magic:
        made[257:265] = magic
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


A = member(Item("a", b"a"))
HOSTILE = {
    "traversal": (tar([Item("../x", b"x")]), "'../x' is no name"),
    "traversal within": (tar([Item("a/../../x", b"x")]), "is no name"),
    "absolute": (tar([Item("/etc/passwd", b"x")]), "is no name"),
    "PAX traversal": (pax(("path", "../x")) + A + END, "is no name"),
    "link out": (tar([Item("x", link="../../etc/passwd")]), "the link /x leads out of the archive"),
    "absolute link": (tar([Item("x", link="/etc/passwd")]), "the link /x leads out of the archive"),
    "link out by the way": (tar([Item("d/", mode=0o755), Item("d/x", link="../..")]), "the link /d/x leads out"),
    "through a link": (tar([Item("d", link="e"), Item("d/x", b"x")]), "/d/x lies below /d, which is a symlink"),
    "below a file": (tar([Item("d", b"e"), Item("d/x", b"x")]), "/d/x lies below /d, which is a file"),
    "hard link out": (tar([Item("x", hard="../x")]), "'../x' is no name"),
    "hard link to nothing": (tar([Item("x", hard="y")]), "names /y, which is no file before it"),
    "hard link to itself": (tar([Item("x", hard="x")]), "names /x, which is no file before it"),
    "hard link to a link": (tar([Item("l", link="m"), Item("x", hard="l")]), "which is no file before it"),
    "character device": (raw(b"3") + END, "has the type b'3'"),
    "block device": (raw(b"4") + END, "has the type b'4'"),
    "fifo": (raw(b"6") + END, "has the type b'6'"),
    "sparse": (raw(b"S") + END, "has the type b'S'"),
    "PAX sparse": (pax(("GNU.sparse.major", "1")) + A + END, "GNU.sparse.major' is not read"),
    "twice": (tar([Item("a", b"1"), Item("a", b"2")]), "it holds /a twice"),
    "twice, by ./": (tar([Item("a", b"1"), Item("./a", b"1")]), "it holds /a twice"),
    "file and folder": (tar([Item("a", b"1"), Item("a/", mode=0o755)]), "it holds /a twice"),
    "negative size": (raw(b"0", size=b"\xff" * 12) + END, "has the number"),
    "huge size": (raw(b"0", size=b"77777777777\0") + END, "cut short|more than"),
    "huge base-256 size": (raw(b"0", size=b"\x80" + bytes(5) + b"\1" * 6) + END, "cut short|more than"),
    "blank size": (raw(b"0", size=b" " * 12) + END, "has no size"),
    "size of a folder": (raw(b"5", b"d/", size=b"00000001000\0") + bytes(512) + END, "is a folder with a size"),
    "size of a link": (raw(b"2", link=b"y", size=b"00000001000\0") + bytes(512) + END, "is a link with a size"),
    "two sizes": (pax(("size", "0")) + A + END, "is not that of its header"),
    "junk size": (pax(("size", "1x")) + A + END, "has the number"),
    "two PAX headers": (pax(("path", "b")) + pax(("path", "c")) + A + END, "two headers of one kind"),
    "GNU and PAX name": (long_name(b"b", b"L") + pax(("path", "c")) + A + END, "two long names"),
    "PAX name twice": (pax(("path", "b"), ("path", "c")) + A + END, "malformed or repeated"),
    "global name": (pax(("path", "b"), flag=b"g") + A + END, "global PAX header names"),
    "PAX header of nobody": (A + pax(("path", "b")) + END, "belongs to no member"),
    "PAX length beyond": (header(b"p", b"x", size=9) + padded(b"99 path=b") + A + END, "malformed or repeated"),
    "PAX length short": (header(b"p", b"x", size=9) + padded(b"3 path=b\n") + A + END, "malformed or repeated"),
    "PAX zero byte": (pax(("path", "a\0b")) + A + END, "holds a zero byte"),
    "PAX of 2 MiB": (pax(("comment", "x" * (2 << 20))) + A + END, "empty or too long"),
    "unknown PAX": (pax(("my.path", "b")) + A + END, "'my.path' is not read"),
    "one zero block": (A + bytes(512), "cut short"),
    "no end": (A, "cut short"),
    "after the end": (A + END + A, "something follows the end"),
    "checksum": (A[:10] + b"x" + A[11:] + END, "does not match its checksum"),
    "other magic": (raw(b"0", magic=b"USTAR\x0000") + END, "neither ustar nor GNU tar"),
    "line end": (tar([Item("a\nb", b"x")]), "control characters"),
    "not UTF-8": (header(b"\xff", b"0") + END, "is not UTF-8"),
    "dropped by strip": (tar([Item("README", b"x")]), "strip=1 would drop it"),
    "nothing": (END, "it holds nothing"),
    "zip": (b"PK\3\4" + bytes(600), "it is a zip archive, not a tar"),
    "no tar": (b"hello, world\n" * 100, "neither ustar nor GNU tar"),
    "empty": (b"", "cut short"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused(data: bytes, message: str, tmp_path: Path, store: Store) -> None:
    strip = " strip=1" if "strip=1" in message else ""
    with pytest.raises(Problem, match=message) as caught:
        lay(tmp_path, data, store, f" prefix=/opt{strip}")
    assert caught.value.message.startswith("tarball:x.tar: ")
    assert not list(Path(store.location, "notes").glob(f"{_placed.NOTE}/*"))


def test_every_cut_and_every_flip_of_a_packed_one_is_noticed() -> None:
    data = gzip.compress(tar(ITEMS), mtime=0)
    tried = held = 0
    for at in range(0, len(data), 3):
        flipped = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        for bad in (data[:at], flipped):
            tried += 1
            try:
                made = b"".join(_packed.unpacked(bad))
            except Problem:
                held += 1
            else:
                held += made == tar(ITEMS) or not bad.startswith(b"\x1f\x8b")  # the rest is for the tar reader
    assert tried == held > 100


def test_every_cut_and_every_flip_of_a_header_is_noticed(tmp_path: Path, store: Store) -> None:
    data = pax(("path", "b/c")) + member(Item("a", b"data", mode=0o755)) + END
    right = lay(tmp_path, data, store)
    headers = [*range(512), *range(1024, 1536)]
    flips = [data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :] for at in headers]
    held = 0
    for bad in (*flips, *(data[:at] for at in range(0, len(data), 64))):
        try:
            held += lay(tmp_path, bad, store) == right  # a blank for a zero byte is as good
        except Problem:
            held += 1
    assert held == len(flips) + len(range(0, len(data), 64)) == 1072


@pytest.mark.parametrize("pack", [lzma.compress, bz2.compress, gzip.compress], ids=["xz", "bzip2", "gzip"])
def test_what_does_not_end_where_it_should_is_refused(pack: Callable[[bytes], bytes]) -> None:
    for bad in (pack(b"x" * 9000) + b"garbage", pack(b"x" * 9000)[:-5], pack(b"a") + pack(b"b")):
        with pytest.raises(Problem, match="does not end where it should"):
            list(_packed.unpacked(bad))


def test_a_bomb_ends_early(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packed, "FREE", 4 << 20)
    with pytest.raises(Problem, match="it unpacks to more than 1000 times"):
        lay(tmp_path, lzma.compress(header(b"x", b"0", size=64 << 20) + bytes(64 << 20) + END, preset=1), store)


def test_a_large_one_ends_at_the_limit(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tar, "MAX_BYTES", 1 << 20)
    with pytest.raises(Problem, match="the archive unpacks to more than"):
        lay(tmp_path, gzip.compress(header(b"x", b"0", size=4 << 20) + os.urandom(4 << 20) + END), store)


def test_links_inside_stay(tmp_path: Path, store: Store) -> None:
    links = [Item("d/", mode=0o755), Item("d/up", link="../a"), Item("own", link="/opt/a"), Item("a", b"x")]
    made = lay(tmp_path, tar(links), store, " prefix=/opt")
    assert [made[f"/opt/{name}"][2] for name in ("d/up", "own")] == ["../a", "/opt/a"]


def test_a_root_may_have_links_anywhere_and_its_bin_is_in_usr(tmp_path: Path, store: Store) -> None:
    root = [Item("bin", link="usr/bin"), Item("usr/bin/x", b"x"), Item("lib/y", b"y"), Item("etc/z", link="/usr/bin/x")]
    assert set(lay(tmp_path, tar(root), store)) == {"/usr/bin/x", "/usr/lib/y", "/etc/z"}


def served(mirror: Mirror, data: bytes) -> tuple[str, str]:
    (mirror.folder / "app-1.0.tar.gz").write_bytes(data)
    return f"{mirror.address}/app-1.0.tar.gz", sha256(data).hexdigest()


def test_an_address_is_fetched_once_and_then_kept(mirror: Mirror, tmp_path: Path, store: Store) -> None:
    url, digest = served(mirror, gzip.compress(tar(ITEMS)))
    pins = locked(tmp_path, f"tarball:{url} sha256={digest} strip=1 prefix=/opt", store=store)
    assert (pins[0].name, pins[0].archive, pins[0].sha256) == ("app-1.0", "url", digest)
    assert pins[0].path == f"{url}#prefix=/opt&strip=1"
    (made,) = obtained(pins, tmp_path, store)
    assert mirror.requests == ["/app-1.0.tar.gz"]
    assert obtained(pins, tmp_path, open_store(tmp_path / "other"))[0].digest == made.digest
    assert len(mirror.requests) == 2
    assert plugs.load("sources", "tarball").inputs(pins, tmp_path) == []


MISDEEDS: dict[str, tuple[Callable[[Answer], None], str]] = {
    "other bytes": (lambda answer: answer.body(b"other"), "sent 5 bytes with the sha256"),
    "none": (lambda answer: answer.body(b"", 404), "the server has no such file"),
    "too large": (lambda answer: answer.body(b"x", length=1 << 40), "where at most"),
    "elsewhere": (lambda answer: answer.body(b"", 302, Location="http://example.org/x"), "redirects elsewhere"),
    "cut": (lambda answer: answer.body(b"x", length=100), "cut the body"),
}


@pytest.mark.parametrize(("answer", "message"), MISDEEDS.values(), ids=MISDEEDS)
def test_a_server_that_misbehaves_is_one_message(
    answer: Callable[[Answer], None], message: str, mirror: Mirror, tmp_path: Path, store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(download, "PATIENCE", download.Patience(tries=2, pause=0.01))
    url, digest = served(mirror, b"")
    mirror.answers["*"] = answer
    with pytest.raises(Problem, match=message):
        locked(tmp_path, f"tarball:{url} sha256={digest.replace('e', 'f')}", store=store)
    assert not list(Path(store.location, "objects").rglob("*"))


def test_a_server_that_drips_is_left(mirror: Mirror, tmp_path: Path, store: Store,
                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(download, "PATIENCE", download.Patience(start=0.2))

    def drip(answer: Answer) -> None:
        answer.send_response(200)
        answer.send_header("Content-Length", str(1 << 20))
        answer.end_headers()
        while not mirror.over.wait(0.02):
            answer.wfile.write(b"x")

    mirror.answers["*"] = drip
    with pytest.raises(Problem, match="the mirror is too slow"):
        locked(tmp_path, f"tarball:{mirror.address}/x.tar sha256={'0' * 64}", store=store)


def test_what_the_server_dropped_is_told(mirror: Mirror, tmp_path: Path, store: Store) -> None:
    url, digest = served(mirror, tar(ITEMS))
    pins = locked(tmp_path, f"tarball:{url} sha256={digest}", store=store)
    (mirror.folder / "app-1.0.tar.gz").unlink()
    with pytest.raises(Gone, match="the server has no such file"):
        obtained(pins, tmp_path, open_store(tmp_path / "other"))


BAD = {
    "tarball:https://example.org/x.tar": ("an address needs sha256=...", "something else tomorrow"),
    "tarball:https://example.org/x.tar sha256=abc": ("sha256=abc is no sha256", "64 digits"),
    f"tarball:https://example.org/x.tar sha256={'A' * 64}": ("is no sha256", ""),
    f"tarball:ftp://example.org/x.tar sha256={'a' * 64}": ("it is no address of http or https", ""),
    f"tarball:file:///etc/passwd sha256={'a' * 64}": ("it is no address of http or https", ""),
    f"tarball:https://u:p@example.org/x.tar sha256={'a' * 64}": ("credentials is not pinned", ""),
    f"tarball:https://example.org/x.tar?a=b sha256={'a' * 64}": ("a query, a fragment or credentials", ""),
    f"tarball:x.tar sha256={'a' * 64}": ("its sha256 is ", "is it the right file?"),
    "tarball:x.tar strip=-1": ("strip=-1 is no number of leading folders", ""),
    "tarball:x.tar strip=x": ("strip=x is no number", ""),
    "tarball:x.tar prefix=opt": ("prefix=opt is no folder", ""),
    "tarball:x.tar stripp=1": ("unknown option 'stripp'", "'strip'? known: arch, name, prefix, sha256, strip, version"),
    "tarball:none.tar": ("there is no such file", "it is looked for in"),
    "tarball:../x.tar": ("it is no path beside the definition", ""),
    "tarball:~x~.tar": ("'~x~' is no name of a package", "name="),
}


@pytest.mark.parametrize(("written", "told"), BAD.items(), ids=BAD)
def test_a_wrong_word_is_one_message(written: str, told: tuple[str, str], tmp_path: Path, store: Store) -> None:
    for name in ("x.tar", "~x~.tar"):
        (tmp_path / name).write_bytes(tar(ITEMS))
    with pytest.raises(Problem) as caught:
        locked(tmp_path, written, store=store)
    assert told[0] in caught.value.message
    assert told[1] in caught.value.hint


def test_python_reads_the_same(tmp_path: Path, store: Store) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar(ITEMS))) as there:
        names = {f"/{name.removeprefix('app-1/')}" for name in there.getnames()} - {"/app-1"}
    assert set(lay(tmp_path, tar(ITEMS), store, " strip=1")) == names
