"""A disk that is protected: its partitions, hashes, signatures and empty file system as others read them."""

import json
import struct
import subprocess
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard
from test_disk import cpio_members
from test_formats import BOOTABLE, job_of
from toy_program import program

from imagekit import Layout, Problem, Seal, SecureBoot, Verity, early, plugs, readback, toolbox
from imagekit.bootkeys import BootKeys
from imagekit.disk import authenticode, discoverable, fatfiles, gpt, guarded, ids, loader, medium, outline, pe, verity
from imagekit.disk.sparse import Piece, laid
from imagekit.errors import Defect
from imagekit.store import flow
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

MIB = 1 << 20
KEYS = BootKeys(Path(__file__).parents[1] / "fixtures/keys/boot")
STUB = program(text="\0systemd-stub 252.39-1~deb12u1\0".encode("utf-16le"))
LATER = program(text="\0systemd-stub 257.13-1~deb13u1\0".encode("utf-16le"))
LOADER = pe.uki(program(text="\0systemd-boot 252.39-1~deb12u1\0".encode("utf-16le")), {})
TREE = BOOTABLE.override(
    Tree(
        {
            "/boot/kernel": file(LOADER),
            "/boot/stub": file(STUB),
            "/boot/loader": file(LOADER),
            early.SEALED: file(b"opens", mode=0o755),
        }
    )
).complete()
ALL = {"verity": Verity(corrupted="panic"), "secure_boot": SecureBoot(), "seal": Seal(generation=3)}


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return replace(job_of(open_store(tmp_path_factory.mktemp("cache"))), boot_keys=KEYS)


def plan_of(job, tree=TREE, **layout):
    return guarded.plan(tree, job=replace(job, layout=Layout(**layout)))


@pytest.fixture(scope="module")
def made(job, tmp_path_factory):
    """(a folder with the disk and its partitions as files, the disk, its facts): with all that there is."""
    folder = tmp_path_factory.mktemp("disk")
    job = replace(job, layout=Layout(root="squashfs", slots=2, **ALL))
    plan = guarded.plan(TREE, job=job)
    disk = medium.disk(TREE, job=job, firmware=("uefi",), plan=plan)
    (folder / "disk").write_bytes(b"".join(disk.chunks()))
    for part in gpt.read(disk):
        (folder / part.name).write_bytes(disk.read(part.start, part.size))
    return folder, disk, plan.facts


@pytest.fixture(scope="module")
def files(made):
    """What lies on the EFI system partition."""
    folder, *_ = made
    data = (folder / "boot").read_bytes()
    return {path: found.read() for path, found in fatfiles.read(laid(len(data), [Piece(0, data)])).items()}


def run(*words):
    """An independent reader."""
    tools = toolbox.tools(words[0], mode="tree", store=open_store())
    return subprocess.run(tools.argv(*words), env=tools.env, check=False, capture_output=True, text=True, timeout=300)


def test_sfdisk_reads_the_partitions(made):
    folder, disk, _ = made
    told = json.loads(run("sfdisk", "--json", folder / "disk").stdout)["partitiontable"]["partitions"]
    roots, hashes = discoverable.ROOTS["x86_64"], discoverable.VERITY["x86_64"]
    assert [(row["name"], row["type"].lower(), row.get("attrs", "")) for row in told] == [
        ("boot", str(discoverable.ESP), ""),
        ("root-a", str(roots), "GUID:60"),  # read-only
        ("root-a-verity", str(hashes), "GUID:60"),
        ("root-b", str(roots), "GUID:60"),
        ("root-b-verity", str(hashes), "GUID:60"),
        ("data", str(discoverable.DATA), ""),
    ]
    assert told[-1]["start"] + told[-1]["size"] == (disk.size - gpt.TAIL) // 512, "it grows: nothing may follow it"
    sizes = {row["name"]: row["size"] for row in told}
    assert (sizes["root-a"], sizes["root-a-verity"]) == (sizes["root-b"], sizes["root-b-verity"])
    assert sizes["root-a-verity"] * 512 >= verity.size(sizes["root-a"] * 512 // verity.BLOCK)


def test_veritysetup_finds_the_root_as_the_kernel_is_told(made, files):
    folder, _, facts = made
    words = loader.of_uki(files["EFI/Linux/toy_1.efi"]).arguments.decode().split()
    (told,) = (word.partition("=")[2] for word in words if word.startswith("imagekit.verity="))
    salt, blocks, root_hash, reaction = told.split(":")
    assert reaction == "panic"
    assert facts["uki"] == authenticode.digest([files["EFI/Linux/toy_1.efi"]]).hex()
    assert "rootfstype=squashfs" in words
    assert not any(word.startswith("root=") for word in words)
    assert facts["verity"] == {"root_hash": root_hash, "salt": salt, "blocks": int(blocks)}
    verify = ("veritysetup", "verify", folder / "root-a", folder / "root-a-verity", root_hash)
    assert run(*verify).returncode == 0
    with (folder / "root-a").open("r+b") as data:
        data.seek(int(blocks) * verity.BLOCK - 1)
        last = data.read(1)
        data.seek(-1, 1)
        data.write(bytes([last[0] ^ 1]))
    assert run(*verify).returncode != 0
    assert not any((folder / "root-b").read_bytes() + (folder / "root-b-verity").read_bytes())


def test_sbverify_takes_all_that_firmware_would_start(files, tmp_path):
    assert sorted(files) == ["EFI/BOOT/BOOTX64.EFI", "EFI/Linux/toy_1.efi", "loader/loader.conf"]
    for name in ("EFI/BOOT/BOOTX64.EFI", "EFI/Linux/toy_1.efi"):
        (tmp_path / "program").write_bytes(files[name])
        told = run("sbverify", "--cert", KEYS.folder / "db.crt", tmp_path / "program")
        assert told.returncode == 0, told
    sections = run("objdump", "-h", tmp_path / "program").stdout
    assert all(name in sections for name in (".pcrsig", ".pcrpkey", ".cmdline", ".initrd", ".linux"))


def test_a_sealed_disk_is_shipped_as_zeros_and_the_initrd_knows_what_to_make_of_it(made, files, tmp_path):
    folder, *_ = made
    assert run("cryptsetup", "isLuks", folder / "data").returncode != 0
    assert not any((folder / "data").read_bytes())
    found = in_initrd(files["EFI/Linux/toy_1.efi"])
    assert found["/init"] == early.SEALED.encode()
    assert found[early.SEALED] == TREE.read(early.SEALED)
    assert {"/boot/stub", "/etc/shadow"}.isdisjoint(found)
    assert found[early.SEAL].decode().splitlines() == [
        "image toy", "disk data", "mount /data", "pcrs 7,11", "policy signed", "recovery console", "secure_boot on",
        "generation 3", f"public {KEYS.public().modulus:0512x}",
    ]  # fmt: skip
    (tmp_path / "ext4").write_bytes(of_records(found[early.DATA]))
    told = run("e2fsck", "-fn", tmp_path / "ext4")
    assert told.returncode == 0, told


def in_initrd(uki):
    """What a UKI's initrd holds, as path -> bytes."""
    found, rest = {}, loader.of_uki(uki).initrd
    while rest:
        reader = zstandard.ZstdDecompressor().decompressobj()
        found |= {path: body for path, (*_, body) in cpio_members(reader.decompress(rest)).items()}
        rest = reader.unused_data.lstrip(b"\0")
    return found


def of_records(data):
    (size,) = struct.unpack_from("<Q", data)
    whole, at = bytearray(size), 8
    while at < len(data):
        offset, length = struct.unpack_from("<QQ", data, at)
        whole[offset : offset + length] = data[at + 16 : at + 16 + length]
        at += 16 + length
    return bytes(whole)


def test_what_starts_and_what_lies_on_it_is_told(made, files):
    _, disk, facts = made
    found = loader.find(disk, arch="x86_64")
    assert found == loader.of_uki(files["EFI/Linux/toy_1.efi"]), "by way of systemd-boot"
    text = "\n".join(" ".join(line.split()) for line in outline.outline(disk, "disk").lines())
    for words in (
        "systemd-boot starts program EFI/Linux/toy_1.efi",
        "UKI yes, signature ",
        f"dm-verity, size 1048576 (1.0 MiB), id {ids.guid(TREE.digest, 'verity')}, blocks {facts['verity']['blocks']}",
        ".pcrsig size 5",
        "'root-b-verity' type verity of a Linux root, x86_64",
    ):
        assert words in text


def test_the_same_again_is_the_same_and_with_another_key_another(job):
    def bytes_of(**layout):
        plan = plan_of(job, **layout)
        return b"".join(flow(plan.files["EFI/BOOT/BOOTX64.EFI"]))

    first = bytes_of(**ALL, root="squashfs")
    assert first == bytes_of(**ALL, root="squashfs")
    assert first != bytes_of(**{**ALL, "secure_boot": SecureBoot(key="KEK")}, root="squashfs")


def test_a_lone_uki_is_signed_and_opens_a_disk_as_well(job):
    layout = Layout(secure_boot=SecureBoot(), seal=Seal())
    parts = plugs.load("formats", "uki").write(TREE, job=replace(job, layout=layout))
    data = job.store.read(parts["uki"].sha256)
    facts = parts["uki"].facts
    assert facts["seal"] == {"disk": "data", "mount": "/data", "pcrs": [7, 11], "policy": "signed"}
    assert facts["secure_boot"] == sha256(KEYS.certificate().whole).hexdigest()
    assert facts["pcrs"].keys() == {"4", "7", "11", "12"}, "and 9 of a kernel that tells its release"
    assert in_initrd(data).keys() >= {early.SEAL, early.DATA}


@pytest.mark.parametrize(
    ("tree", "layout", "words"),
    [
        (TREE.override(Tree({"/boot/kernel": file(program(text=bytes(5 * MIB)))})), {"slots": 2, "boot_size": "8 MiB"},
         "no room for two UKIs"),
        (TREE.without(("/boot/loader",)), {"slots": 2}, "slots=2 needs systemd-boot"),
        (TREE.override(Tree({"/boot/loader": file(program("aarch64"))})), {"slots": 2}, "/boot/loader is for aarch64"),
        (TREE.override(Tree({"/boot/kernel": file(b"\x1f\x8b packed")})), {"slots": 2}, "no PE header"),
        (TREE.override(Tree({"/boot/kernel": file(program("aarch64"))})), {"slots": 2}, "/boot/kernel is for aarch64"),
        (TREE.override(Tree({"/boot/stub": file(LATER)})), {"secure_boot": SecureBoot(), "seal": Seal()},
         "the stub of systemd 257 takes more arguments"),
    ],
)  # fmt: skip
def test_what_cannot_be_started_is_told(job, tree, layout, words):
    with pytest.raises(Problem) as told:
        plan_of(job, tree, **layout)
    assert words in str(told.value)


def test_a_stub_that_takes_arguments_from_the_machine_is_taken_where_they_are_sealed_to(job):
    later = TREE.override(Tree({"/boot/stub": file(LATER)}))
    assert plan_of(job, later, secure_boot=SecureBoot(), seal=Seal(pcrs=(7, 11, 12))).facts["pcrs"]["12"] == "0" * 64


@pytest.mark.parametrize("given", [{"seal": Seal()}, {"boot_size": "40 MiB"}])
def test_two_slots_share_a_disk_whose_size_is_given(job, given):
    job = replace(job, layout=Layout(root="squashfs", slots=2, size="1 GiB", **{**ALL, "seal": None, **given}))
    disk = medium.disk(TREE, job=job, firmware=("uefi",), plan=guarded.plan(TREE, job=job))
    sizes = {part.name: part.size // MIB for part in gpt.read(disk)}
    assert disk.size == 1 << 30
    assert sizes["root-a"] == sizes["root-b"] > 460
    assert 0 <= 1024 - 2 - sum(sizes.values()) <= 3, "nothing is left over, but what two equal halves leave"


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        (
            "quiet console=tty0 console=ttyS0 no_timer_check rootfstype=erofs imagekit.verity=a:1:b:panic panic=10",
            "quiet",
        ),
        ("quiet console=tty0 console=ttyS0 no_timer_check panic=10", "quiet"),
        ("console=ttyS0 panic=10", "console=ttyS0 panic=10"),
        ("panic=10 console=tty0 console=ttyS0 no_timer_check rootfstype=erofs imagekit.verity=a:1:b:panic", "panic=10"),
        ("panic=10", "panic=10"),
    ],
)
def test_what_was_added_to_the_arguments_is_known_again(arguments, own):
    assert readback._own(arguments.encode(), "x86_64") == f"{own}\n".encode()


def test_of_a_stub_that_nobody_knows_no_pcrs_are_told_and_none_seals(job):
    unknown = TREE.override(Tree({"/boot/stub": file(program(text="\0systemd-stub 255.4\0".encode("utf-16le")))}))
    assert "pcrs" not in plan_of(job, unknown, secure_boot=SecureBoot()).facts
    for seal in Seal(), Seal(policy="exact"):
        with pytest.raises(Problem, match="what systemd-stub 255 measures is not known"):
            plan_of(job, unknown, secure_boot=SecureBoot(), seal=seal)


def test_an_exact_policy_takes_no_key(job):
    plan = plan_of(replace(job, boot_keys=None), seal=Seal(pcrs=(2, 4, 12), policy="exact"))
    assert "public" not in in_initrd(b"".join(flow(plan.files["EFI/BOOT/BOOTX64.EFI"])))[early.SEAL].decode()


def test_keys_that_nobody_brought_are_our_fault(job):
    with pytest.raises(Defect):
        plan_of(replace(job, boot_keys=None), secure_boot=SecureBoot())
