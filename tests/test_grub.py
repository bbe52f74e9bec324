"""GRUB for a BIOS: what is patched where, what its core is told, and that nothing but the modules changes it."""

import struct
from hashlib import sha256

import pytest

from imagekit.artifact import Job
from imagekit.disk import grub
from imagekit.errors import Problem
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

FILES = {
    "boot.img": bytes(range(256)) * 2,
    "boot_hybrid.img": b"\xeb" * 512,
    "moddep.lst": b"linux16: linux boot\nlinux: boot relocator\nrelocator: mmap\nbiosdisk:\nfat: fshelp\nmmap: boot\n",
    **dict.fromkeys(("kernel.img", "lzma_decompress.img", "diskboot.img", "cdboot.img"), b"image"),
    **dict.fromkeys(("biosdisk.mod", "part_gpt.mod", "part_msdos.mod", "fat.mod", "fshelp.mod"), b"module"),
    **dict.fromkeys(
        ("iso9660.mod", "linux.mod", "linux16.mod", "normal.mod", "boot.mod", "relocator.mod", "mmap.mod"), b"module"
    ),
}
TREE = Tree({f"/boot/grub/{name}": file(data) for name, data in FILES.items()})
MKIMAGE = """
import json, pathlib, sys
words = sys.argv[1:]
place = pathlib.Path(words[words.index("--directory") + 1])
files = sorted(path.name for path in place.iterdir())
told = json.dumps({"files": files, "prefix": words[words.index("--prefix") + 1]}).encode()
pathlib.Path(words[words.index("--output") + 1]).write_bytes(bytes(4096) + told)
"""


class Pretender:
    """grub-mkimage that writes down what it was told."""

    env: dict[str, str] = {}  # noqa: RUF012 - the toolbox's is as fixed

    def __init__(self):
        self.runs = 0

    def version(self, name):
        assert name == "grub-mkimage"
        return "2.12"

    def argv(self, name, *words):
        assert name == "grub-mkimage"
        self.runs += 1
        return ["python3", "-c", MKIMAGE, *map(str, words)]


@pytest.fixture
def mkimage():
    return Pretender()


@pytest.fixture
def job(tmp_path, mkimage):
    return Job("toy", "1", "x86_64", open_store(tmp_path / "cache"), tools=lambda *_: mkimage)


def test_the_boot_sector_loads_the_core_from_its_sector():
    code = grub.boot_code(TREE, lba=2048)
    assert len(code) == 440
    assert struct.unpack_from("<Q", code, 0x5C) == (2048,)
    assert code[0x66:0x68] == b"\x90\x90"
    assert (code[:0x5C], code[0x64:0x66], code[0x68:]) == (
        FILES["boot.img"][:0x5C],
        FILES["boot.img"][0x64:0x66],
        FILES["boot.img"][0x68:440],
    )


def test_the_core_loads_its_rest_from_the_sectors_behind_it(job):
    core = grub.core(TREE, job=job, lba=2048)
    assert len(core) % 512 == 0
    assert struct.unpack_from("<QHH", core, 0x1F4) == (2049, len(core) // 512 - 1, 0x820)


def test_a_core_for_discs_starts_from_a_stick_too(job):
    core = grub.disc_core(TREE, job=job)
    assert struct.unpack_from("<Q", grub.disc_boot_code(TREE, lba=100), 0x1B0) == (104,), "behind cdboot.img"
    assert struct.unpack_from("<Q", grub.on_disk(core, lba=100), 2048 + 0x1F4) == (105,)


def test_grub_is_given_the_modules_that_it_takes_and_no_more(job):
    core = grub.core(TREE, job=job, lba=1, partition="msdos1")
    told = core[4096:].decode()
    assert "(,msdos1)/" in told
    assert '"relocator.mod"' in told
    assert "iso9660" not in told


def test_what_was_made_is_made_once(job, mkimage):
    first = grub.core(TREE, job=job, lba=1)
    assert grub.core(TREE, job=job, lba=1) == first
    assert mkimage.runs == 1
    kept = job.store.path(sha256(job.store.read(job.store.recall("grub", key(job)).decode())).hexdigest())
    kept.chmod(0o600)
    kept.write_bytes(b"meddled with")
    assert grub.core(TREE, job=job, lba=1) == first
    assert mkimage.runs == 2
    grub.core(TREE.override(Tree({"/boot/grub/fat.mod": file(b"newer")})), job=job, lba=1)
    assert mkimage.runs == 3


def key(job):
    """The only note of GRUB's that the store has."""
    [path] = (job.store.folder("notes") / "grub").iterdir()
    return path.name


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("quiet console=ttyS0,115200 a/b:c@d", "linux16 /kernel quiet console=ttyS0,115200 a/b:c@d"),
        ("", "linux16 /kernel"),
        ("a=$b -- {c;d} & #", "linux16 /kernel 'a=$b' -- '{c;d}' '&' '#'"),
        ('dyndbg="file a +p" quiet', "linux16 /kernel 'dyndbg=file a +p' quiet"),
        ('"one word"', "linux16 /kernel 'one word'"),
        ("näme", "linux16 /kernel 'näme'"),
        ("x" * 2000, f"linux16 /kernel {'x' * 2000}"),
    ],
)
def test_arguments_are_handed_on_as_they_are_and_can_be_read_back(arguments, line):
    script = grub.script(arguments)
    assert script.decode() == f"{line}\ninitrd16 /initrd\nboot\n"
    assert grub.arguments(script) == arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("it's", "quotes"),
        ("a\\b", "backslashes"),
        ('a="b', "quotes"),
        ('a=b"c d"', "quotes"),
        ('a="b"c', "quotes"),
        ("x" * 2048, "2048 bytes"),
    ],
)
def test_arguments_that_grub_would_change_are_refused(arguments, words):
    with pytest.raises(Problem, match=words):
        grub.script(arguments)


@pytest.mark.parametrize(
    "script",
    [b"", b"\xff\n", b"linux16", b"linux16 '/kernel\n", b"linux16 /other\ninitrd16 /initrd\nboot\n", b"set a=b\n"],
)
def test_another_script_is_told(script):
    with pytest.raises(Problem, match=r"grub\.cfg is none"):
        grub.arguments(script)


@pytest.mark.parametrize("lost", ["kernel.img", "linux.mod", "mmap.mod"])
def test_a_tree_without_a_part_of_grub_is_refused(lost, job):
    with pytest.raises(Problem, match=f"GRUB's {lost}"):
        grub.core(TREE.without([f"/boot/grub/{lost}"]), job=job, lba=1)


def test_a_lock_without_grub_says_so(job):
    with pytest.raises(Problem, match="grub-pc-bin"):
        grub.core(Tree(), job=job, lba=1)
