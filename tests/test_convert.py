"""`imagekit convert`: all directions, known by content, the bytes of a build, and never half a file."""

import itertools
import subprocess
import sys
import tarfile

import pytest
from test_disk_containers import DISKS, GIB, MIB, NOISE, qemu_img, raw_of, same  # noqa: F401 - a fixture

from imagekit import usage
from imagekit.cli import main
from imagekit.convert import convert, kind_of_name
from imagekit.disk import containers
from imagekit.disk.sparse import Piece, laid

KINDS = [kind for kind in containers.KINDS if kind != "azure"]  # which is read as vhd
SMALL = "text and noise"


def quiet(line):
    _ = line


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One disk in every container, by its name without any suffix."""
    folder = tmp_path_factory.mktemp("containers")
    raw = raw_of(DISKS[SMALL], folder / "raw")
    for kind in KINDS:
        if kind != "raw":
            convert(raw, folder / kind, kind=kind, say=quiet)
    return folder


def test_what_is_offered_is_what_there_is():
    assert sorted(usage.DISKS) == sorted(containers.KINDS)


FROM_GCP = ("raw", "qcow2")  # it unpacks a GiB each time
PAIRS = [(a, b) for a, b in itertools.permutations(KINDS, 2) if a != "gcp" or b in FROM_GCP]


@pytest.mark.parametrize(("source", "kind"), PAIRS)
def test_every_direction_gives_the_bytes_that_a_build_writes(source, kind, made, tmp_path):
    if source == "gcp":  # a whole GiB, which is another disk
        done = convert(made / source, tmp_path / "out", kind=kind, say=quiet)
        assert done.disk == GIB
        with containers.opened(tmp_path / "out") as (name, disk):
            assert name == kind
            assert disk.size == GIB
            assert list(disk.filled(MIB)) == list(DISKS[SMALL].filled(MIB))
        return
    done = convert(made / source, tmp_path / "out", kind=kind, say=quiet)
    assert (done.source, done.kind, done.disk) == (source, kind, DISKS[SMALL].size)
    assert (tmp_path / "out").read_bytes() == (made / kind).read_bytes()


def test_archives_hold_what_they_say(made, tmp_path, qemu_img):  # noqa: F811
    with tarfile.open(made / "ova") as ova, tarfile.open(made / "gcp") as gcp:
        assert ova.getnames() == ["machine.ovf", "machine.mf", "disk.vmdk"]
        assert gcp.getnames() == ["disk.raw"]
        ova.extractall(tmp_path, filter="data")
        gcp.extractall(tmp_path, filter="data")
    qemu_img("check", "-f", "vmdk", tmp_path / "disk.vmdk")
    qemu_img("compare", "-f", "vmdk", "-F", "raw", tmp_path / "disk.vmdk", made / "raw")
    qemu_img("compare", "-f", "raw", "-F", "raw", tmp_path / "disk.raw", made / "raw")
    assert (tmp_path / "disk.raw").stat().st_size == GIB
    sums = (tmp_path / "machine.mf").read_text().replace("SHA256(", "SHA256 (").replace(")= ", ") = ")
    subprocess.run(["sha256sum", "--check", "--strict"], input=sums, cwd=tmp_path, text=True, check=True,
                   capture_output=True)  # fmt: skip


@pytest.mark.parametrize("words", [("--format=oldgnu", "-S"), ("--format=oldgnu",), ("--format=gnu",)])
def test_what_gnu_tar_makes_for_gcp_is_read(words, tmp_path):
    disk = laid(50 * MIB, [Piece(n * MIB, NOISE[: 5000 + n]) for n in range(0, 50, 2)])  # more pieces than one header
    raw_of(disk, tmp_path / "disk.raw")
    subprocess.run(["tar", *words, "-c", "-z", "-f", "disk.tar.gz", "disk.raw"], cwd=tmp_path, check=True)
    with containers.opened(tmp_path / "disk.tar.gz") as (name, found):
        assert name == "gcp"
        assert same(found, disk)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.img", "raw"), ("a.raw", "raw"), ("a.vhd", "vhd"), ("a.dynamic.vhd", "vhd_dynamic"), ("a.azure.vhd", "azure"),
     ("a.tar.gz", "gcp"), ("a.ova", "ova"), ("a.efi.qcow2", "qcow2")],
)  # fmt: skip
def test_a_name_tells_the_format(name, kind):
    assert kind_of_name(name) == kind


def test_the_command_tells_what_it_wrote(made, tmp_path, capsys):
    out = tmp_path / "web.qcow2"
    assert main(["convert", str(made / "vmdk"), str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{out}: qcow2, a disk of 40.0 MiB from vmdk: 2.2 MiB, sha256 ")
    assert out.read_bytes() == (made / "qcow2").read_bytes()


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "no whole number of sectors"),
        (b"x" * 700, "no whole number of sectors"),
        (b"QED\0" + bytes(508), "is a QED disk"),
        (b"\xfd7zXZ\0" + bytes(506), "compressed by xz"),
        (b"QFI\xfb" + bytes(508), "no qcow2 that can be read"),
        (b'# Disk DescriptorFile\nRW 1 FLAT "/etc/passwd" 0\n'.ljust(512), "never opened"),
        (b"\x1f\x8b" + bytes(510), "no gcp that can be read"),
        (bytes(257) + b"ustar\x0000" + bytes(247), "damaged header"),
    ],
)
def test_what_holds_no_disk_is_refused_and_nothing_is_left(head, words, tmp_path, capsys):
    (tmp_path / "in").write_bytes(head)
    assert main(["convert", str(tmp_path / "in"), str(tmp_path / "out.qcow2")]) == 1
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_other_mistakes_are_told(made, tmp_path, capsys):
    for words, said in (
        ([str(made / "raw"), str(tmp_path / "out.iso")], "no format of disks has files of such a name"),
        ([str(made / "raw"), str(tmp_path / "out"), "--format", "qcow3"], "did you mean 'qcow2'"),
        ([str(made / "nothing"), str(tmp_path / "out.raw")], "cannot read"),
        (["/dev/zero", str(tmp_path / "out.raw")], "no ordinary file"),
        ([str(tmp_path), str(tmp_path / "out.raw")], "no ordinary file"),
        ([str(made / "raw"), str(tmp_path / "no" / "out.raw")], "cannot write"),
    ):
        assert main(["convert", *words]) == 1
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_may_be_converted_onto_itself(made, tmp_path):
    path = tmp_path / "disk"
    path.write_bytes((made / "qcow2").read_bytes())
    convert(path, path, kind="vmdk", say=quiet)
    assert path.read_bytes() == (made / "vmdk").read_bytes()


PEAK = """
import re, sys
from pathlib import Path
from imagekit.convert import convert
convert(Path(sys.argv[1]), Path(sys.argv[2]), kind=sys.argv[3], say=lambda line: None)
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) >> 10)  # not our parent's, too
"""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "raw"])
def test_memory_does_not_grow_with_the_disk(kind, tmp_path):
    disk = laid(GIB, [Piece(n * 61 * MIB, NOISE * 16) for n in range(16)])  # 64 MiB of 1 GiB
    raw = raw_of(disk, tmp_path / "raw")
    for source, final, name in ((raw, "made", kind), (tmp_path / "made", "back", "raw")):
        words = [sys.executable, "-c", PEAK, str(source), str(tmp_path / final), name]
        peak = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        assert peak < 60, f"{name}: {peak} MiB"
