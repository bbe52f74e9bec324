"""`imagekit pcr`: of a signed artifact, of a UKI or a disk that is anybody's, and against the log of a machine."""

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest
from test_prediction import BOOT, ENTRY, LOADER, PAIR, uki

from imagekit import artifact, cli, key
from imagekit.disk import authenticode, discoverable, fat, gpt, prediction
from imagekit.disk.sparse import laid

HOME = Path(__file__).parents[1]
MIB = 1 << 20
KEYS = HOME / "fixtures/keys"
SHIPPED = uki()


def disk(**files: bytes) -> bytes:
    """A disk with a partition for UEFI."""
    esp = fat.volume(files, serial=1)
    table = gpt.table(8 * MIB, [gpt.Partition("boot", discoverable.ESP, UUID(int=2), MIB, esp.size)], guid=UUID(int=1))
    pieces = (*table, *(piece._replace(offset=piece.offset + MIB) for piece in esp.pieces))
    return b"".join(laid(8 * MIB, pieces).chunks())


SIGNED = b"".join(authenticode.signed([LOADER], PAIR))
SLOTS = {BOOT: SIGNED, "loader/loader.conf": b"timeout 0\n", ENTRY: SHIPPED}
LATER = {**SLOTS, "EFI/Linux/formats_2+3.efi": uki(cmdline=b"later")}
LOG = HOME / "fixtures/eventlogs/x86_64-secure.log"


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """`imagekit pcr` of a file with this content; its status, and what it printed."""
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS / "test.key"))
    monkeypatch.delenv("IMAGEKIT_BOOT_KEYS", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(content, *words, name="image"):
        Path(name).write_bytes(content)
        code = cli.main(["pcr", name, *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def signed(data: bytes) -> None:
    """A manifest for an artifact in this folder, signed by the test key."""
    part = {"role": "uki", "file": "toy_1_x86_64.efi", "size": len(data), "sha256": sha256(data).hexdigest()}
    made = {"name": "toy", "version": "1", "arch": "x86_64", "format": "uki", "kind": "kernel", "parts": [part]}
    text = artifact.canonical(made)
    Path("toy.manifest.json").write_bytes(text)
    Path("toy.manifest.json.minisig").write_text(key.read(KEYS / "test.key").sign(text, comment="toy"))


def values(said: str) -> dict[int, str]:
    rows = (line.split(": ")[:2] for line in said.splitlines() if line.startswith("PCR"))
    return {int(name.removeprefix("PCR ")): value.partition(",")[0] for name, value in rows if len(value) >= 64}


@pytest.mark.parametrize(
    ("content", "programs"),
    [
        (SHIPPED, {BOOT: [SHIPPED]}),
        (disk(**{BOOT: SHIPPED}), {BOOT: [SHIPPED]}),
        (disk(**SLOTS), {BOOT: [SIGNED], ENTRY: [SHIPPED]}),
        (disk(**LATER), {BOOT: [SIGNED], "EFI/Linux/formats_2.efi": [LATER["EFI/Linux/formats_2+3.efi"]]}),
    ],
    ids=["uki", "disk", "disk with slots", "disk with an update"],
)
def test_a_file_is_told_of_step_by_step(told, content, programs):
    code, said, noted = told(content, "--boot-keys", KEYS / "boot")
    wanted = prediction.of(programs, variables=prediction.enrolled(prediction.BootKeys(KEYS / "boot")))
    assert code == 0
    assert values(said) == {pcr: value.hex() for pcr, value in wanted.values().items()}
    steps = [line.split()[0] for line in said.splitlines() if line.startswith("    ")]
    assert steps == [each.digest.hex()[:16] for pcr in wanted.pcrs for each in wanted.of(pcr)]
    assert "no manifest of imagekit answers for it" in noted


def test_without_boot_keys_pcr_7_is_not_told(told):
    _, said, _ = told(SHIPPED)
    assert "PCR 7: not told: nobody signed it, or not by a key of these boot keys" in said
    assert set(values(said)) == {4, 9, 11, 12}


def test_of_keys_that_did_not_sign_it_pcr_7_is_not_told(told, tmp_path):
    folder = shutil.copytree(KEYS / "boot", tmp_path / "keys")
    shutil.copy(folder / "KEK.crt", folder / "db.crt")
    for content in SHIPPED, disk(**SLOTS):
        _, said, _ = told(content, "--boot-keys", folder)
        assert set(values(said)) == {4, 9, 11, 12}


def test_of_an_artifact_its_signed_bytes_are_told_of(told):
    signed_code, said, noted = told(SHIPPED, name="plain")
    signed(SHIPPED)
    assert told(SHIPPED, name="toy_1_x86_64.efi") == (signed_code, said, "")
    code, said, noted = told(uki(cmdline=b"another"), name="toy_1_x86_64.efi")
    assert (code, said) == (1, "")
    assert "not the" in noted
    assert "that the manifest names" in noted


def test_a_log_of_another_image_differs_by_name(told):
    code, said, _ = told(SHIPPED, "--log", LOG, "--boot-keys", KEYS / "boot")
    assert code == 1
    rows = said.splitlines()
    assert [row.partition(", ")[2].partition(":")[0] for row in rows if row.startswith("PCR")] == [
        *("DIFFERENT", "as in the log", "DIFFERENT", "DIFFERENT", "as in the log"),
    ]
    named = [row for row in rows if row.startswith("  !")]
    assert "  ! content of .cmdline: something else" in named
    assert not [row for row in named if "name of" in row or "variable" in row]


def test_programs_read_json(told):
    code, said, _ = told(SHIPPED, "--json", "--log", LOG)
    found = json.loads(said)
    assert set(found["pcrs"]) == {"4", "9", "11", "12"}
    assert found["steps"][0]["name"] == "action: Calling EFI Application from Boot Option"
    assert {one["pcr"] for one in found["differences"]} == {4, 9, 11}
    assert code == 1


@pytest.mark.parametrize(
    ("content", "words", "said"),
    [
        (b"MZ", (), "the UKI is no program for UEFI"),
        (LOADER, (), "no UKI"),
        (disk(**{"EFI/BOOT/x": b""}), (), "UEFI would start nothing from this disk: boot: no EFI/BOOT/BOOT*.EFI"),
        (disk(**{BOOT: LOADER}), (), "no UKI"),
        (bytes(2048), (), "UEFI would start nothing|no partition table|GPT"),
        (SHIPPED, ("--log", "nowhere"), "cannot read nowhere: No such file"),
        (SHIPPED, ("--log", "image"), "does not begin with a Spec ID event|larger than"),
        (SHIPPED, ("--key", KEYS / "test.pub"), "is signed by nobody"),
        (SHIPPED, ("--boot-keys", "nowhere"), "there is no boot key nowhere/db.crt"),
    ],
)
def test_what_cannot_be_told_is_said(told, content, words, said):
    code, _, noted = told(content, *words)
    assert code == 1
    assert re.search(said.replace("*.", r"\*."), noted), noted


@pytest.mark.usefixtures("told")
def test_what_is_not_there_is_said(capsys):
    assert cli.main(["pcr", "nowhere"]) == 1
    assert "there is no nowhere" in capsys.readouterr().err
