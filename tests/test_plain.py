"""The file of a plain package: written once, read strictly, by trusted keys alone; everything else has its message."""

import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from imagekit import key, label, plain, toolbox
from imagekit.disk import frames, tar
from imagekit.errors import Problem
from imagekit.package import Origin, Package
from imagekit.stores.directory import open_store
from imagekit.tree import Entry, Tree, directory, file, symlink

KEY, OTHER = key.from_seed(b"k" * 32), key.from_seed(b"o" * 32)
TREE = Tree(
    {
        "/usr": directory(),
        "/usr/bin": directory(),
        "/usr/bin/hello": file(b"#!/bin/sh\necho hello\n", mode=0o755),
        "/usr/bin/hi": symlink("hello"),
        "/usr/bin/twin": Entry("hardlink", 0o755, target="/usr/bin/hello"),
        "/var/lib/hello": directory(0o1777, uid=900, gid=901),
        "/srv/large": file(bytes(range(256)) * 10_000, mode=0o600),
        "/srv/" + "long name/" * 20 + "é": symlink("../" * 20 + "x"),
    }
)


def package(tree: Tree = TREE, *, name="hello", version="1.0-1", arch="all") -> Package:
    return Package(name, version, arch, tree.digest, tree, ("user: hello",), Origin("greetings", "1:1.0"), "MIT")


def written(tmp_path: Path, made: Package | None = None, *, by=KEY, data: bytes | None = None, **more) -> Path:
    made = made or package()
    path = tmp_path / plain.file_name(made)
    path.write_bytes(b"".join(plain.write(made, key=by, **more)) if data is None else data)
    return path


def forged(tmp_path: Path, archive: bytes, *, digest: str = TREE.digest, **fields) -> Path:
    """A file with any archive in it, by someone whose key is trusted."""
    body = list(frames.packed([archive]))
    rows = tuple((len(frame), sha256(frame).hexdigest()) for frame in body)
    about = {"setuid": (), "sources": (), "size": len(archive), "zstd": frames.version(), "frames": rows, **fields}
    made = label.Label("hello", "1.0-1", "all", digest, Origin(), "", (), **about)
    return written(tmp_path, data=frames.skippable(plain.head(made, KEY)) + b"".join(body))


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "cache")


def test_what_is_written_is_read(tmp_path, store):
    path = written(tmp_path, sources=[("hello.tar.gz", "0" * 64)])
    taken = plain.take(path, [OTHER, KEY], store=store)
    assert plain.read(path, [KEY], store=store) == package()
    assert (taken.by, taken.sha256) == (KEY, sha256(path.read_bytes()).hexdigest())
    assert taken.label.sources == (("hello.tar.gz", "0" * 64),)
    assert plain.read_head(path, [KEY]) == (taken.label, KEY)
    found = plain.read(path, [KEY], store=store).tree
    assert found.read("/srv/large") == TREE.read("/srv/large")
    assert {entry.owner for entry in found.values()} == {"hello"}


def test_the_order_of_the_tree_and_who_brought_it_leave_no_trace():
    other = Tree({path: TREE[path]._replace(owner="x") for path in reversed(TREE.paths)})
    assert list(plain.write(package(other), key=KEY)) == list(plain.write(package(), key=KEY))


@pytest.mark.parametrize(
    "words", ["zstd -dc {} | tar -t", "tar -tf {} --use-compress-program=zstd", "zstd -t {} && echo"]
)
def test_other_programs_read_it(tmp_path, words):
    if not shutil.which(words.split()[0]):
        pytest.skip(f"no {words.split()[0]} on this machine")
    done = subprocess.run(words.format(written(tmp_path)), shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.replace("\r", "").count("rror")) == (0, 0), done.stderr
    assert "echo" in words or "usr/bin/hello" in done.stdout.split()


def test_minisign_verifies_the_first_frame(tmp_path):
    held = written(tmp_path).read_bytes()[8:]
    text, _, rest = held[len(label.MAGIC) :].partition(b"\n")
    (tmp_path / "text").write_bytes(label.MAGIC + text)
    (tmp_path / "text.minisig").write_bytes(b"\n".join(rest.split(b"\n")[:4]) + b"\n")
    (tmp_path / "pub").write_text(KEY.public_text())
    tools = toolbox.tools("minisign", store=open_store())
    words = tools.argv("minisign", "-V", "-p", tmp_path / "pub", "-m", tmp_path / "text")
    assert subprocess.run(words, env=tools.env, capture_output=True, check=False).returncode == 0
    (tmp_path / "text").write_bytes(label.MAGIC + text.replace(b"hello", b"jello"))
    assert subprocess.run(words, env=tools.env, capture_output=True, check=False).returncode == 1


def test_every_flip_and_every_cut_is_refused(tmp_path, store):
    path = written(tmp_path)
    data = path.read_bytes()
    places = [*range(1800), *range(1800, len(data), 97)]
    for at in places:
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(Problem):
            plain.take(path, [KEY], store=store)
    for at in places:
        path.write_bytes(data[:at])
        with pytest.raises(Problem):
            plain.take(path, [KEY], store=store)
    assert not list((Path(store.location) / "drafts").iterdir())


def rewritten(**fields) -> bytes:
    """The right file with other metadata, signed anew by its own signer."""
    data = b"".join(plain.write(package(), key=KEY))
    size = int.from_bytes(data[4:8], "little")
    made, _ = plain.verified(data[8 : 8 + size], [KEY])
    changed = label.Label(**{**vars(made), **fields})
    return frames.skippable(plain.head(changed, KEY)) + data[8 + size :]


def respelled(old: bytes, new: bytes) -> bytes:
    """The right file with its metadata written otherwise, and the signature made over that."""
    data = b"".join(plain.write(package(), key=KEY))
    text = data[8:].partition(b"\nuntrusted")[0]
    assert old in text
    other = text.replace(old, new, 1)
    comment = "imagekit package hello 1.0-1 all"
    held = other + b"\n" + KEY.sign(other, comment=comment).encode()
    return frames.skippable(held) + data[8 + int.from_bytes(data[4:8], "little") :]


FILES = {  # what a file holds, and how it is refused
    "wrong key": (lambda: b"".join(plain.write(package(), key=OTHER)), "not trusted"),
    "appended": (lambda: b"".join(plain.write(package(), key=KEY)) + b"\0", "follows its end"),
    "frame appended": (lambda: b"".join(plain.write(package(), key=KEY)) + frames.skippable(b"x"), "follows its end"),
    "truncated": (lambda: b"".join(plain.write(package(), key=KEY))[:-1], "cut short"),
    "empty": (lambda: b"", "no plain package"),
    "not ours": (lambda: b"PK\3\4" + bytes(100), "no plain package"),
    "huge head": (lambda: b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(100), "no plain package"),
    "another magic": (lambda: respelled(b"imagekit package 1", b"imagekit package 2"), "no plain package"),
    "another package": (lambda: b"".join(plain.write(package(name="world"), key=KEY)), "swapped"),
    "another version": (lambda: b"".join(plain.write(package(version="2"), key=KEY)), "swapped"),
    "another architecture": (lambda: b"".join(plain.write(package(arch="aarch64"), key=KEY)), "swapped"),
    "blank in JSON": (lambda: respelled(b'"name":', b'"name": '), "not written as"),
    "key twice": (lambda: respelled(b'"name":', b'"name":"x","name":'), "given twice"),
    "field unknown": (lambda: respelled(b'"name":', b'"mane":1,"name":'), "known: name"),
    "field missing": (lambda: respelled(b'"notes":["user: hello"],', b""), "known: name"),
    "number as text": (lambda: respelled(b'"size":', b'"size":"1","sized":'), "known"),
    "no digest": (lambda: rewritten(digest=""), "its digest '' is none"),
    "blank-led digest": (lambda: rewritten(digest=" " + TREE.digest[1:]), "its digest"),
    "upper-case digest": (lambda: rewritten(digest=TREE.digest.upper()), "its digest"),
    "another tree's digest": (lambda: rewritten(digest="0" * 64), "not the one that its metadata names"),
    "name that leads out": (lambda: rewritten(name="../../hello"), "its name"),
    "version that leads out": (lambda: rewritten(version="1/../2"), "its version"),
    "architecture unknown": (lambda: rewritten(architecture="vax"), "its architecture"),
    "licence that is none": (lambda: rewritten(licence="MIT OR"), "its licence"),
    "note that steers a terminal": (lambda: rewritten(notes=("\x1b[2J",)), "its notes"),
    "negative size": (lambda: rewritten(size=-1), "its size"),
    "huge size": (lambda: rewritten(size=1 << 60), "its size"),
    "frames of nothing": (lambda: rewritten(frames=((0, "0" * 64),) * 3), "its frames"),
    "too few frames": (lambda: rewritten(frames=()), "do not hold"),
    "a bomb": (lambda: rewritten(size=2 << 30, frames=((9, "0" * 64),) * 2048)[:-1], "cut short"),
    "setuid unsorted": (lambda: rewritten(setuid=("/b", "/a")), "its setuid"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_refused(tmp_path, store, name):
    data, said = FILES[name]
    with pytest.raises(Problem, match=said):
        plain.take(written(tmp_path, data=data()), [KEY], store=store)


def test_a_signature_that_is_written_otherwise(tmp_path, store):
    data = written(tmp_path).read_bytes()
    size = int.from_bytes(data[4:8], "little")
    held = data[8 : 8 + size]
    for old, new in ((b"untrusted comment: sig", b"untrusted comment: gis"), (b"\ntrusted", b"\n\ntrusted")):
        other = held.replace(old, new)
        path = written(tmp_path, data=frames.skippable(other) + data[8 + size :])
        with pytest.raises(Problem, match="signature"):
            plain.take(path, [KEY], store=store)


def test_another_key_under_the_same_number(tmp_path, store):
    twin = key.Key(KEY.number, OTHER.public, OTHER.seed)
    with pytest.raises(Problem, match="does not fit"):
        plain.take(written(tmp_path), [twin], store=store)
    assert plain.take(written(tmp_path), [twin, KEY], store=store).by.public == KEY.public
    with pytest.raises(Problem, match=r"not trusted\n  hint: trusted: none"):
        plain.take(written(tmp_path), [], store=store)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (plain.Asked(name="world"), "'world' was asked for"),
        (plain.Asked(version="1.0"), "version 1.0 was asked for"),
        (plain.Asked(architectures=("x86_64", "aarch64")), "x86_64 or aarch64 was asked for"),
        (plain.Asked(sha256="0" * 64), "the two were swapped"),
    ],
)
def test_another_package_than_was_asked_for(tmp_path, store, asked, said):
    with pytest.raises(Problem, match=said):
        plain.take(written(tmp_path), [KEY], store=store, asked=asked)


def archive(*members: tuple[str, Entry]) -> bytes:
    return b"".join(b"".join(tar.chunks([member])) for member in members) + tar.END


F = file(b"x")
ARCHIVES = {  # the tar, and how it is refused though its signer is trusted
    "traversal": (archive(("/../etc/passwd", F)), "no path of a package"),
    "dot": (archive(("/./x", F)), "no path of a package"),
    "double slash": (archive(("/a//x", F)), "no path of a package"),
    "unmerged": (archive(("/bin/x", F)), "no path of a package"),
    "the root": (archive(("/", directory())), "no path of a package"),
    "link out": (archive(("/a", symlink("../x"))), "leads out"),
    "absolute link out": (archive(("/a", symlink("/b/../../x"))), "leads out"),
    "character device": (archive(("/a", Entry("char", 0o666, device=(1, 3)))), "is a char"),
    "block device": (archive(("/a", Entry("block", 0o666, device=(8, 0)))), "is a block"),
    "fifo": (archive(("/a", Entry("fifo", 0o600))), "is a fifo"),
    "setuid": (archive(("/a", F._replace(mode=0o4755))), "setuid"),
    "setgid folder": (archive(("/a", directory(0o2755))), "setgid"),
    "sticky file": (archive(("/a", F._replace(mode=0o1644))), "has the mode"),
    "extended attribute": (archive(("/a", F._replace(xattrs=(("security.capability", b"x"),)))), "extended"),
    "name twice": (archive(("/a", F), ("/a", F)), "comes twice"),
    "name twice, a link": (
        archive(("/a", F), ("/a", Entry("hardlink", 0o644, target="/a"))),
        "comes twice|file itself",
    ),
    "below a symlink": (archive(("/a", symlink("b")), ("/a/x", F)), "lies below /a, which is a symlink"),
    "far below a symlink": (archive(("/a", symlink("b")), ("/a/x/y/z", F)), "lies below /a, which is a symlink"),
    "below a file": (archive(("/a", F), ("/a/x", F)), "lies below /a, which is a file"),
    "hard link to nothing": (archive(("/a", Entry("hardlink", 0o644, target="/b"))), "no file before it"),
    "hard link to a link": (
        archive(("/a", symlink("b")), ("/b", Entry("hardlink", 0o777, target="/a"))),
        "no file before it",
    ),
    "hard link to outside": (archive(("/b", Entry("hardlink", 0o644, target="/../etc/passwd"))), "no file before it"),
    "hard link first": (archive(("/b", F), ("/a", Entry("hardlink", 0o644, target="/b"))), "should be the file itself"),
    "hard link, other mode": (archive(("/a", F), ("/b", Entry("hardlink", 0o600, target="/a"))), "is not what"),
    "out of order": (archive(("/b", F), ("/a", F)), "not where it belongs"),
    "control character": (archive(("/a\x1b[2J", F)), "control characters"),
    "line end": (archive(("/a\nb", F)), "control characters"),
    "not UTF-8": (archive(("/\udcff", F)), "not UTF-8"),
    "long component": (archive(("/" + "a" * 256, F)), "too long a name"),
    "deep": (archive(("/a" * 65, F)), "too deep"),
    "huge owner": (archive(("/a", F._replace(uid=1 << 40))), "has the owner"),
    "a time": (archive(("/a", F)).replace(b"00000000000\0", b"00000000001\0", 1), "checksum"),
    "zeros after the end": (archive(("/a", F)) + bytes(512), "follows the end"),
    "a second archive": (archive(("/a", F)) * 2, "follows the end"),
    "no end": (archive(("/a", F))[:-1024], "cut short"),
    "nothing but zeros": (bytes(512), "cut short"),
    "dirt in the padding": (archive(("/a", F)).replace(b"x" + bytes(10), b"x" + bytes(9) + b"y", 1), "between two"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_refused(tmp_path, store, name):
    data, said = ARCHIVES[name]
    with pytest.raises(Problem, match=said):
        plain.take(forged(tmp_path, data), [KEY], store=store)
    assert not list((Path(store.location) / "drafts").glob("*"))


def mended(at: int, new: bytes) -> bytes:
    """The archive of one file, with other bytes in its header and the checksum made right."""
    block = bytearray(archive(("/a", F)))
    block[at : at + len(new)] = new
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


@pytest.mark.parametrize(
    ("at", "new"),
    [
        (136, b"00000000001\0"),  # a time
        (265, b"root"),  # a user's name
        (100, b"  00644\0"),  # a number written otherwise
        (100, b"0100644\0"),  # a file's type in its mode
        (0, b"./a"),
        (124, b"\x80" + bytes(10) + b"\1"),  # base-256
        (156, b"7"),  # another type
        (345, b"prefix"),
        (500, b"x"),
    ],
)
def test_headers_that_another_would_write(tmp_path, store, at, new):
    with pytest.raises(Problem):
        plain.take(forged(tmp_path, mended(at, new)), [KEY], store=store)


@pytest.mark.parametrize("packed", ["level", "checksum", "no size", "two frames", "trailing", "larger", "garbage"])
def test_frames_that_another_would_write(tmp_path, store, packed):
    import zstandard

    data = archive(("/a", file(b"abc" * 1000)))

    def pack(data: bytes = data, **how) -> bytes:
        return zstandard.ZstdCompressor(**{"level": frames.LEVEL, "write_checksum": False, **how}).compress(data)

    frame = {
        "level": lambda: pack(level=19),
        "checksum": lambda: pack(write_checksum=True),
        "no size": lambda: pack(write_content_size=False),
        "two frames": lambda: pack(data[:512]) + pack(data[512:]),
        "trailing": lambda: pack() + frames.skippable(b""),
        "larger": lambda: pack(data + bytes(frames.STEP)),
        "garbage": lambda: b"garbage" * 10,
    }[packed]()
    rows = ((len(frame), sha256(frame).hexdigest()),)
    made = label.Label("hello", "1.0-1", "all", "0" * 64, Origin(), "", (), (), (), len(data), frames.version(), rows)
    path = written(tmp_path, data=frames.skippable(plain.head(made, KEY)) + frame)
    with pytest.raises(Problem, match="zstd frame"):
        plain.take(path, [KEY], store=store)


def test_another_version_of_zstd_is_held_to_the_form(tmp_path, store):
    made = package(Tree({"/a": F}))
    path = forged(tmp_path, archive(("/a", F)), digest=made.digest, zstd="1.4.0")
    assert plain.take(path, [KEY], store=store).label.zstd == "1.4.0"


def test_a_bomb_is_refused_by_writer_and_reader(tmp_path, store):
    bomb = Tree({"/zeros": file(bytes(plain.FREE + 1))})
    with pytest.raises(Problem, match="bomb"):
        list(plain.write(package(bomb), key=KEY))
    with pytest.raises(Problem, match="bomb"):
        plain.take(forged(tmp_path, archive(("/zeros", bomb["/zeros"]))), [KEY], store=store)


@pytest.mark.parametrize(
    ("path", "entry", "said"),
    [
        ("/usr/bin/su", file(b"", mode=0o4755), "setuid"),
        ("/dev/null", Entry("char", 0o666, device=(1, 3)), "is a char"),
        ("/a", Entry("hardlink", 0o644, target="/b"), "no file before it"),
        ("/bin/sh", F, "no path of a package"),
    ],
)
def test_what_a_package_cannot_hold_is_not_written(path, entry, said):
    with pytest.raises(Problem, match=said):
        list(plain.write(package(Tree({path: entry})), key=KEY))


def test_setuid_where_it_is_allowed(tmp_path, store):
    tree = Tree({"/usr/bin/su": file(b"su", mode=0o4755)})
    path = written(tmp_path, package(tree), setuid=["/usr/bin/su"])
    assert plain.read(path, [KEY], store=store).tree["/usr/bin/su"].mode == 0o4755


@pytest.mark.parametrize("kind", ["folder", "fifo", "nothing", "device"])
def test_what_is_no_file(tmp_path, store, kind):
    path = Path("/dev/zero") if kind == "device" else tmp_path / "hello_1.0-1_all.ikp"
    {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path)}.get(kind, lambda: None)()
    with pytest.raises(Problem, match=r"no file|cannot be read"):
        plain.take(path, [KEY], store=store)
