"""What is done to a sealed appliance, on parts as small as they can be; images/appliance.py boots what comes of it."""

import subprocess
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from toy_program import program

from imagekit import toolbox
from imagekit.bootkeys import BootKeys
from imagekit.checks import tamper
from imagekit.checks.tamper import Parts, Tamper
from imagekit.disk import authenticode, cpio, fat, gpt, pe, reworked
from imagekit.disk.altered import Altered
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem
from imagekit.rig import Kept, Rig, Tpm
from imagekit.stores.directory import open_store
from imagekit.tree import file

MIB = 1 << 20
KEYS = BootKeys(Path(__file__).parent.parent / "fixtures/keys/boot")
STUB, LOADER = program("x86_64", room=9), "EFI/BOOT/BOOTX64.EFI"
SECTIONS = {
    ".osrel": b"ID=toy\nIMAGE_VERSION=1\n",
    ".cmdline": b"quiet panic=-1",
    ".pcrsig": b'{"sha256":[{"pcrs":[11],"pkfp":"aa","pol":"bb","sig":"QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo="}]}',
    ".initrd": cpio.archive([("/init", file(b"init"))]),
    ".linux": program("x86_64", text=b"kernel" * 999),
}
UKI = reworked.signed(pe.uki(STUB, SECTIONS), KEYS)
ESP = {LOADER: program("x86_64"), "EFI/Linux/toy_1.efi": UKI, "loader/loader.conf": b"timeout 0\n"}
PLACES = {"boot": (1, 8), "root-a": (10, 1), "root-a-verity": (11, 1), "data": (12, 4)}  # MiB
PARTITIONS = [
    gpt.Partition(name, UUID(int=1), UUID(int=2 + n), at * MIB, size * MIB)
    for n, (name, (at, size)) in enumerate(PLACES.items())
]


@pytest.fixture(scope="module")
def luks(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A data partition as cryptsetup makes one."""
    path = tmp_path_factory.mktemp("luks") / "data"
    path.write_bytes(bytes(4 * MIB))
    told(path, "luksFormat", "--batch-mode", "--type=luks2", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
         "--luks2-metadata-size=16k", "--luks2-keyslots-size=256k", "--offset=2048", "--key-size=512",
         "--cipher=aes-xts-plain64", "-", input=b"key")  # fmt: skip
    return path.read_bytes()


def told(path: Path, verb: str, *words: str, input: bytes = b"") -> str:
    """What cryptsetup says of a file."""
    tools = toolbox.tools("cryptsetup", mode="tree", store=open_store())
    rest = [*words[:-1], str(path), words[-1]] if words else [str(path)]
    done = subprocess.run(tools.argv("cryptsetup", verb, *rest), env=tools.env, input=input, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stranger's keys lie, which take a while to make."""
    return tmp_path_factory.mktemp("parts")


@pytest.fixture
def parts(luks: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Parts:
    """A machine after its first boot."""
    monkeypatch.setenv("IMAGEKIT_BOOT_KEYS", str(KEYS.folder))
    disk = Altered(made(ESP, luks))
    return Parts(disk, Tpm(b"state"), b"variables", Rig(), "data", folder, lambda: Kept({200: b"other" * 13107 + b"!"}))


def made(esp: dict[str, bytes], luks: bytes) -> Sparse:
    """A disk with these files to start from."""
    volume = fat.volume(dict(esp), size=7 * MIB, serial=5, label="BOOT", start=2048)
    boot = [piece._replace(offset=piece.offset + MIB) for piece in volume.pieces]
    root = [Piece(at * MIB, name.encode() * 4096) for name, (at, _) in PLACES.items() if name.startswith("root")]
    return laid(17 * MIB, [*gpt.table(17 * MIB, PARTITIONS, guid=UUID(int=9)), *boot, *root, Piece(12 * MIB, luks)])


def uki(of: Parts) -> bytes:
    return of.program[1]


@pytest.mark.parametrize("what", [*tamper.ALL.values(), tamper.smbios()], ids=str)
def test_a_tamper_changes_a_copy_and_no_more_than_it_says(what: Tamper, parts: Parts) -> None:
    disk, before = parts.disk.read(0, parts.disk.size), replace(parts)
    after = what.change(parts)
    assert after != parts
    assert parts == before
    assert parts.disk.read(0, parts.disk.size) == disk
    assert what.change(parts) == after
    assert (what.name.endswith("-signed")) is (what.words != tamper.FIRMWARE and uki(after) != uki(parts))


@pytest.mark.parametrize(
    ("what", "section", "content"),
    [
        (tamper.cmdline("x=1"), ".cmdline", b"quiet panic=-1 x=1"),
        (tamper.initrd("/more", b"!"), ".initrd",
         SECTIONS[".initrd"] + bytes(-len(SECTIONS[".initrd"]) % 4) + cpio.archive([("/more", file(b"!"))])),
        (tamper.pcr_signature(signed=False), ".pcrsig", SECTIONS[".pcrsig"].replace(b"TlBP", b"TlBP", 1)),
    ],
    ids=str,
)  # fmt: skip
def test_one_section_is_another(what: Tamper, section: str, content: bytes, parts: Parts) -> None:
    found = pe.sections(uki(what.change(parts)))
    same = {name: data for name, data in found.items() if name != section}
    assert same == {name: data for name, data in pe.sections(UKI).items() if name != section}
    assert found[section] != SECTIONS[section]
    if section == ".pcrsig":
        assert sum(a != b for a, b in zip(found[section], content, strict=True)) == 1
    else:
        assert found[section] == content


def test_what_is_signed_is_signed_by_its_owner_and_else_by_nobody(parts: Parts) -> None:
    owner = KEYS.certificate()
    assert authenticode.verify(uki(parts), owner)
    assert authenticode.verify(uki(tamper.cmdline(signed=True).change(parts)), owner)
    for what in (tamper.cmdline(), tamper.kernel_bit(), tamper.section_order(), tamper.stranger()):
        with pytest.raises(Problem):
            authenticode.verify(uki(what.change(parts)), owner)
    after = tamper.stranger().change(parts)
    assert authenticode.verify(uki(after), parts.stranger.certificate())
    assert tamper.stranger().change(parts) == after


def test_a_uki_is_taken_apart_and_put_together() -> None:
    assert pe.sections(reworked.stub(UKI)).keys() == {".text"}
    assert reworked.sections(UKI) == SECTIONS
    assert reworked.with_sections(UKI, {}) == authenticode.strip(UKI)
    assert ".pcrsig" not in pe.sections(reworked.with_sections(UKI, {".pcrsig": b""}))
    with pytest.raises(Problem, match="does not begin with a stub"):
        reworked.stub(pe.uki(program("x86_64", name=b".linux"), {}))


def test_one_bit_is_another(parts: Parts) -> None:
    after = uki(tamper.kernel_bit().change(parts))
    assert sum((a ^ b).bit_count() for a, b in zip(after, UKI, strict=True)) == 1


def test_files_that_stay_are_not_written_again(parts: Parts) -> None:
    assert parts.with_files({}).disk.clusters == {}
    after = tamper.another_entry().change(parts)
    files = reworked.files(after.disk, after.boot)
    assert {path: data for path, data in files.items() if path in ESP} == ESP
    (added,) = files.keys() - ESP.keys()
    assert pe.sections(files[added])[".cmdline"].endswith(tamper.DEBUG.encode())
    assert b"IMAGE_VERSION=91" in pe.sections(files[added])[".osrel"]
    assert set(after.disk.clusters) <= set(range(16, 8 * 16))  # nothing beyond the partition's


def test_where_there_is_one_program_its_place_is_taken(parts: Parts, luks: bytes) -> None:
    alone = replace(parts, disk=Altered(made({LOADER: UKI}, luks)))
    after = tamper.another_entry().change(alone)
    assert list(reworked.files(after.disk, after.boot)) == [LOADER]
    assert pe.sections(uki(after))[".cmdline"].endswith(tamper.DEBUG.encode())


def test_cryptsetup_believes_a_header_that_was_edited(parts: Parts, tmp_path: Path) -> None:
    """The header proves nothing of itself: its checksum is one that everybody can make."""
    data = tmp_path / "data"
    data.write_bytes(parts.disk.read(12 * MIB, 4 * MIB))
    assert "cipher: aes-xts-plain64" in told(data, "luksDump")
    data.write_bytes(tamper.null_cipher().change(parts).disk.read(12 * MIB, 4 * MIB))
    assert "cipher: cipher_null-ecb" in told(data, "luksDump")


def test_a_stranger_is_enrolled_beside_the_owner(parts: Parts) -> None:
    rig = tamper.enrolled_stranger().change(parts).rig
    assert rig.boot_keys
    assert [each.pem for each in BootKeys(rig.boot_keys).db] == [
        KEYS.certificate().pem,
        parts.stranger.certificate().pem,
    ]


def test_parts_that_are_not_there(parts: Parts, luks: bytes) -> None:
    with pytest.raises(Problem, match="the disk has no partition root-c") as told:
        parts.partition("root-c")
    assert told.value.hint == "it has: boot, root-a, root-a-verity, data"
    bare = replace(parts, disk=Altered(made({"a": b"a"}, luks)))
    with pytest.raises(Problem, match="the boot partition has no UKI") as none:
        tamper.cmdline().change(bare)
    assert none.value.hint == "it has: a"
    with pytest.raises(Problem, match="the LUKS2 header has no"):
        tamper.luks("x", b"nowhere", b"").change(parts)
