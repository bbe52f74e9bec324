"""Variables of Secure Boot are, byte for byte, what sbsigntool makes of the same keys, less its two faults."""

import struct
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from imagekit import cli, der, efivars, pkcs7, toolbox
from imagekit.bootkeys import BootKeys
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

KEYS = BootKeys(Path(__file__).parent.parent / "fixtures/keys/boot")
ATTRIBUTES = "NON_VOLATILE,BOOTSERVICE_ACCESS,RUNTIME_ACCESS,TIME_BASED_AUTHENTICATED_WRITE_ACCESS"
NOON = datetime(2030, 2, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def tools() -> toolbox.Tools:
    return toolbox.tools("sbsiglist", "sbvarsign", mode="tree", store=open_store())


def run(tools: toolbox.Tools, name: str, *words: str | Path) -> None:
    subprocess.run(tools.argv(name, *words), env=tools.env, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["PK", "KEK", "db"])
def test_a_list_is_the_one_that_sbsiglist_makes(name: str, tools: toolbox.Tools, tmp_path: Path) -> None:
    (tmp_path / "der").write_bytes(KEYS.certificate(name).whole)
    run(tools, "sbsiglist", "--owner", KEYS.owner, "--type", "x509", "--output", tmp_path / "esl", tmp_path / "der")
    assert efivars.contents(KEYS)[name] == (tmp_path / "esl").read_bytes()


@pytest.mark.parametrize(("name", "by"), efivars.SIGNERS.items())
def test_an_update_is_the_one_that_sbvarsign_makes(
    name: str, by: str, tools: toolbox.Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = tmp_path / "data", tmp_path / "auth"
    data.write_bytes(efivars.contents(KEYS)[name])
    key = ("--key", KEYS.folder / f"{by}.key", "--cert", KEYS.folder / f"{by}.crt")
    run(tools, "sbvarsign", *key, "--attr", ATTRIBUTES, "--output", out, name, data)
    made = out.read_bytes()
    told = made[made.index(der.oid(pkcs7.SIGNING_TIME)) :][15:27].decode()  # behind two tags and their lengths
    at = datetime.strptime(told, "%y%m%d%H%M%S").replace(tzinfo=UTC)
    # Debian 13's counts months from 0 and signs names of four bytes a letter, neither of which firmware would take:
    # tests/test_secure_boot.py lets firmware judge ours.
    monkeypatch.setattr(efivars, "_time", lambda _: made[:16])
    monkeypatch.setattr(efivars, "_name", lambda name: name.encode("utf-32-le"))
    assert efivars.update(name, data.read_bytes(), KEYS.pair(by), at=at) == made


def test_the_time_of_an_update_is_as_uefi_writes_it() -> None:
    assert efivars.update("db", b"", KEYS.pair("KEK"), at=NOON)[:16] == struct.pack("<H14B", 2030, 2, 1, 12, *bytes(11))


def test_files_for_a_machine_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["boot-keys", str(KEYS.folder), "--enroll", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert made.keys() == {f"{n}.{end}" for n in ("PK", "KEK", "db") for end in ("auth", "esl", "cer")} | {"noPK.auth"}
    assert all(name in said for name in ("PK.auth", "KEK.auth", "db.auth", "noPK.auth"))
    assert made["db.cer"] == KEYS.certificate("db").whole
    assert made["PK.auth"].endswith(made["PK.esl"])
    old = str(KEYS.folder / "db.crt")
    assert cli.main(["boot-keys", str(KEYS.folder), "--enroll", str(tmp_path / "out"), "--revoke", old]) == 0
    assert "dbx.auth revokes CN=imagekit TEST KEY db" in capsys.readouterr().out
    assert (tmp_path / "out/dbx.auth").read_bytes().endswith(KEYS.certificate("db").whole)
    assert cli.main(["boot-keys", str(KEYS.folder), "--revoke", old]) == 1
    assert "--enroll OUT" in capsys.readouterr().err
    noon = efivars.enrolment(KEYS, at=NOON)
    assert noon == efivars.enrolment(KEYS, at=NOON)
    assert (noon["PK.auth"][6], noon["noPK.auth"][6]) == (0, 1), "a second later: of the same time it would be refused"


def test_enrolling_takes_the_keys_that_are_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in KEYS.folder.iterdir():
        if path.name not in ("PK.key", "KEK.key"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert efivars.contents(BootKeys(tmp_path)) == efivars.contents(KEYS), "what is believed is public"
    with pytest.raises(Problem, match=r"no boot key .*PK\.key"):
        efivars.enrolment(BootKeys(tmp_path), at=NOON)
    assert cli.main(["boot-keys", str(tmp_path), "--enroll", str(tmp_path / "out")]) == 1
    assert "PK.key" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
