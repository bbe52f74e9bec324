"""The verbs around proofs, as they are typed: sbom, build --provenance, rebuild, diff, and verify with a policy."""

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from imagekit import artifact, cli, key, proofs, provenance, tested

KEYS = Path(__file__).parents[1] / "fixtures" / "keys"
DEFINITION = (
    'from imagekit import Image, Text\nimage = Image("toy", formats=("tar",), files={"/etc/motd": Text("%s")})\n'
)
MADE = "out/toy_0_x86_64.tar.manifest.json"


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Type a command in a folder with a built image; its exit status and what it printed."""
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS / "test.key"))
    monkeypatch.chdir(tmp_path)
    Path("toy.py").write_text(DEFINITION % "one")
    for name in "ab":
        key.save(key.new(), Path(f"{name}.key"))

    def told(*words):
        code = cli.main(list(words))
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    told("lock", "toy.py")
    assert told("build", "toy.py", "--arch", "x86_64")[0] == 0
    return told


def test_sbom(told):
    code, said = told("sbom", MADE)
    assert code == 0
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(said) is None
    assert sha256(said.encode()).hexdigest() == artifact.load(Path(MADE)).manifest["sbom"]["sha256"]
    assert told("sbom", "out/toy_0_x86_64.tar.gz", "--format", "spdx", "-o", "toy.spdx.json")[0] == 0
    assert json.loads(Path("toy.spdx.json").read_text())["spdxVersion"] == "SPDX-2.3"
    Path("out/toy_0_x86_64.tar.cdx.json").write_text("{}")
    code, said = told("sbom", MADE)
    assert code == 1
    assert "toy_0_x86_64.tar.cdx.json has 2 bytes, not the" in said
    code, said = told("sbom", MADE, "--key", "a.pub")
    assert code == 1
    assert "signed by key" in said


def test_provenance(told):
    assert "cannot read" in told("verify", MADE, "--provenance")[1]
    code, said = told("build", "toy.py", "--arch", "x86_64", "--provenance")
    assert code == 0
    assert "toy_0_x86_64.tar.provenance.json" in said
    assert told("build", "toy.py", "--arch", "x86_64", "--provenance") == (0, said)  # nothing changed
    code, said = told("verify", MADE, "--provenance")
    assert code == 0
    assert f"says {key.read(KEYS / 'test.pub').id}" in said
    where = Path("out/toy_0_x86_64.tar.provenance.json")
    found = proofs.read(artifact.load(Path(MADE)), where, keys=[key.read(KEYS / "test.pub")],
                        predicate_type=provenance.PREDICATE)  # fmt: skip
    assert "startedOn" not in found.predicate["runDetails"]["metadata"]  # it was kept from the build before
    where.unlink()
    assert told("build", "toy.py", "--arch", "x86_64", "--provenance")[0] == 0
    assert where.exists()


def test_tested(told):
    made = artifact.load(Path(MADE))
    for results, code, words in (
        (tested.Results(passed=("a",), skipped=("b",)), 0, "tested: warned: 1 passed, 0 failed, 1 skipped"),
        (tested.Results(passed=("a",), failed=("b",)), 1, "it did not pass its tests: 1 passed, 1 failed, first 'b'"),
    ):
        proofs.write(made, proofs.path(made, "tests"), predicate_type=tested.PREDICATE,
                     predicate=tested.predicate(results, {}), key=key.read(Path("a.key")))  # fmt: skip
        assert "is by none of them" in told("verify", MADE, "--tested")[1]
        found, said = told("verify", MADE, "--tested", "--key", "a.pub", "--key", str(KEYS / "test.pub"))
        assert (found, words in said) == (code, True), said


def test_an_image_must_be_signed_by_one_of_the_keys(told):
    code, said = told("verify", MADE, "--key", "a.pub", "--key", "b.pub")
    assert code == 1
    assert "signed by none of the 2 keys" in said
    code, said = told("verify", MADE, "--key", "a.pub", "--key", str(KEYS / "test.pub"))
    assert code == 0
    assert f"signed by {key.read(KEYS / 'test.pub').id}" in said


def test_rebuild_and_a_policy(told):
    trusted = ("--key", str(KEYS / "test.pub"), "--key", "a.pub", "--key", "b.pub")
    assert "0 of the trusted keys, and 1 are required" in told("verify", MADE, "--rebuilt", *trusted)[1]
    rebuild = ("rebuild", MADE, "--definition", "toy.py", "--trust", str(KEYS / "test.pub"))
    code, said = told(*rebuild, "--key", "a.key")
    assert code == 0
    assert "toy x86_64 tar: built again, the same" in said
    assert told("verify", MADE, "--rebuilt", *trusted)[0] == 0
    assert (
        "1 of the trusted keys, and 2 are required" in told("verify", MADE, "--rebuilt", "--require", "2", *trusted)[1]
    )
    assert told(*rebuild, "--key", "b.key", "-o", "elsewhere")[0] == 0
    assert told("verify", MADE, "--rebuilt", "--require", "2", *trusted)[0] == 1
    [found] = Path("elsewhere").iterdir()
    shutil.copy(found, "out")
    code, said = told("verify", MADE, "--rebuilt", "--require", "2", *trusted)
    assert (code, said.count("built again, the same, says")) == (0, 2)
    code, said = told("rebuild", MADE, "--definition", "toy.py", "--key", "a.key", "--trust", "b.pub")
    assert code == 1
    assert "signed by key" in said


def test_diff(told):
    Path("toy.py").write_text(DEFINITION % "another")
    told("build", "toy.py", "--arch", "x86_64", "-o", "new")
    assert told("diff", MADE, MADE) == (0, "the same\n")
    code, said = told("diff", MADE, MADE.replace("out", "new"))
    assert code == 1
    assert "/etc/motd  size 3 -> size 7" in said
    code, said = told("diff", "--json", MADE, MADE.replace("out", "new"))
    assert code == 1
    assert json.loads(said)["files"][0]["name"] == "/etc/motd"
    Path("new/toy_0_x86_64.tar.gz").write_bytes(b"")
    assert "toy_0_x86_64.tar.gz has 0 bytes" in told("diff", MADE, MADE.replace("out", "new"))[1]
