"""FAT volumes: what fsck.fat and mtools make of them, and what FAT cannot hold."""

import subprocess

import pytest

from imagekit import toolbox
from imagekit.disk import fat
from imagekit.disk.sparse import Sparse
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

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
def tools():
    return toolbox.tools("fsck.fat", mode="tree", store=open_store())


def laid_down(volume: Sparse, path):
    with open(path, "wb") as file:
        file.truncate(volume.size)
        for piece in volume.pieces:
            file.seek(piece.offset)
            file.write(piece.content)
    return path


@pytest.mark.parametrize("name", VOLUMES)
def test_fsck_finds_nothing(name, tools, tmp_path):
    files, size = VOLUMES[name]
    volume = fat.volume(files, size=size, label="boot", serial=0x1234ABCD, start=2048)
    assert volume.size == size or not size
    path = laid_down(volume, tmp_path / "volume")
    done = subprocess.run(tools.argv("fsck.fat", "-n", "-v", path), capture_output=True, env=tools.env, check=False)
    assert done.returncode == 0, done.stdout.decode(errors="replace")
    folders = {"/".join(parts[:end]) for parts in (file.split("/") for file in files) for end in range(1, len(parts))}
    seen = len(files) + len(folders) + 1  # the label counts as well
    assert f" {seen} files" in done.stdout.decode()


def test_the_same_files_give_the_same_bytes():
    files = VOLUMES["names of all kinds"][0]
    backwards = dict(list(files.items())[::-1])
    one, other = (b"".join(fat.volume(of, serial=1).chunks()) for of in (files, backwards))
    assert one == other


@pytest.mark.parametrize(
    ("files", "size", "words"),
    [
        ({"aux.txt": b""}, 0, "a DOS device"),
        ({"a?b": b""}, 0, "the character '?'"),
        ({"a/b\n": b""}, 0, "the character"),
        ({"end.": b""}, 0, "ends with a dot or a space"),
        ({"n" * 256: b""}, 0, "longer than 255"),
        ({"\udcff": b""}, 0, "not UTF-8"),
        ({"a.txt": b"", "A.TXT": b""}, 0, "does not tell case"),
        ({"d/a.txt": b"", "D/b.txt": b""}, 0, "does not tell case"),
        ({"a": b"", "a/b": b""}, 0, "below a file"),
        ({"big": b"1" * 3 * MIB}, MIB, "the files take a FAT volume of"),
        ({"a": b""}, 1000, "cannot have 1000 bytes"),
        ({f"name {n}": b"" for n in range(512)}, 0, "root folder has more names"),
    ],
)
def test_what_fat_cannot_hold_is_told(files, size, words):
    with pytest.raises(Problem, match=words.replace("?", r"\?")):
        fat.volume(files, size=size, serial=1)


def test_a_file_of_four_gigabytes_is_told():
    from imagekit.tree import Slice

    with pytest.raises(Problem, match="4 GiB less one"):
        fat.volume({"big": Slice("/nowhere", 0, 1 << 32)}, serial=1)
