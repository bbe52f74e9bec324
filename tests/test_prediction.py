"""What PCRs will be, told from programs alone: by the names that real logs have, and what moves which."""

import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from toy_program import program

from imagekit import toolbox, tpm
from imagekit.bootkeys import BootKeys
from imagekit.disk import authenticode, eventlog, pcrsign, pe, prediction
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

HOME = Path(__file__).parents[1]
KEYS = BootKeys(HOME / "fixtures/keys/boot")
PAIR, SIGNER = KEYS.pair(), KEYS.signer()
VARIABLES = prediction.enrolled(KEYS)
LOADER = authenticode.strip(pe.uki(program(text=b"a boot loader"), {}))
BOOT, ENTRY = "EFI/BOOT/BOOTX64.EFI", "EFI/Linux/formats_1.efi"
SECTIONS = {
    ".osrel": b"ID=toy\n",
    ".cmdline": b"quiet panic=-1",
    ".uname": b"6.1.0-39-cloud-amd64",
    ".initrd": b"an archive" * 9,
    ".linux": pe.uki(program(text=b"a kernel"), {}),
}


def beginning(version: int = 252) -> bytes:
    """A stub of systemd, as far as it tells its version."""
    return program(text="\0systemd-stub ".encode("utf-16le") + f"{version}.1\0".encode("utf-16le"))


def uki(*, version=252, signed=True, approved=True, generation=0, **changed) -> bytes:
    """A UKI with all that belongs to it; changed: contents of sections, None for none."""
    sections = {**SECTIONS, **{f".{name}": data for name, data in changed.items()}}
    parts = {name: [data] for name, data in sections.items() if data is not None}
    if approved:
        approval = pcrsign.Approval(SIGNER, generation)
        parts |= pcrsign.sections(parts, of=beginning(version), approval=approval)
    made = pe.uki(beginning(version), {name: b"".join(data) for name, data in parts.items()})
    return b"".join(authenticode.signed([made], PAIR)) if signed else made


def booted(made: bytes, *, loader: bool = False) -> prediction.Prediction:
    """What is predicted of a machine that starts it, by systemd-boot or at once."""
    loads = b"".join(authenticode.signed([LOADER], PAIR))
    programs = {BOOT: [loads], ENTRY: [made]} if loader else {BOOT: [made[:999], made[999:]]}
    return prediction.of(programs, variables=VARIABLES)


@pytest.mark.parametrize(
    ("log", "arch", "signed", "approved", "loader"),
    [
        ("x86_64-secure", "X64", True, True, False),
        ("aarch64-secure-loader", "AA64", True, True, True),
        ("x86_64-loader", "X64", False, True, True),
        ("x86_64", "X64", False, False, False),
        ("aarch64", "AA64", False, False, False),
    ],
)
def test_the_steps_are_those_of_real_boots(log, arch, signed, approved, loader):
    real = eventlog.parse((HOME / f"fixtures/eventlogs/{log}.log").read_bytes())
    told = booted(uki(signed=signed, approved=approved), loader=loader)
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


def test_with_secure_boot_off_the_kernel_is_measured_too_and_nothing_is_believed():
    told = booted(uki(signed=False))
    assert told.of(4)[-1].digest == authenticode.digest([SECTIONS[".linux"]])
    assert 7 not in told.pcrs


def test_arguments_are_measured_once_more_by_each_who_hands_them_over():
    wide = sha256((SECTIONS[".cmdline"].decode() + "\0").encode("utf-16le")).digest()
    values = [booted(uki(signed=signed), loader=loader).values()[12] for signed, loader in
              ((True, False), (False, False), (True, True), (False, True))]  # fmt: skip
    assert values == [tpm.replayed([wide] * times) for times in (0, 0, 1, 2)]


def test_the_public_key_and_the_signature_reach_the_initrd_as_archives(tmp_path):
    tools = toolbox.tools("bsdtar", mode="tree", store=open_store())
    (tmp_path / "cpio").write_bytes(prediction.archive("tpm2-pcr-signature.json", b"signed"))
    for words, said in ((["-tf"], b".extra\n.extra/tpm2-pcr-signature.json\n"), (["-xOf"], b"signed")):
        done = subprocess.run(
            tools.argv("bsdtar", *words, tmp_path / "cpio"), env=tools.env, capture_output=True, check=True
        )
        assert done.stdout == said


def test_of_what_was_not_seen_less_is_told():
    assert booted(uki(version=257)).pcrs == (7, 11)
    assert booted(uki(uname=b"5.10.0-1")).pcrs == (4, 7, 11, 12)
    assert booted(uki(uname=None)).pcrs == (4, 7, 11, 12)
    assert booted(uki(cmdline=b"\xff")).pcrs == (4, 7, 11)


def test_without_the_keys_that_are_enrolled_pcr_7_is_not_told(tmp_path):
    assert prediction.enrolled(BootKeys(tmp_path)) is None
    assert prediction.of({BOOT: [uki()]}).pcrs == (4, 9, 11, 12)


def sized(made: bytes, name: bytes, size: int) -> bytes:
    """With another size in memory of a section."""
    at = made.index(name.ljust(8, b"\0")) + 8
    return made[:at] + size.to_bytes(4, "little") + made[at + 4 :]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (b"", "no PE header"),
        (LOADER, "is no UKI"),
        (pe.uki(program(), {".linux": b"MZ"}), "no stub of systemd"),
        (uki()[:-9], "behind the end of the file|signature does not lie"),
        (sized(uki(), b".linux", 1 << 31), "has 2147483648 bytes, and"),
        (sized(uki(), b".osrel", 1 << 20), "has 1048576 bytes, and 512 in the file"),
    ],
)
def test_of_what_is_no_uki_nothing_is_told(made, said):
    with pytest.raises(Problem, match=said):
        booted(made)
