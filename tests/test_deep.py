"""Deep verification: what fits is told, and of what does not the first thing is named."""

import os
import re
from functools import partial
from hashlib import sha256

import pytest
import zstandard
from debian_archive import Item, deb, folders
from toy_program import kernel, program

from imagekit import artifact, cli, deep, early, key, plugs, toolbox
from imagekit.artifact import Job
from imagekit.disk import cpio, guarded, uncpio
from imagekit.errors import Problem
from imagekit.layout import Layout
from imagekit.protection import Seal, Verity
from imagekit.sources import _deb
from imagekit.stores.directory import open_store
from imagekit.tree import Entry, Tree, directory, file, symlink

SIGNER = key.from_seed(bytes([7]) * 32)
BOOT = {"/boot/kernel": file(kernel(text=b"kernel" * 99)), "/boot/cmdline": file(b"quiet\n")}
OWN = Tree({**BOOT, "/etc/motd": file(b"hello"), "/dev/null": Entry("char", 0o666, device=(1, 3)),
            "/run/pipe": Entry("fifo", 0o600), "/link": symlink("etc/motd"), "/tmp": directory(0o1777),
            "/opt/a": file(b"one", uid=3), "/opt/b": Entry("hardlink", 0o644, 3, target="/opt/a"),
            "/opt/c": Entry("hardlink", 0o644, 3, target="/opt/a"), "/opt/\u00e9": file(b"")})  # fmt: skip


def started(store):
    """A tree that has all that a disk takes, with a stub of a package, and that package's row."""
    about = "\0systemd-stub 252.39\0".encode("utf-16le")
    stub, row = package(store, "linuxx64.efi.stub", program(room=40, text=about), path="usr/lib/systemd/boot/efi")
    [entry] = [entry for entry in stub.tree.values() if entry.kind == "file"]
    files = {
        "/boot/stub": entry,
        early.BOOT: file(b"boot", mode=0o755),
        early.MODULES: file(b"/usr/lib/modules/1/virtio_blk.ko\n"),
        "/usr/lib/modules/1/virtio_blk.ko": file(b"a module"),
    }
    return tree_of().override(Tree(files)).complete(), [row]


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "cache")


def package(store, name, data, *, version="1", architecture="amd64", path="usr/bin"):
    items = [*folders("usr", "usr/bin"), Item(f"./{path}/{name}", data, mode=0o755)]
    raw = deb(name, items, version=version, architecture=architecture)
    made = _deb.convert(raw, sha256(raw).hexdigest(), store)
    return made, {"name": name, "version": version, "architecture": architecture, "sha256": sha256(raw).hexdigest(),
                  "digest": made.digest, "source": "debian"}  # fmt: skip


def tree_of(*packages):
    whole = OWN
    for one in packages:
        whole |= one.tree
    return whole.complete()


def make(folder, store, tree, rows, *, format="kernel_initrd", named=None, arch="x86_64", version="1", signer=SIGNER,
         layout=Layout()):  # fmt: skip
    """A signed artifact of a tree; named: the digest that its manifest says the tree has."""
    plug, folder = plugs.load("formats", format), folder / "out"
    tools = partial(toolbox.tools, mode="tree", store=open_store())
    folder.mkdir(exist_ok=True)
    parts = []
    for role, written in plug.write(tree, job=Job("toy", version, arch, store, layout, tools=tools)).items():
        name = f"toy{plug.suffixes[role]}"
        (folder / name).write_bytes(store.read(written.sha256))
        parts.append({"role": role, "file": name, "size": written.size, "sha256": written.sha256})
    text = artifact.canonical({"name": "toy", "version": version, "arch": arch, "format": format, "kind": plug.kind,
                               "parts": parts, "tree": named or tree.digest, "packages": rows})  # fmt: skip
    path = folder / f"toy.{format}.manifest.json"
    path.write_bytes(text)
    path.with_name(path.name + ".minisig").write_text(signer.sign(text, comment=""))
    return artifact.load(path)


@pytest.mark.parametrize("format", ["kernel_initrd", "tar_kernel_initrd", "tar"])
def test_what_fits_is_told(format, tmp_path, store):
    (a, row), (b, other) = package(store, "a", b"A" * 9999), package(store, "b", b"B", architecture="all")
    rows = [
        row,
        other,
        {**row, "name": "gone", "sha256": "0" * 64},
        {**row, "name": "x", "source": "npm", "sha256": ""},
    ]
    made = make(tmp_path, store, tree_of(a, b), rows, format=format)
    assert deep.check(made, key=SIGNER, store=store) == [
        "deep: 12 files have the tree that the manifest names; 2 are those of their packages",
        "deep: 2 of 4 packages are here, and are those that the manifest names",
        "deep: not compared: gone 1 (not in the cache, `imagekit build` fetches them)",
        "deep: not compared: x 1 (no .deb)",
    ]


SEALED = Seal(policy="exact", pcrs=(2, 4, 12))


@pytest.mark.parametrize(
    ("format", "layout"),
    [
        ("uki", Layout()),
        ("uki", Layout(seal=SEALED)),
        ("raw_efi", Layout()),
        ("raw_efi", Layout(root="squashfs")),
        ("raw_efi", Layout(root="squashfs", verity=Verity(), seal=SEALED)),
        ("iso_efi", Layout()),
        ("kernel_squashfs", Layout()),
        ("kernel_erofs", Layout()),
        ("qcow2_efi", Layout(root="erofs")),
    ],
)
def test_what_firmware_starts_is_read_back(format, layout, tmp_path, store, monkeypatch):
    if "erofs" in (layout.root, format.removeprefix("kernel_")) and os.geteuid():
        pytest.skip("only root can give files their owners, as fsck.erofs does when it unpacks")
    monkeypatch.setattr(guarded, "_measured", lambda *_: {})  # a toy kernel measures nothing
    made = make(tmp_path, store, *started(store), format=format, layout=layout)
    assert "13 files have the tree that the manifest names" in deep.check(made, key=SIGNER, store=store)[0]


def test_an_initrd_that_is_not_of_its_root_is_named(tmp_path, store, monkeypatch):
    monkeypatch.setattr(early, "initrd", lambda _: Tree({early.BOOT: file(b"other", mode=0o755)}).complete())
    made = make(tmp_path, store, *started(store), format="kernel_squashfs")
    with pytest.raises(Problem, match="'/usr/lib/imagekit/boot' of the initrd is not as the root has it"):
        deep.check(made, key=SIGNER, store=store)


@pytest.mark.parametrize(("format", "words"), [("kernel_ext4", "a root of ext4"), ("oci", "the files of oci")])
def test_what_cannot_be_read_back_is_said(format, words, tmp_path, store):
    made = make(tmp_path, store, *started(store), format=format)
    with pytest.raises(Problem, match=f"{words} cannot be read back"):
        deep.check(made, key=SIGNER, store=store)


def test_what_other_formats_of_the_image_take_is_looked_up(tmp_path, store):
    """No initrd carries it, and the digest of the tree covers it."""
    stub, row = package(store, "linuxx64.efi.stub", b"MZ stub", path="usr/lib/systemd/boot/efi")
    [entry] = [entry for entry in stub.tree.values() if entry.kind == "file"]
    tree = tree_of().override(Tree({"/boot/stub": entry}))
    made = make(tmp_path, store, tree, [row])
    assert "0 are those of their packages" in deep.check(made, key=SIGNER, store=store)[0]


def changed_file(row, package):
    return [row], tree_of(package).override(Tree({"/usr/bin/a": file(b"evil", mode=0o755)})), tree_of(package)


def changed_mode(row, package):
    return [row], tree_of(package).override(Tree({"/usr/bin/a": package.tree["/usr/bin/a"]._replace(mode=0o4755)})), \
        tree_of(package)  # fmt: skip


def own_file(row, package):
    return [row], tree_of(package).override(Tree({"/etc/motd": file(b"evil")})), tree_of(package)


def one_more(row, package):
    return [row], tree_of(package).override(Tree({"/etc/more": file(b"")})), tree_of(package)


def one_less(row, package):
    return [row], tree_of(), tree_of(package)


def renamed(row, package):
    return [{**row, "name": "b"}], tree_of(package), None


def other_version(row, package):
    return [{**row, "version": "2"}], tree_of(package), None


def other_tree(row, package):
    return [{**row, "digest": "d" * 64}], tree_of(package), None


def other_architecture(row, package):
    return [{**row, "architecture": "arm64"}], tree_of(package), None


def no_digest(row, package):
    return [{name: row[name] for name in row if name != "digest"}], tree_of(package), None


def no_rows(row, package):
    return {"a": row}, tree_of(package), None


MISFITS = [
    (changed_file, "'/usr/bin/a' is not as package a has it: size 4, and there 1"),
    (changed_mode, "'/usr/bin/a' is not as package a has it: mode 2541, and there 493"),
    (own_file, "the files have the tree .* and the manifest names"),
    (one_more, "the files have the tree .* and the manifest names"),
    (one_less, "the files have the tree .* and the manifest names"),
    (renamed, "package b 1 amd64: what has its sha256 is a 1 amd64: two packages were swapped"),
    (other_version, "package a 2 amd64: what has its sha256 is a 1 amd64"),
    (other_tree, "package a 1 amd64 has the tree .*; the manifest names dddd"),
    (other_architecture, "package a 1 arm64 is of another architecture than the image, which is for x86_64"),
    (no_digest, "does not name its packages by digest"),
    (no_rows, "does not name its packages by digest"),
]


@pytest.mark.parametrize(("misfit", "words"), MISFITS, ids=lambda one: getattr(one, "__name__", ""))
def test_the_first_thing_that_does_not_fit_is_named(misfit, words, tmp_path, store):
    """All of it is rightly signed: whoever holds the key made a mistake, or another's packages."""
    one, row = package(store, "a", b"A")
    rows, tree, named = misfit(row, one)
    made = make(tmp_path, store, tree, rows, named=named and named.digest)
    with pytest.raises(Problem, match=words):
        deep.check(made, key=SIGNER, store=store)


def test_swap_of_two_valid_packages(tmp_path, store):
    (a, row), (b, other) = package(store, "a", b"A"), package(store, "b", b"B")
    rows = [{**row, "digest": other["digest"]}, {**other, "digest": row["digest"]}]
    made = make(tmp_path, store, tree_of(a, b), rows)
    with pytest.raises(
        Problem, match=r"package a 1 amd64 has the tree .*, which it has for b: two packages were swapped"
    ):
        deep.check(made, key=SIGNER, store=store)


def test_replay_of_an_older_image(tmp_path, store):
    for version in ("9", "10"):
        deep.check(make(tmp_path, store, tree_of(), [], version=version), key=SIGNER, store=store)
    old = make(tmp_path, store, tree_of(), [], version="9")
    with pytest.raises(Problem, match="toy 9 x86_64 kernel_initrd is a replay of an older image: 10 was verified here"):
        deep.check(old, key=SIGNER, store=store)
    other = key.from_seed(bytes([8]) * 32)
    deep.check(make(tmp_path, store, tree_of(), [], version="9", signer=other), key=other, store=store)
    old = make(tmp_path, store, tree_of(), [], version="9")
    assert deep.check(old, key=SIGNER, store=store, allow_rollback=True)
    with pytest.raises(Problem, match="a replay of an older image: 10 was"):
        deep.check(old, key=SIGNER, store=store)


def test_downgrade_of_a_package(tmp_path, store):
    (new, row), (old, before) = package(store, "a", b"2", version="1:1~2"), package(store, "a", b"1", version="1:1~1")
    deep.check(make(tmp_path, store, tree_of(new), [row]), key=SIGNER, store=store)
    made = make(tmp_path, store, tree_of(old), [before])
    with pytest.raises(Problem, match="is a downgrade: it has a 1:1~1, and had 1:1~2 when it was verified here before"):
        deep.check(made, key=SIGNER, store=store)
    deep.check(make(tmp_path, store, tree_of(old), [before], version="2"), key=SIGNER, store=store)


def test_what_an_image_has_otherwise_than_its_packages_is_told(tmp_path, store):
    """It may: the definition decides. It is not passed over."""
    one, row = package(store, "a", b"A")
    made = make(tmp_path, store, tree_of(one).override(Tree({"/usr/bin/a": file(b"own")})), [row])
    said = deep.check(made, key=SIGNER, store=store)
    assert said[1] == "deep: as the image has them, not their packages: '/usr/bin/a'"


def test_what_does_not_fit_is_not_remembered(tmp_path, store):
    bad = make(tmp_path, store, tree_of(), [], version="7", named="0" * 64)
    with pytest.raises(Problem, match="the manifest names"):
        deep.check(bad, key=SIGNER, store=store)
    assert deep.check(make(tmp_path, store, tree_of(), [], version="6"), key=SIGNER, store=store)


def test_other_keys_parts_and_formats_are_refused(tmp_path, store):
    made = make(tmp_path, store, tree_of(), [])
    with pytest.raises(Problem, match="signed by key"):
        deep.check(made, key=key.from_seed(bytes(32)), store=store)
    part = made.path.parent / "toy.initrd"
    part.write_bytes(part.read_bytes()[::-1])
    with pytest.raises(Problem, match=r"toy\.initrd has other bytes"):
        deep.check(made, key=SIGNER, store=store)


def test_the_verb(tmp_path, store, monkeypatch, capsys):
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    key.save(SIGNER, tmp_path / "my.key")
    made = make(tmp_path, store, tree_of(), [], version="2")
    words = ["verify", "--deep", str(made.path), "--key", str(tmp_path / "my.key")]
    assert cli.main(words) == 0
    assert "deep: 10 files have the tree" in capsys.readouterr().out
    make(tmp_path, store, tree_of(), [], version="1")
    assert cli.main(words) == 1
    assert "a replay of an older image" in capsys.readouterr().err
    assert cli.main([*words, "--allow-rollback"]) == 0


def packed(data: bytes, level: int = 1) -> bytes:
    made = zstandard.ZstdCompressor(level=level).compress(data)
    return made + bytes(-len(made) % 4)


WRITTEN = cpio.archive(OWN.complete().items())
BAD = {
    "nothing of zstd": (b"plain", "no zstd frame"),
    "no size": (zstandard.ZstdCompressor(write_content_size=False).compress(WRITTEN), "does not tell its size"),
    "a bomb": (packed(bytes(1 << 20)), "bytes, and the tree takes"),
    "cut": (packed(WRITTEN)[:-40], "cut short"),
    "a skippable frame": (b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + packed(WRITTEN), "does not tell its size"),
    "something between": (packed(WRITTEN)[:-1] + b"x" * 4 + packed(WRITTEN), "lies between two frames|no zstd frame"),
    "no archive": (packed(b"x" * 200), "cut short, or is none"),
    "no trailer": (packed(cpio.archive(OWN.items(), trailer=False)), "cut short"),
    "more behind": (packed(WRITTEN + bytes(4)), "something follows"),
    "negative size": (packed(WRITTEN[:54] + b"-0000001" + WRITTEN[62:]), "cut short, or is none"),
    "small letters": (packed(WRITTEN.replace(b"000081A4", b"000081a4", 1)), "cut short, or is none"),
    "bytes of a folder": (
        packed(WRITTEN[:54] + b"00000004" + WRITTEN[62:116] + b"hide" + WRITTEN[116:]),
        "not written",
    ),
    "bytes of the end": (packed(WRITTEN[:-70] + b"00000004" + WRITTEN[-62:] + b"hide"), "not written"),
    "a size beyond the end": (packed(WRITTEN[:54] + b"FFFFFFFF" + WRITTEN[62:]), "not written as imagekit writes it"),
}


@pytest.mark.parametrize(("data", "words"), BAD.values(), ids=BAD)
def test_what_no_initrd_of_ours_holds_is_refused(data, words):
    with pytest.raises(Problem, match=words):
        list(uncpio.members(data, most=100_000))


def test_no_changed_byte_of_an_archive_gives_the_same_tree():
    """Of the plain archive, so that no checksum helps: it is refused, or is another tree."""
    whole = Tree(uncpio.members(packed(WRITTEN), most=1 << 20)).digest
    assert whole == OWN.complete().digest
    records = [found.start() for found in re.finditer(rb"070701[0-9A-F]{104}", WRITTEN)]
    inodes = {at for start in records for at in range(start + 6, start + 14)}  # whose numbers no tree shows
    for at in sorted(set(range(0, len(WRITTEN), 2)) - inodes):
        data = bytearray(WRITTEN)
        data[at] ^= 1 << at % 8
        try:
            found = dict(uncpio.members(packed(bytes(data)), most=1 << 20))
        except Problem:
            continue
        assert Tree(found).digest != whole, at
