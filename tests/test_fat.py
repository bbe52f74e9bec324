"""FAT volumes: what fsck.fat, mtools and the kernel make of ours, what we make of theirs, and what FAT cannot hold."""

import os
import subprocess
from pathlib import Path

import pytest

from imagekit import toolbox
from imagekit.disk import fat, fatfiles, fatname
from imagekit.disk.sparse import Piece, Sparse, laid, of_file
from imagekit.errors import Problem
from imagekit.stores.directory import open_store
from imagekit.tree import Slice

MIB = 1 << 20
VOLUMES = {
    "one file": ({"kernel": b"k" * 5000}, 0),
    "nothing": ({}, 0),
    "names of all kinds": (
        {"EFI/BOOT/BOOTX64.EFI": b"x" * 99, "config.txt": b"", "with spaces and.dots.txt": b"1" * 513,
         "overlays/vc4-kms-v3d.dtbo": b"q", "thirteen-char": b"13", "n" * 255: b"255", "ümläut/日本.txt": b"u"},
        0,
    ),
    "aliases": ({f"a long name, number {n}.text": b"%d" % n for n in range(120)}, 0),
    "many clusters": ({"a/b/c": b"c" * (33 * MIB), **{f"d/{n}": bytes(n) for n in range(600)}}, 0),
    "FAT12": ({"a/b/c": b"1" * 3000}, MIB),
    "FAT16": ({"a/b/c": b"1" * 3000}, 100 * MIB),
    "FAT32": ({"a/b/c": b"1" * 3000, "root": b"2"}, 600 * MIB),
}  # fmt: skip


@pytest.fixture(scope="module")
def run():
    """Starts a program of the toolbox and gives what it printed; mcopy knows no code page but ASCII's there."""
    tools = toolbox.tools("fsck.fat", "mkfs.fat", "mcopy", mode="tree", store=open_store())

    def run(name, *args):
        done = subprocess.run(
            tools.argv(name, *args), capture_output=True, env={**tools.env, "DEFAULT_CODEPAGE": "367"}, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
        return done.stdout.decode()

    return run


def laid_down(volume: Sparse, path):
    with open(path, "wb") as file:
        file.truncate(volume.size)
        for piece in volume.pieces:
            file.seek(piece.offset)
            file.write(piece.read(0, piece.size))
    return path


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {os.fspath(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_back(volume: Sparse) -> dict[str, bytes]:
    return {path: file.read() for path, file in fatfiles.read(volume).items()}


@pytest.mark.parametrize("name", VOLUMES)
def test_fsck_finds_nothing_and_mcopy_every_byte(name, run, tmp_path):
    files, size = VOLUMES[name]
    volume = fat.volume(files, size=size, label="boot", serial=0x1234ABCD, start=2048)
    assert volume.size == size or not size
    path = laid_down(volume, tmp_path / "volume")
    told = run("fsck.fat", "-n", "-v", path)
    folders = {"/".join(parts[:end]) for parts in (file.split("/") for file in files) for end in range(1, len(parts))}
    seen = len(files) + len(folders) + 1  # the label counts as well
    assert f" {seen} files" in told
    assert name not in ("FAT12", "FAT16", "FAT32") or f"{name[3:]} bit entries" in told
    assert "2048 hidden sectors" in told
    (tmp_path / "out").mkdir()
    if files:
        run("mcopy", "-s", "-n", "-i", path, "::/*", tmp_path / "out")
    assert bytes_of(tmp_path / "out") == files == read_back(volume)


def test_the_kernel_mounts_it(tmp_path):
    files = VOLUMES["names of all kinds"][0]
    path = laid_down(fat.volume(files, serial=1), tmp_path / "volume")
    (tmp_path / "mounted").mkdir()
    words = ["mount", "-t", "vfat", "-o", "loop,ro,utf8", path, tmp_path / "mounted"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a FAT volume here: {done.stderr.strip()}")
    try:
        assert bytes_of(tmp_path / "mounted") == files
    finally:
        subprocess.run(["umount", tmp_path / "mounted"], check=True)


@pytest.mark.parametrize(
    ("bits", "kib", "more"),
    [
        (12, 1440, ()), (12, 4096, ("-s", "2")), (16, 4096, ("-s", "1")), (16, 32768, ()), (32, 34816, ("-s", "1")),
        (32, 1 << 20, ()), (12, 4096, ("-S", "2048")), (16, 65536, ("-S", "4096", "-s", "1")), (16, 16384, ("-f", "1")),
    ],
)  # fmt: skip
def test_what_mkfs_and_mcopy_wrote_is_read(bits, kib, more, run, tmp_path):
    files = {"KERNEL": b"1" * 70000, "lower.txt": b"2", "a/long name.text": b"3" * 5000, "日本.txt": b"", "A.b": b"4"}
    for name, data in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    path = tmp_path / "volume"
    run("mkfs.fat", "-C", "-F", str(bits), "-n", "LABEL", "-i", "1234abcd", *more, path, str(kib))
    run("mcopy", "-s", "-i", path, *sorted((tmp_path / "in").iterdir()), "::/")
    volume = of_file(os.fspath(path), path.stat().st_size)
    assert read_back(volume) == files
    head = fatfiles.head(volume)
    assert (head.bits, head.label, head.serial) == (bits, "LABEL", 0x1234ABCD)


@pytest.mark.parametrize("clusters", [4084, 4085, 4086, 65524, 65525, 65526])
def test_the_number_of_clusters_alone_decides_what_others_volumes_are(clusters, run, tmp_path):
    """We write none so near to the limits, but they are legal."""
    bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
    kind = fat.KINDS[{12: 0, 16: 1, 32: 2}[bits]]
    made = fat._with_clusters(kind, 1, clusters)
    chains = fat._Chains(made)
    tree = fat._tree({"a/long name": b"1" * 1000, "b": b"2"})
    root = fat._written(tree, chains, "")
    head = fat._head(made, "", 1, 0, 2 if bits == 32 else 0, len(chains.table))
    tables = fat._packed(chains.table, bits)
    pieces = [Piece((kind.reserved + number * made.table) * 512, tables) for number in (0, 1)]
    own = [Piece(made.data - kind.root * 512, root)] if kind.root else []
    volume = laid(made.sectors * 512, [*head, *pieces, *own, *chains.pieces])
    assert f"{bits} bit entries" in run("fsck.fat", "-n", "-v", laid_down(volume, tmp_path / "volume"))
    assert read_back(volume) == {"a/long name": b"1" * 1000, "b": b"2"}


def sizes_at_the_limits():
    """Volumes of the fewest and the most clusters of each kind, a sector beside them, and in between."""
    for kind, smallest in zip(fat.KINDS, (1, 1, 8), strict=True):
        for per_cluster, clusters in ((smallest, kind.least), (64, min(kind.most, 70000)), (smallest, kind.most)):
            sectors = fat._with_clusters(kind, per_cluster, min(clusters, 1 << 20)).sectors
            yield from (sectors - 1, sectors, sectors + 1)
    yield from (fat.LARGEST_FAT16 // 512 + beside for beside in (-1, 0, 1))


@pytest.mark.parametrize("sectors", sorted({size for size in sizes_at_the_limits() if size > 40}))
def test_volumes_at_the_limits(sectors, run, tmp_path):
    files = {"d/a long name": b"1" * 700, "b": b"2"}
    volume = fat.volume(files, size=sectors * 512, serial=1)
    assert volume.size == sectors * 512
    head = fatfiles.head(volume)
    least, most = next((kind.least, kind.most) for kind in fat.KINDS if kind.bits == head.bits)
    assert least <= head.clusters <= most
    assert f"{head.bits} bit entries" in run("fsck.fat", "-n", "-v", laid_down(volume, tmp_path / "volume"))
    assert read_back(volume) == files


@pytest.mark.parametrize("bytes_", [1 << 10, 3 << 20, 20 << 20, 300 << 20, 600 << 20, 3 << 30])
def test_the_smallest_volume_is_not_much_larger_than_its_files(bytes_, run, tmp_path):
    """A large file is never copied: here it is a hole, and the volume a few pieces."""
    hole = tmp_path / "hole"
    with open(hole, "wb") as file:
        file.truncate(bytes_)
    volume = fat.volume({"kernel": Slice(os.fspath(hole), 0, bytes_), "b": b"2"}, serial=1)
    assert volume.size <= max(1.03 * bytes_, 2.2 * MIB)
    assert any(piece.content == Slice(os.fspath(hole), 0, bytes_) for piece in volume.pieces)
    head = fatfiles.head(volume)
    assert head.cluster == 4096 or bytes_ not in range(17 << 20, 250 << 20), "GRUB reads cluster by cluster"
    if bytes_ < 1 << 30:  # what is larger takes fsck too long
        small = laid(volume.size, [piece for piece in volume.pieces if isinstance(piece.content, bytes)])
        run("fsck.fat", "-n", laid_down(small, tmp_path / "volume"))
    assert fatfiles.read(volume)["kernel"].size == bytes_


def test_the_same_files_give_the_same_bytes():
    files = VOLUMES["names of all kinds"][0]
    backwards = dict(list(files.items())[::-1])
    one, other = (b"".join(fat.volume(of, serial=1).chunks()) for of in (files, backwards))
    assert one == other


@pytest.mark.parametrize(
    ("names", "aliases"),
    [
        (("KERNEL8.IMG", "kernel8.img.x"), (b"KERNEL8 IMG", b"KERNEL~1X  ")),
        (("foo bar", "foobar~1"), (b"FOOBAR~2   ", b"FOOBAR~1   ")),  # the second is found by that name alone
        (("a.b.c", ".hidden", "x.text"), (b"AB~1    C  ", b"HIDDEN~1   ", b"X~1     TEX")),
        (("é", "日本", "+,;=[]"), (b"_~1        ", b"__~1       ", b"______~1   ")),
        (("longname1.txt", "longname2.txt"), (b"LONGNA~1TXT", b"LONGNA~2TXT")),
    ],
)
def test_aliases(names, aliases):
    assert tuple(fatname.aliases(names)[name] for name in names) == aliases


def test_ten_thousand_like_names_have_aliases_soon():
    names = [f"a long name, number {n}.text" for n in range(10_000)]
    assert len(set(fatname.aliases(names).values())) == len(names)


@pytest.mark.parametrize(
    ("files", "size", "words"),
    [
        ({"aux.txt": b""}, 0, "a DOS device"),
        ({"a?b": b""}, 0, "the character '?'"),
        ({"a/b\n": b""}, 0, "the character"),
        ({"end.": b""}, 0, "ends with a dot or a space"),
        ({"end ": b""}, 0, "ends with a dot or a space"),
        ({" begin": b""}, 0, "begins with a space"),
        ({"a/../b": b""}, 0, "ends with a dot or a space"),
        ({"a//b": b""}, 0, "a name in it is empty"),
        ({"": b""}, 0, "a name in it is empty"),
        ({"COM1": b""}, 0, "a DOS device"),
        ({"x/nul .tar.gz": b""}, 0, "a DOS device"),
        ({"a\\b": b""}, 0, "the character"),
        ({"a\x7f": b""}, 0, "the character"),
        ({"日" * 255 + "!": b""}, 0, "longer than 255"),
        ({"😀" * 128: b""}, 0, "longer than 255"),  # two units each
        ({"ümläut": b"", "ÜMLÄUT": b""}, 0, "does not tell case"),
        ({"d/" * 33 + "x": b""}, 0, "more than 32 folders deep"),
        ({f"d/{n}" + "x" * 200: b"" for n in range(4000)}, 0, "so many names in the folder"),
        ({"a": b""}, -512, "cannot have -512 bytes"),
        ({"a": b""}, 1 << 41, "cannot have"),
        ({"a": b"1" * 600}, 1024, "the files take a FAT volume of"),
        ({"n" * 256: b""}, 0, "longer than 255"),
        ({"\udcff": b""}, 0, "not UTF-8"),
        ({"a.txt": b"", "A.TXT": b""}, 0, "does not tell case"),
        ({"d/a.txt": b"", "D/b.txt": b""}, 0, "does not tell case"),
        ({"a": b"", "a/b": b""}, 0, "below a file"),
        ({"big": b"1" * 3 * MIB}, MIB, "the files take a FAT volume of"),
        ({"a": b""}, 1000, "cannot have 1000 bytes"),
        ({"a": b""}, 512, "the files take a FAT volume of"),
        ({f"name {n}": b"" for n in range(512)}, 0, "root folder has more names"),
    ],
)
def test_what_fat_cannot_hold_is_told(files, size, words):
    with pytest.raises(Problem, match=words.replace("?", r"\?")):
        fat.volume(files, size=size, serial=1)


def test_a_file_of_four_gigabytes_is_told():
    with pytest.raises(Problem, match="4 GiB less one"):
        fat.volume({"big": Slice("/nowhere", 0, 1 << 32)}, serial=1)


def test_a_file_may_come_piece_by_piece():
    whole = b"".join(fat.volume({"a/b": b"1" * 700 + b"2" * 5000, "c": b"3"}, serial=1).chunks())
    assert b"".join(fat.volume({"a/b": [b"1" * 700, b"", b"2" * 5000], "c": [b"3"]}, serial=1).chunks()) == whole
