"""Secure Boot, for real: firmware itself says why it starts nothing else than what the enrolled key signed.

That it starts what is signed, and the kernel in it, images/appliance.py shows.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_rig import opened
from toy_program import program

from imagekit import bootkeys, build, efivars, enrolment, host, plugs, supply, toolbox
from imagekit.artifact import Artifact
from imagekit.bootkeys import BootKeys
from imagekit.checks import _oracles
from imagekit.disk import authenticode, fat, pe
from imagekit.errors import Problem, RigProblem
from imagekit.guest import Guest, GuestProblem, Rig
from imagekit.rig import Tpm
from imagekit.store import flow
from imagekit.stores.directory import open_store
from imagekit.targets import _qemu_fittings
from imagekit.targets._qemu_command import AARCH64, X86_64, Board
from imagekit.verbs import boot

KEYS = BootKeys(Path(__file__).parent.parent / "fixtures/keys/boot")
TOOLS = os.environ.get("IMAGEKIT_TOOLS", "auto")
REFUSED = "failed to load Boot0001"  # and why
DENIED = "Access Denied"  # EFI_ACCESS_DENIED, by the handler of image verification
WAIT = f"console:{REFUSED}[^\n]*\n"
UNFIT = "Unsupported"  # what is said of our toys where nothing forbids them: they are no program after all
TOYS = {arch: pe.uki(program(arch), {".linux": bytes(5000), ".cmdline": b"quiet"}) for arch in ("x86_64", "aarch64")}
SIGNER = sha256(KEYS.certificate("db").whole).hexdigest()
KEPT = Path(__file__).parent.parent / "images/kept.py"


def unsigned(data: bytes) -> bytes:
    return data


def signed(data: bytes, name: str = "db") -> bytes:
    return b"".join(flow(authenticode.signed([data], KEYS.pair(name))))


def by_another(data: bytes) -> bytes:
    return signed(data, "KEK")


def altered(data: bytes) -> bytes:
    """A bit of the command line is another one."""
    return signed(data).replace(b"quiet", b"quieu", 1)


def refusal(arch: str, data: bytes, **options: Any) -> str:
    """What firmware says when it does not start a program that is the only one on a disk."""
    with started(arch, "uki", {"uki": data}, wait=WAIT, **options) as guest:
        return said(guest)


@contextmanager
def started(arch: str, format: str, parts: dict[str, bytes], **options: Any) -> Iterator[Guest]:
    """A machine of an artifact that has these parts and no others."""
    rig = Rig(tools=TOOLS, accelerator="tcg", **options)
    with opened(arch, **parts) as artifact:
        for role in ("kernel", "initrd", "cmdline"):
            os.close(artifact.handles.pop(role))
        rows = [row for row in artifact.artifact.manifest["parts"] if row["role"] in parts]
        manifest = {**artifact.artifact.manifest, "format": format, "parts": rows}
        found = replace(artifact, artifact=replace(artifact.artifact, manifest=manifest))
        with plugs.load("targets", f"qemu_{arch}_uefi").start(found, rig=rig, store=open_store()) as guest:
            yield guest


def said(guest: Guest) -> str:
    return next(line for line in guest.console.text.splitlines() if REFUSED in line)


ROWS: list[tuple[str, Callable[[bytes], bytes], str, str]] = [
    ("x86_64", unsigned, "on", DENIED),
    ("x86_64", by_another, "on", DENIED),
    ("x86_64", altered, "off", UNFIT),
    ("aarch64", altered, "on", DENIED),
]


@pytest.mark.parametrize(("arch", "change", "state", "words"), ROWS)
def test_firmware_says_why_it_starts_nothing(
    arch: str, change: Callable[[bytes], bytes], state: str, words: str
) -> None:
    assert refusal(arch, change(TOYS[arch]), secure=state).endswith(f": {words}")


def test_a_program_is_refused_where_other_keys_are_enrolled(tmp_path: Path) -> None:
    bootkeys.make(tmp_path / "keys")
    assert DENIED in refusal("aarch64", signed(TOYS["aarch64"]), secure="on", boot_keys=tmp_path / "keys")


def test_a_program_is_refused_when_its_certificate_is_revoked(templates: dict[str, Path], tmp_path: Path) -> None:
    """virt-firmware reads the signed update that we write, and firmware minds what is in it."""
    made = efivars.enrolment(KEYS, at=datetime.now(UTC), revoked=[KEYS.certificate("db")])
    flash, update = tmp_path / "flash", tmp_path / "dbx.auth"
    flash.write_bytes(enrolment.variables(templates["aavmf"], KEYS, store=open_store()))
    update.write_bytes(made["dbx.auth"])
    host.run([sys.executable, "-P", "-m", enrolment.PROGRAM, "--inplace", flash, "--add-dbx", update])
    assert made["dbx.esl"] in flash.read_bytes()
    assert refusal("aarch64", signed(TOYS["aarch64"]), variables=flash.read_bytes()).endswith(DENIED)


@pytest.mark.parametrize(
    ("change", "signer", "words"),
    [
        (signed, SIGNER, []),
        (by_another, SIGNER, ["sbverify: ", "sbverify does not find x.efi well signed"]),
        (altered, SIGNER, ["sbverify: ", "sbverify does not find x.efi well signed"]),
        (signed, "00" * 32, ["sbverify: none of the boot keys is the certificate 0000"]),
    ],
)
def test_another_program_judges_signatures(
    change: Callable[[bytes], bytes], signer: str, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "x.efi"
    path.write_bytes(change(TOYS["x86_64"]))
    (tmp_path / "work").mkdir()
    bench = _oracles.Bench(tmp_path / "work", [])
    _oracles._signatures(path, signer, bench)
    assert [line[: len(start)] for line, start in zip(bench.said, words, strict=True)] == words


def test_a_machine_is_enrolled_by_the_files_that_we_write() -> None:
    """In setup mode systemd-boot takes them, and restarts; from then on firmware refuses it, for it is not signed."""
    lock = build.read_lock(KEPT)
    pins = [pin for pin in lock.pins["x86_64"] if pin.name == "systemd-boot-efi"]
    ((_, package),) = supply.fetched(pins, folder=KEPT.parent, store=open_store(), say=print)
    files: dict[str, fat.Content] = {
        "EFI/BOOT/BOOTX64.EFI": package.tree.read("/usr/lib/systemd/boot/efi/systemd-bootx64.efi"),
        "loader/loader.conf": b"timeout 0\nsecure-boot-enroll force\n",
    }
    made = efivars.enrolment(KEYS, at=datetime.now(UTC))
    files |= {
        f"loader/keys/auto/{name}": data for name, data in made.items() if name in ("PK.auth", "KEK.auth", "db.auth")
    }
    disk = b"".join(fat.volume(files, serial=1).chunks())
    with started("x86_64", "raw_efi", {"disk": disk}, secure="setup", wait="console:Enrolling secure boot") as guest:
        with pytest.raises(GuestProblem, match="the guest is gone"):
            guest.expect("console:anything else")
        assert REFUSED not in guest.console.text
        guest.power.on()
        guest.expect(WAIT)
        assert said(guest).endswith(f": {DENIED}")


@pytest.fixture(scope="module")
def templates() -> dict[str, Path]:
    tools = toolbox.tools("ovmf-vars", "aavmf-vars", mode=TOOLS, store=open_store())
    return {name: tools.path(f"{name}-vars") for name in ("ovmf", "aavmf")}


def test_variables_hold_what_is_believed(templates: dict[str, Path], tmp_path: Path) -> None:
    """What virt-firmware writes of the keys is what our own writer makes of them."""
    store, template, contents = open_store(tmp_path), templates["aavmf"], efivars.contents(KEYS)
    made = {state: enrolment.variables(template, KEYS, state=state, store=store) for state in enrolment.STATES}
    assert [name for name in contents if contents[name] not in made["on"]] == []
    assert [name for name in contents if contents[name] not in made["off"]] == []
    assert made["on"] != made["off"]
    assert not any(content in enrolment.blank(template) for content in contents.values())
    assert len(made["on"]) < 1 << 20, "of 64 MiB, which are zeros"


def test_variables_are_kept_by_keys_and_template(
    templates: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tmp_path)
    made = enrolment.variables(templates["ovmf"], KEYS, store=store)
    assert all(content in made for content in efivars.contents(KEYS).values())
    monkeypatch.setattr(enrolment, "PROGRAM", "virt.nowhere")
    assert enrolment.variables(templates["ovmf"], KEYS, store=store) == made
    for path in tmp_path.rglob("objects/*/*"):
        path.chmod(0o600)
        path.write_bytes(b"bad")
    with pytest.raises(RigProblem, match=r"virt-firmware enrols no keys: .*virt.*\n.*imagekit\[uefi\]"):
        enrolment.variables(templates["ovmf"], KEYS, store=store)
    (tmp_path / "blank").write_bytes(bytes(1 << 20))
    with pytest.raises(RigProblem, match=r"blank: nothing can be enrolled in it\n.*--tools=tree"):
        enrolment.variables(tmp_path / "blank", KEYS, store=store)
    with pytest.raises(Problem, match=r"unknown state of Secure Boot 'no'"):
        enrolment.variables(templates["ovmf"], KEYS, state="no", store=store)


SIGNED = {"parts": [{"role": "uki", "secure_boot": "00"}]}


@pytest.mark.parametrize(
    ("rig", "manifest", "secure"),
    [
        (Rig(firmware="uefi"), {"parts": [{"role": "uki"}]}, ""),
        (Rig(firmware="uefi"), SIGNED, "on"),
        (Rig(firmware="uefi", secure="off"), SIGNED, "off"),
        (Rig(firmware="uefi", variables=b"mine"), SIGNED, ""),
        (Rig(firmware="direct"), SIGNED, ""),
    ],
)
def test_an_image_that_is_signed_is_started_with_secure_boot(rig: Rig, manifest: dict[str, Any], secure: str) -> None:
    assert _qemu_fittings.settled(rig, manifest).secure == secure


@pytest.mark.parametrize(
    ("rig", "board", "code"),
    [
        (Rig(firmware="uefi"), X86_64, "ovmf-code"),
        (Rig(firmware="uefi"), AARCH64, "aavmf-code"),
        (Rig(firmware="uefi", tpm=Tpm()), X86_64, "ovmf-code"),
        (Rig(firmware="uefi", tpm=Tpm()), AARCH64, "aavmf-code-secboot"),  # the other one measures nothing
        (Rig(firmware="uefi", secure="setup"), X86_64, "ovmf-code-secboot"),
        (Rig(firmware="uefi", variables=b"mine"), AARCH64, "aavmf-code-secboot"),
    ],
)
def test_the_firmware_is_the_one_that_can_do_it(rig: Rig, board: Board, code: str) -> None:
    assert _qemu_fittings.wanted(rig, board)[0] == code
    machine = _qemu_fittings.board(rig, board).machine_name
    assert machine == board.machine_name + (",smm=on" if code == "ovmf-code-secboot" else "")


@pytest.mark.parametrize(
    ("facts", "asked", "firmware", "has_tpm"),
    [
        ({}, "", "direct", False),
        ({"verity": {}}, "", "direct", False),
        ({"secure_boot": "00"}, "", "uefi", False),
        ({"secure_boot": "00", "seal": {}}, "", "uefi", True),
        ({"seal": {}}, "direct", "direct", False),
        ({}, "bios", "bios", False),
    ],
)
def test_a_protected_image_is_booted_by_hand_with_what_it_relies_on(
    facts: dict[str, Any], asked: str, firmware: str, has_tpm: bool
) -> None:
    made = Artifact(Path(), b"", {"parts": [{"role": "disk", **facts}]})
    found, tpm = boot.machine(made, asked)
    assert (found, tpm is not None) == (firmware, has_tpm)


@pytest.mark.parametrize(
    ("rig", "words"),
    [
        (Rig(firmware="uefi", secure="yes"), r"unknown state of Secure Boot 'yes'"),
        (Rig(firmware="bios", secure="on"), "Secure Boot is UEFI's"),
        (Rig(firmware="direct", variables=b"x"), "Secure Boot is UEFI's"),
    ],
)
def test_secure_boot_that_cannot_be(rig: Rig, words: str) -> None:
    with pytest.raises(Problem, match=words):
        _qemu_fittings.wanted(_qemu_fittings.settled(rig, SIGNED), X86_64)


def test_variables_fit_the_flash_memory(templates: dict[str, Path], tmp_path: Path) -> None:
    tools = SimpleNamespace(path=lambda _: templates["ovmf"])
    rig = Rig(firmware="uefi", variables=bytes(1 << 20))
    with ExitStack() as held, pytest.raises(Problem, match="1048576 bytes are more than the 540672"):
        _qemu_fittings.variables(("code", "vars"), tools, rig, open_store(), tmp_path, held)  # type: ignore[arg-type]
