"""ISOs: what xorriso reads of ours, what a stick shows, and what our reader makes of damaged ones."""

import random
import re
import struct
import subprocess
import time

import pytest
from test_grub import FILES as GRUB
from test_grub import Pretender
from toy_program import kernel, program

from imagekit import early, plugs, toolbox
from imagekit.artifact import Job
from imagekit.disk import disc, grub, initrd, iso, isoread, loader, mbr
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem
from imagekit.stores.directory import open_store
from imagekit.tree import Slice, Tree, file

TREE = Tree(
    {
        "/boot/kernel": file(kernel(text=b"kernel" * 9999)),
        "/boot/cmdline": file(b"quiet\n"),
        "/boot/stub": file(program()),
        early.MODULES: file(b""),
        **{f"/boot/grub/{name}": file(data) for name, data in GRUB.items()},
    }
).complete()
CONTENTS = {"kernel": b"k" * 70_000, "grub.cfg": b"boot\n", "core.img": b"c" * 9000, "efi.img": b"e" * 2048}
BOOTS = (iso.Boot("bios", "core.img", 4), iso.Boot("uefi", "efi.img"))


@pytest.fixture
def job(tmp_path):
    return Job("toy-image", "1", "x86_64", open_store(tmp_path / "cache"), tools=lambda *_: Pretender())


def volume(contents=CONTENTS, boots=BOOTS, label="TOY"):
    planned = iso.plan({name: len(data) for name, data in contents.items()}, label=label, boots=boots)
    files = [Piece(planned.places[name], data) for name, data in contents.items()]
    return laid(planned.size, (*planned.pieces, *files))


def bytes_of(disk):
    return b"".join(disk.chunks())


def of(data):
    return laid(len(data), [Piece(0, data)])


def xorriso(path, *words):
    tools = toolbox.tools("xorriso", mode="tree", store=open_store())
    argv = tools.argv("xorriso", "-abort_on", "WARNING", "-indev", path, *words)
    done = subprocess.run(argv, check=False, capture_output=True, env=tools.env, timeout=300)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_xorriso_reads_what_was_written(tmp_path):
    path = tmp_path / "toy.iso"
    path.write_bytes(bytes_of(volume()))
    told = xorriso(path, "-report_el_torito", "plain", "-pvd_info", "-osirrox", "on", "-extract", "/", tmp_path / "out")
    entries = re.findall(r"El Torito boot img : +(\d)  (\w+) +y +none +0x\w+ +0x\w+ +(\d+) +(\d+)", told)
    places = {name: place.offset // 2048 for name, place in isoread.read(volume()).files.items()}
    assert entries == [("1", "BIOS", "4", str(places["core.img"])), ("2", "UEFI", "4", str(places["efi.img"]))]
    assert "Volume Id    : TOY" in told
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert found.pop("boot.cat")
    assert found == CONTENTS


def test_our_reader_reads_what_was_written():
    found = isoread.read(volume())
    assert {name: place.read() for name, place in found.files.items() if name != "boot.cat"} == CONTENTS
    places = {name: place.offset for name, place in found.files.items()}
    assert found.boots == (
        isoread.Boot("bios", places["core.img"], 2048),
        isoread.Boot("uefi", places["efi.img"], 2048),
    )
    assert (found.label, found.size) == ("TOY", volume().size)


def test_our_reader_reads_what_xorriso_writes(tmp_path):
    names = ["plain", "Capitals.And.Dots", "a" * 60, "deep/er/file", "näme"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    tools = toolbox.tools("xorriso", mode="tree", store=open_store())
    words = ("-as", "mkisofs", "-R", "-J", "-V", "other", "-o", tmp_path / "other.iso", tmp_path / "in")
    subprocess.run(tools.argv("xorriso", *words), check=True, capture_output=True, env=tools.env, timeout=300)
    size = (tmp_path / "other.iso").stat().st_size
    found = isoread.read(laid(size, [Piece(0, Slice(str(tmp_path / "other.iso"), 0, size))]))
    assert {name: place.read().decode() for name, place in found.files.items()} == {name: name for name in names}
    assert (found.label, found.boots) == ("other", ())


def test_a_volume_for_a_bios_a_volume_for_uefi_and_a_large_one():
    assert [boot.platform for boot in isoread.read(volume(boots=BOOTS[:1])).boots] == ["bios"]
    assert [boot.platform for boot in isoread.read(volume(boots=BOOTS[1:])).boots] == ["uefi"]
    planned = iso.plan({"efi.img": 3 << 30}, label="TOY", boots=BOOTS[1:])
    assert sum(piece.size for piece in planned.pieces) < 20_000, "no byte of a file"
    assert isoread.read(Sparse(planned.size, planned.pieces)).boots == (
        isoread.Boot("uefi", planned.places["efi.img"], 0),  # more sectors than an entry can say
    )


def test_a_program_is_told_where_it_lies():
    data = random.Random(1).randbytes(1001)
    told = iso.with_boot_info(data, at=40960)
    assert (told[:8], told[64:]) == (data[:8], data[64:])
    words = struct.unpack("<235I", (told + bytes(3))[64:])
    assert struct.unpack_from("<IIII", told, 8) == (16, 20, 1001, sum(words) & 0xFFFFFFFF)


@pytest.mark.parametrize("firmware", [("bios",), ("uefi",), ("bios", "uefi")])
def test_the_same_tree_gives_the_same_disc_whenever_and_wherever(firmware, job, monkeypatch):
    first = bytes_of(disc.disk(TREE, job=job, firmware=firmware))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 10**8)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert bytes_of(disc.disk(TREE, job=job, firmware=firmware)) == first
    finally:
        monkeypatch.undo()
        time.tzset()
    assert time.time is real


def test_a_stick_shows_its_partitions_and_starts_from_the_core(job):
    made = disc.disk(TREE, job=job, firmware=("bios", "uefi"))
    found = isoread.read(made)
    efi, core = found.files["efi.img"], found.files["grub.img"]
    assert mbr.read(made) == (
        mbr.Partition(1, mbr.EFI, efi.offset, efi.size),
        mbr.Partition(2, 0xDA, efi.offset + efi.size, made.size - efi.offset - efi.size, active=True),
    )
    assert struct.unpack("<Q", made.read(0x1B0, 8)) == (core.offset // 512 + 4,), "diskboot.img, behind cdboot.img"
    assert struct.unpack_from("<Q", core.read(), 2048 + 0x1F4) == (core.offset // 512 + 5,)
    assert struct.unpack_from("<II", core.read(), 8) == (16, core.offset // 2048)
    assert grub.arguments(found.files["grub.cfg"].read()).startswith("quiet console=")
    assert found.files["kernel"].read() == TREE.read("/boot/kernel")
    assert (found.label, made.size % (1 << 20)) == ("TOY_IMAGE", 0)


def test_sfdisk_finds_no_fault_with_a_stick(job, tmp_path):
    made = disc.disk(TREE, job=job, firmware=("bios", "uefi"))
    (tmp_path / "stick").write_bytes(bytes_of(made))
    tools = toolbox.tools("sfdisk", mode="tree", store=open_store())

    def sfdisk(flag):
        argv = tools.argv("sfdisk", flag, tmp_path / "stick")
        return subprocess.run(argv, check=True, capture_output=True, text=True, env=tools.env, timeout=300).stdout

    assert "No errors detected" in sfdisk("--verify")
    efi = isoread.read(made).files["efi.img"]
    found = re.findall(r"start= *(\d+), size= *(\d+), type=(\w+)(, bootable)?", sfdisk("--dump"))
    behind = (efi.offset + efi.size) // 512
    assert found == [
        (str(efi.offset // 512), str(efi.size // 512), "ef", ""),
        (str(behind), str(made.size // 512 - behind), "da", ", bootable"),
    ]


@pytest.mark.parametrize("firmware", [("bios",), ("uefi",), ("bios", "uefi")])
def test_what_is_started_is_found_as_firmware_finds_it(firmware, job):
    found = loader.find(disc.disk(TREE, job=job, firmware=firmware), arch="x86_64")
    parts = b"".join(initrd.parts(initrd.root(TREE), store=job.store))
    assert found == (TREE.read("/boot/kernel"), parts, b"quiet console=tty0 console=ttyS0 no_timer_check")


def test_on_aarch64_there_is_uefi_alone(tmp_path):
    store = open_store(tmp_path / "cache")
    boot = {"/boot/kernel": file(program("aarch64")), "/boot/stub": file(program("aarch64"))}
    arm = Job("toy", "1", "aarch64", store)
    parts = {name: plugs.load("formats", name).write(TREE.override(Tree(boot)), job=arm) for name in ("iso", "iso_efi")}
    assert parts["iso"] == parts["iso_efi"]
    found = isoread.read(of(store.read(parts["iso"]["disk"].sha256)))
    assert [boot.platform for boot in found.boots] == ["uefi"]


MISSING = (
    ("uefi", {"/boot/stub": None}, "needs the stub"),
    ("uefi", {"/boot/stub": file(program("aarch64"))}, "/boot/stub is for aarch64"),
    ("uefi", {"/boot/kernel": None}, "needs a kernel"),
    ("bios", {"/boot/kernel": file(program("aarch64"))}, "/boot/kernel is for aarch64"),
    ("bios", {"/boot/kernel": file(program())}, "no kernel that a BIOS can start"),
    ("bios", {"/boot/grub/cdboot.img": None}, "GRUB's cdboot.img is not in the tree"),
    ("bios", {"/boot/cmdline": file(b"it's")}, "quotes"),
)


@pytest.mark.parametrize(("firmware", "changed", "words"), MISSING)
def test_a_tree_that_its_firmware_could_not_start_is_refused(firmware, changed, words, job):
    tree = TREE.without([path for path, entry in changed.items() if entry is None])
    tree = tree.override(Tree({path: entry for path, entry in changed.items() if entry}))
    with pytest.raises(Problem, match=words):
        disc.disk(tree, job=job, firmware=(firmware,))


@pytest.mark.parametrize(
    ("contents", "label", "words"),
    [
        ({"Kernel": b"x"}, "TOY", "'Kernel'"),
        ({"a/b": b"x"}, "TOY", "'a/b'"),
        ({"ninechars": b"x"}, "TOY", "'ninechars'"),
        ({"a.long": b"x"}, "TOY", "'a.long'"),
        ({"a.b.c": b"x"}, "TOY", "'a.b.c'"),
        ({"nä": b"x"}, "TOY", "'nä'"),
        ({"": b"x"}, "TOY", "''"),
        ({"a\n": b"x"}, "TOY", "'a"),
        ({"boot.cat": b"x"}, "TOY", "'boot.cat'"),
        ({"a": b""}, "TOY", "0 bytes"),
        ({"a": b"x"}, "toy", "label 'toy'"),
        ({"a": b"x"}, "A" * 33, "label 'AAA"),
        ({"a": b"x"}, "", "label ''"),
    ],
)
def test_what_iso_9660_cannot_hold_is_refused(contents, label, words):
    with pytest.raises(Problem, match=re.escape(words)):
        volume(contents, (), label)


def test_a_file_of_four_gibibytes_is_refused():
    with pytest.raises(Problem, match="4294967296 bytes"):
        iso.plan({"a": 1 << 32}, label="TOY", boots=())


DAMAGES = (
    (32768 + 1, b"XX", "no ISO"),
    (32768, b"\x02", "no primary volume descriptor"),
    (32768 + 128, b"\x00\x02", "blocks of 512 bytes"),
    (36864 + 1, b"XX", "have no end"),
    (32768 + 158, b"\xff\xff\xff\x7f", "ends beyond the disc"),
    (32768 + 166, b"\x00\x00\xf0\x00", "ends beyond the disc"),
    (34816 + 0x47, b"\xff\xff\xff\x7f", "boot catalog is damaged"),
    ("catalog", b"\x07", "boot catalog is damaged"),
    ("entry", b"\xff\xff\xff\x7f", "leads beyond the disc"),
    ("record", b"\x05", "folder of the ISO is damaged"),
    ("name", b"\xff", "folder of the ISO is damaged"),
    ("file", b"\xff\xff\xff\x7f", "ends beyond the disc"),
)


@pytest.mark.parametrize(("where", "damage", "words"), DAMAGES)
def test_a_damaged_iso_is_told(where, damage, words):
    data = bytearray(bytes_of(volume()))
    root, catalog = (struct.unpack_from("<I", data, at)[0] * 2048 for at in (32768 + 158, 34816 + 0x47))
    third = root + data[root]  # itself, its parent, and then a file
    third += data[third]
    at = {"catalog": catalog, "entry": catalog + 32 + 8, "record": third, "name": third + 32, "file": third + 10}
    at = at.get(where, where)
    data[at : at + len(damage)] = damage
    with pytest.raises(Problem, match=words):
        isoread.read(of(bytes(data)))


def test_an_iso_that_no_firmware_would_start_says_why():
    with pytest.raises(Problem, match=r"entry for UEFI: .*; the ISO: neither EFI/BOOT/BOOTAA64.EFI nor kernel"):
        loader.find(volume(), arch="aarch64")


def test_a_folder_in_itself_has_an_end():
    data = bytearray(bytes_of(volume()))
    root = struct.unpack_from("<I", data, 32768 + 158)[0] * 2048
    third = root + data[root]
    third += data[third]
    data[third + 25] |= 2
    data[third + 2 : third + 6] = data[root + 2 : root + 6]
    assert len(isoread.read(of(bytes(data))).files) == len(CONTENTS)


def test_folders_in_each_other_have_an_end():
    """Each of 2,000 folders claims all the blocks behind it, and in each block lies the next one's record."""
    count = 2000
    disk = bytearray(bytes_of(volume())[: 40 * 2048] + bytes(count * 2048))
    for number in range(count):
        rest = (count - number) * 2048
        record = struct.pack("<BBI4xI4x7sBBBH2xB", 34, 0, 41 + number, rest - 2048, bytes(7), 2, 0, 0, 1, 1) + b"D"
        disk[(40 + number) * 2048 : (40 + number) * 2048 + 34] = record
    struct.pack_into("<I4xI", disk, 32768 + 158, 40, count * 2048)
    start = time.process_time()
    with pytest.raises(Problem, match=r"folders have more than 32 MiB|path of more than"):
        isoread.read(of(bytes(disk)))
    assert time.process_time() - start < 20


def test_any_damage_is_a_problem_or_none_at_all():
    whole, chance = bytes_of(volume()), random.Random(9660)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 9)):
            data[chance.randrange(32768, 57344)] = chance.choice((0, 1, 2, 127, 255, chance.randrange(256)))
        try:
            found = isoread.read(of(bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])))
        except Problem:
            continue
        assert all(place.offset + place.size <= len(data) for place in found.files.values())


def test_what_is_no_iso_is_known():
    assert isoread.is_iso(volume())
    assert not isoread.is_iso(of(bytes(40000)))
    assert not isoread.is_iso(of(b""))
