"""What PCRs will be, told from programs alone: by the names that real logs have, and what moves which."""

import json
import random
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from toy_program import program

from imagekit import toolbox, tpm
from imagekit.bootkeys import BootKeys
from imagekit.disk import authenticode, eventlog, pcrsign, pe, prediction
from imagekit.disk.uki import CMDLINE, KERNEL, STUB, contents, programs
from imagekit.errors import Problem
from imagekit.store import flow
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

HOME = Path(__file__).parents[1]
KEYS = BootKeys(HOME / "fixtures/keys/boot")
PAIR, SIGNER = KEYS.pair(), KEYS.signer()
VARIABLES = prediction.enrolled(KEYS)
BOOT, ENTRY = "EFI/BOOT/BOOTX64.EFI", "EFI/Linux/formats_1.efi"
SECTIONS = {
    ".osrel": b"ID=toy\n",
    ".cmdline": b"quiet panic=-1",
    ".uname": b"6.1.0-39-cloud-amd64",
    ".initrd": b"an archive" * 9,
    ".linux": pe.uki(program(text=b"a kernel"), {}),
}


def beginning(version: int = 252, *, of: str = "systemd-stub") -> bytes:
    """A stub of systemd, as far as it tells its version; real ones have that in another section than .sbat."""
    return program(text=f"\0{of} {version}.1\0".encode("utf-16le"), name=b".sbat")


def loader(version: int = 252) -> bytes:
    """The same of systemd-boot."""
    return pe.uki(beginning(version, of="systemd-boot"), {})


LOADER = loader()


def uki(*, version=252, signed=True, approved=True, generation=0, **changed) -> bytes:
    """A UKI with all that belongs to it; changed: contents of sections, None for none."""
    sections = {**SECTIONS, **{f".{name}": data for name, data in changed.items()}}
    parts = {name: [data] for name, data in sections.items() if data is not None}
    if approved:
        own = {name: [data] for name, data in pe.sections(beginning(version)).items()}
        parts |= pcrsign.sections(
            {**own, **parts}, of=beginning(version), approval=pcrsign.Approval(SIGNER, generation)
        )
    made = pe.uki(beginning(version), {name: b"".join(data) for name, data in parts.items()})
    return b"".join(authenticode.signed([made], PAIR)) if signed else made


def booted(made: bytes, *, by: int = 0) -> prediction.Prediction:
    """What is predicted of a machine that starts it, by this version of systemd-boot or at once."""
    programs = {BOOT: [loader(by)], ENTRY: [made]} if by else {BOOT: [made[:999], made[999:]]}
    return prediction.of(programs, variables=VARIABLES)


@pytest.mark.parametrize(
    ("log", "arch", "version", "signed", "approved", "by"),
    [
        ("x86_64-secure", "X64", 252, True, True, 0),
        ("aarch64-secure-loader", "AA64", 252, True, True, 252),
        ("x86_64-loader", "X64", 252, False, True, 252),
        ("x86_64", "X64", 252, False, False, 0),
        ("aarch64", "AA64", 252, False, False, 0),
        ("x86_64-257", "X64", 257, False, True, 0),
        ("x86_64-257-secure-loader", "X64", 257, True, True, 257),
    ],
)
def test_the_steps_are_those_of_real_boots(log, arch, version, signed, approved, by):
    real = eventlog.parse((HOME / f"fixtures/eventlogs/{log}.log").read_bytes())
    told = booted(uki(version=version, signed=signed, approved=approved), by=by)
    assert set(told.pcrs) == ({4, 7, 9, 11, 12} if signed else {4, 9, 11, 12})
    for pcr in told.pcrs:
        ours = [each.name.replace("X64", arch) for each in told.of(pcr)]
        assert ours == [each.name for each in real.of(pcr)], pcr
    if signed:
        assert told.values()[7] == real.replay()[7], "certificates and all"


@pytest.mark.parametrize(
    ("changed", "moved"),
    [
        ({}, set()),
        ({"cmdline": b"init=/bin/sh"}, {4, 9, 11}),
        ({"initrd": b"another"}, {4, 9, 11}),
        ({"osrel": b"ID=another"}, {4, 9, 11}),  # 9: .pcrsig is handed to the initrd, and is another
        ({"linux": pe.uki(program(text=b"another kernel"), {})}, {4, 9, 11}),
        ({"uname": b"6.1.0-40-cloud-amd64"}, {4}),
        ({"generation": 1}, {4, 9}),
        ({"approved": False}, {4, 9, 11}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_change_moves_what_it_has_to(changed, moved):
    before, after = booted(uki()).values(), booted(uki(**changed)).values()
    assert {pcr for pcr in before if before[pcr] != after[pcr]} == moved


def test_a_difference_is_told_by_name():
    shipped, found = booted(uki()), booted(uki(initrd=b"a shell", osrel=None))
    told = [str(one) for one in eventlog.differences(shipped.measurements, found.measurements, pcrs=(11, 12))]
    assert told == [
        "PCR 11: name of .osrel: not measured",
        "PCR 11: content of .osrel: not measured",
        "PCR 11: content of .initrd: something else",
    ]


@pytest.mark.parametrize("version", [252, 257])
def test_what_is_signed_is_what_will_be_measured(version):
    tree = Tree(
        {STUB: file(beginning(version)), KERNEL: file(SECTIONS[".linux"]), CMDLINE: file(b"quiet\n")}
    ).complete()
    approval = pcrsign.Approval(SIGNER, 3)
    pieces = contents(tree, [b"an initrd"], arguments="quiet", of=programs(tree, arch="x86_64"), approval=approval)
    made = b"".join(flow(pieces))
    value = prediction.of({BOOT: [made]}).values()[11]
    signed = json.loads(pe.sections(made)[".pcrsig"])["sha256"][0]["pol"]
    assert signed == pcrsign.policy(value, generation=3).hex()


def test_with_secure_boot_off_the_kernel_is_measured_too_and_nothing_is_believed():
    told = booted(uki(signed=False))
    assert told.of(4)[-1].digest == authenticode.digest([SECTIONS[".linux"]])
    assert 7 not in told.pcrs


def test_arguments_are_measured_once_more_by_each_who_hands_them_over():
    wide = sha256((SECTIONS[".cmdline"].decode() + "\0").encode("utf-16le")).digest()
    ways = ((True, 0), (False, 0), (True, 252), (False, 252), (True, 257), (False, 257))
    values = [booted(uki(signed=signed), by=by).values()[12] for signed, by in ways]
    assert values == [tpm.replayed([wide] * times) for times in (0, 0, 1, 2, 0, 0)]


def test_the_public_key_and_the_signature_reach_the_initrd_as_archives(tmp_path):
    tools = toolbox.tools("bsdtar", mode="tree", store=open_store())
    (tmp_path / "cpio").write_bytes(prediction.archive("tpm2-pcr-signature.json", b"signed"))
    for words, said in ((["-tf"], b".extra\n.extra/tpm2-pcr-signature.json\n"), (["-xOf"], b"signed")):
        done = subprocess.run(
            tools.argv("bsdtar", *words, tmp_path / "cpio"), env=tools.env, capture_output=True, check=True
        )
        assert done.stdout == said


def test_of_what_was_not_seen_less_is_told():
    assert booted(uki(uname=b"5.10.0-1")).pcrs == (4, 7, 11, 12)
    assert booted(uki(uname=None)).pcrs == (4, 7, 11, 12)
    assert booted(uki(cmdline=b"\xff")).pcrs == (4, 7, 11)


def test_without_the_keys_that_are_enrolled_pcr_7_is_not_told(tmp_path):
    assert prediction.enrolled(BootKeys(tmp_path)) is None
    assert prediction.of({BOOT: [uki()]}).pcrs == (4, 9, 11, 12)


def test_no_program_makes_it_fail_otherwise():
    """With bytes of its headers and of a few others changed: a prediction or a Problem."""
    rand, made = random.Random(11), uki()
    for _ in range(300):
        broken = bytearray(made[: rand.randrange(len(made))] if rand.random() < 0.1 else made)
        for _ in range(rand.randrange(1, 4)):
            broken[rand.randrange(min(len(broken), 2048))] = rand.choice((0, 1, 0x7F, 0x80, 0xFF, rand.randrange(256)))
        try:
            assert 11 in booted(bytes(broken)).pcrs
        except Problem:
            continue


def sized(made: bytes, name: bytes, size: int) -> bytes:
    """With another size in memory of a section."""
    at = made.index(name.ljust(8, b"\0")) + 8
    return made[:at] + size.to_bytes(4, "little") + made[at + 4 :]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (b"", "no PE header"),
        (LOADER, "is no UKI"),
        (pe.uki(program(), {".linux": b"MZ"}), "is no systemd-stub"),
        (uki()[:-9], "behind the end of the file|signature does not lie"),
        (sized(uki(), b".linux", 1 << 31), "has 2147483648 bytes, and"),
        (sized(uki(), b".osrel", 1 << 20), "has 1048576 bytes, and 512 in the file"),
    ],
)
def test_of_what_is_no_uki_nothing_is_told(made, said):
    with pytest.raises(Problem, match=said):
        booted(made)
