"""Files that mean harm, given to `imagekit inspect` and `imagekit convert` as users do: exit code 1, one message,
nothing left, and no other file is opened: what they name is a FIFO, which would keep whoever opens it for ever.
"""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from uuid import UUID

import pytest
from test_disk_hostile import DISK, WRITERS, be, described, footer, headers, le, patched, sparse
from test_iso import volume as iso_volume

from imagekit import cli
from imagekit.disk import containers, fat, gpt, iso, mbr, ova
from imagekit.disk.sparse import Piece, laid

MIB = 1 << 20
COMMANDS = """
import contextlib, io, json, sys
from imagekit.cli import main
seen = set()
sys.addaudithook(lambda name, about: name == "open" and seen.add(str(about[0])))
for line in sys.stdin:
    seen.clear()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue(), sorted(seen)]))
"""


def qcow2_over(name: bytes, disk: bytes) -> bytes:
    """A qcow2 whose backing file has this name, right behind its header."""
    return patched(disk, (8, be(104)), (16, be(len(name), 4)), (104, name))


def apart(name: bytes, disk: bytes) -> bytes:
    """A qcow2 whose bytes lie in a data file of this name (docs/interop/qcow2.rst of QEMU, 0x44415441)."""
    return patched(disk, (72, be(4)), (104, be(0x44415441, 4) + be(len(name), 4) + name))


def flat_vmdk(name: bytes, disk: bytes) -> bytes:
    _ = disk
    text = b'# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    return (text + b'RW 2048 FLAT "%b" 0\n' % name).ljust(2048, b"\n")


def ova_of(name: bytes, disk: bytes) -> bytes:
    href = b'ovf:href="disk.vmdk"'
    return disk.replace(href, b'ovf:href="%b"' % name[-8:].rjust(9))


def bytes_of(disk) -> bytes:
    return b"".join(disk.chunks())


HOSTILE = [  # kind of container, what is made of a sound one, what is said
    ("qcow2", qcow2_over, "backing file, which is never opened"),
    ("qcow2", lambda name, d: qcow2_over(b'json:{"driver":"raw","file":{"filename":"%b"}}' % name, d), "never opened"),
    ("qcow2", apart, "data file, which is never opened"),
    ("vmdk", flat_vmdk, "never opened"),
    ("vmdk", lambda name, d: described(d, b'SPARSE "disk.vmdk"', b'FLAT "%b"' % name[-9:]), "lies in other files"),
    ("vmdk", lambda _, d: described(d, b"# Extent description", b"parentFileNameHint=1"), "parent's file"),
    ("vhd", lambda _, d: footer(d, 60, be(4, 4)), "parent's file, which is never opened"),
    ("vhd_dynamic", lambda name, d: sparse(d, 64, name.decode().encode("utf-16-be")), "names a parent"),
    ("vhdx", lambda _, d: patched(d, (2 * MIB + 65536 + 4, le(2, 4))), "parent's file, which is never opened"),
    ("vhdx", lambda _, d: headers(d, 48, b"\1" * 16), "last changes are in its log"),
    ("ova", ova_of, "one that lies in it is what can be read"),
    ("gcp", lambda _, d: d[:200], "is it complete"),
    ("qcow2", lambda _, d: d[: len(d) // 2], "is it complete"),
    ("qcow2", lambda _, d: patched(d, (24, be(1 << 62))), "its disk has"),
]
ARCHIVES = ("ova", "gcp")  # which are told as archives, and no disk


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    made = {kind: b"".join(write(DISK)) for kind, write in WRITERS.items()}
    return made | {"ova": b"".join(ova.chunks(DISK, folder=tmp_path_factory.mktemp("ova")))}


def run(commands):
    """(exit code, output, errors, opened files) of each command line, by a process that notes what is opened."""
    lines = "".join(json.dumps(words) + "\n" for words in commands)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS], input=lines, capture_output=True, text=True, timeout=120, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_file_that_names_another_is_refused_and_the_other_never_opened(sound, tmp_path):
    trap, out = tmp_path / "trap", tmp_path / "out.raw"
    os.mkfifo(trap)
    paths = []
    for number, (kind, edit, _) in enumerate(HOSTILE):
        paths.append(tmp_path / f"{number}.bin")
        paths[-1].write_bytes(edit(os.fsencode(trap), sound[kind]))
    told = run([words for path in paths for words in (["convert", str(path), str(out)], ["inspect", str(path)])])
    before = {path.name for path in [trap, *paths]}
    for number, (kind, _, words) in enumerate(HOSTILE):
        (code, said, error, seen), (looked, listing, complaint, looked_at) = told[2 * number : 2 * number + 2]
        what = f"row {number}, {kind}: {error}{listing}"
        assert (code, said) == (1, ""), what
        assert re.search(words, error), what
        assert error.startswith(f"imagekit: {paths[number]}: "), what
        assert "Traceback" not in error + complaint
        assert complaint == "", what
        assert looked == int(kind not in ARCHIVES), what
        assert "signature: none" in listing, what
        ours = {path for path in (*seen, *looked_at) if path.startswith(str(tmp_path))}
        assert ours - {str(tmp_path)} == {str(paths[number])}, what  # the folder is looked at for old drafts
    assert {path.name for path in tmp_path.iterdir()} == before


def test_what_is_no_file_is_refused_at_once(tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "loop").symlink_to("loop")
    rows = (
        ("fifo", "is no ordinary file", "is no file"),
        ("folder", "is no ordinary file", "no image is defined"),
        ("empty", "0 bytes are no whole number of sectors", ""),
        ("loop", "Too many levels of symbolic links", "Too many levels of symbolic links"),
        ("gone", "No such file or directory", "No such file or directory"),
        ("/dev/zero", "is no ordinary file", "is no file"),
        ("/proc/self/mem", "no whole number of sectors", ""),
    )
    before = sorted(path.name for path in tmp_path.iterdir())
    for name, refused, told in rows:
        path = tmp_path / name
        assert cli.main(["convert", str(path), str(tmp_path / "out.qcow2")]) == 1
        assert refused in capsys.readouterr().err
        assert cli.main(["inspect", str(path)]) == int(bool(told)), name
        assert told in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("kind", [kind for kind in containers.KINDS if kind not in ("raw", "vhd", "azure", "gcp")])
def test_a_tebibyte_of_holes_is_quick(kind, tmp_path, capsys):
    """What has no holes of its own (fixed VHD, GCP's archive, raw: its sha256) takes as long as it is large."""
    path, out = tmp_path / "raw", tmp_path / "out"
    with path.open("wb") as file:
        file.write(b"begin")
        file.truncate(1 << 40)
    started = time.process_time()
    assert cli.main(["inspect", str(path)]) == 0
    assert cli.main(["convert", "--format", kind, str(path), str(out)]) == 0
    assert cli.main(["convert", "--format", "qcow2", str(out), str(tmp_path / "again")]) == 0
    assert cli.main(["inspect", str(out)]) == 0
    assert time.process_time() - started < 30
    assert capsys.readouterr().out.count("1099511627776") >= 2
    assert (tmp_path / "again").stat().st_size < MIB


def test_a_file_that_shrinks_while_it_is_read_is_told(tmp_path, monkeypatch, capsys):
    path = tmp_path / "raw"
    path.write_bytes(os.urandom(4 * MIB))

    def shrunk(source, **more):
        with real(source, **more) as found:
            os.truncate(source, MIB)
            yield found

    real = containers.opened
    monkeypatch.setattr(containers, "opened", contextmanager(shrunk))
    assert cli.main(["convert", str(path), str(tmp_path / "out.vmdk")]) == 1
    assert "is shorter than it was" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_what_was_there_stays_when_its_successor_fails(sound, tmp_path, capsys):
    (tmp_path / "in").write_bytes(sound["qcow2"][:-70_000])
    (tmp_path / "out.raw").write_bytes(b"old")
    assert cli.main(["convert", str(tmp_path / "in"), str(tmp_path / "out.raw")]) == 1
    assert "is it complete" in capsys.readouterr().err
    assert (tmp_path / "out.raw").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupt_leaves_nothing(tmp_path):
    path = tmp_path / "raw"
    with path.open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(MIB))
    words = [sys.executable, "-m", "imagekit.cli", "convert", str(path), str(tmp_path / "out.vmdk")]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 300
        while not list(tmp_path.glob(".out.vmdk.*")) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=300)[1]
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


NOISY = laid(8 * MIB, [Piece(0, os.urandom(8 * MIB))])


@pytest.mark.parametrize("kind", containers.KINDS)
def test_a_full_disk_is_told_and_nothing_is_left(kind, small, tmp_path, capsys):
    (tmp_path / "raw").write_bytes(bytes_of(NOISY))
    assert cli.main(["convert", "--format", kind, str(tmp_path / "raw"), str(small / "out")]) == 1
    said = capsys.readouterr().err
    assert f"cannot write {small}/out: {os.strerror(errno.ENOSPC)}" in said
    assert "make room" in said
    assert not list(small.iterdir())


def test_no_room_to_unpack_is_told(small, tmp_path, capsys, monkeypatch):
    (tmp_path / "in").write_bytes(b"".join(containers.KINDS["gcp"].write(NOISY, tmp_path)))
    assert cli.main(["convert", str(tmp_path / "in"), str(small / "out.raw")]) == 1
    assert f"cannot unpack to {small}: {os.strerror(errno.ENOSPC)}" in capsys.readouterr().err
    monkeypatch.setattr("tempfile.tempdir", str(small))
    assert cli.main(["inspect", str(tmp_path / "in")]) == 1
    assert f"cannot unpack to {small}" in capsys.readouterr().err
    assert not list(small.iterdir())


ESP = bytes_of(fat.volume({"a": b"1" * 5000}, serial=1))
TABLE = bytes_of(laid(4 * MIB, gpt.table(4 * MIB, [], guid=UUID(int=7))))
BEYOND = mbr.table([mbr.Partition(1, mbr.FAT_LBA, 512, 4 * MIB)], serial=1)
DAMAGED = {  # the bytes, what is said to be damaged; nothing where all is sound
    "FAT": (ESP, ""),
    "FAT, cut": (ESP[: len(ESP) // 4 // 512 * 512], "its tables do not fit it"),
    "GPT": (TABLE, ""),
    "GPT, changed": (patched(TABLE, (1024, b"\1")), "do not match their checksum"),
    "ISO": (bytes_of(iso_volume()), ""),
    "ISO, cut": (bytes_of(iso_volume())[: 20 * iso.BLOCK], "ends beyond the disc"),
    "ISO, without an end": (bytes_of(iso_volume())[: 17 * iso.BLOCK].ljust(MIB, b"\0"), "descriptors have no end"),
    "MBR": (bytes_of(laid(MIB, [BEYOND])), "beyond the disk"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_listed_and_counts(what, tmp_path, capsys):
    data, words = DAMAGED[what]
    (tmp_path / "in").write_bytes(data)
    assert cli.main(["inspect", str(tmp_path / "in")]) == int(bool(words))
    said = capsys.readouterr().out
    assert ("damaged" in said) == bool(words)
    assert words in said
