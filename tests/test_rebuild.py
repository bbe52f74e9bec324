"""Rebuilding: an artifact is built again elsewhere, and what is signed is what came of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from imagekit import artifact, build, cli, key, proofs, rebuild
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

KEYS = Path(__file__).parents[1] / "fixtures" / "keys"
SIGNER = key.from_seed(bytes([7]) * 32)
DEFINITION = (
    'from imagekit import Image, Text\nimage = Image("toy", formats=("tar",), files={"/etc/motd": Text("%s")})\n'
)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A built artifact, whose definition lies beside it."""
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS / "test.key"))
    monkeypatch.chdir(tmp_path)
    Path("toy.py").write_text(DEFINITION % "one")
    assert cli.main(["lock", "toy.py"]) == 0
    assert cli.main(["build", "toy.py", "--arch", "x86_64"]) == 0
    return artifact.load(Path("out/toy_0_x86_64.tar.manifest.json"))


def again(made):
    said = []
    found = rebuild.rebuild(made, Path("toy.py"), key=SIGNER, store=open_store(), say=said.append)
    assert any("building it again, elsewhere" in line for line in said)
    return found


def test_what_is_the_same_is_signed_as_the_same(made):
    found = again(made)
    assert found.same
    assert found.lines[0] == "toy x86_64 tar: built again, the same"
    assert found.path.name == f"toy_0_x86_64.tar.rebuilt-{SIGNER.id}.json"
    said = proofs.read(made, found.path, keys=[SIGNER], predicate_type=rebuild.PREDICATE).predicate
    assert (said["same"], said["differences"]) == (True, [])
    assert said["parts"] == {"root": made.parts[0].sha256}
    assert said["definition"] == made.manifest["definition"]
    assert "time" in said["varied"]
    assert rebuild.check(made, [SIGNER], require=1) == [f"built again, the same, says {SIGNER.id}"]
    assert not list((Path("cache") / "rebuilt").iterdir())


def test_an_artifact_that_holds_something_else_is_signed_as_not_the_same(made):
    """Whoever has the image's key can sign anything; building it again tells."""
    part = made.path.parent / made.parts[0].file
    data = part.read_bytes() + b"backdoor"
    part.write_bytes(data)
    manifest = json.loads(made.text)
    manifest["parts"][0] |= {"size": len(data), "sha256": artifact.sha256(data).hexdigest()}
    text = artifact.canonical(manifest)
    made.path.write_bytes(text)
    signer = key.read(KEYS / "test.key")
    made.path.with_name(made.path.name + ".minisig").write_text(signer.sign(text, comment=""))
    changed = artifact.load(made.path)
    changed.verify(signer)
    found = again(changed)
    assert not found.same
    assert "tar: root: what follows" in found.lines[0]
    with pytest.raises(Problem, match=f"not the same, says {SIGNER.id}: 'tar: root: what follows"):
        rebuild.check(changed, [SIGNER], require=1)


def forged(made, **fields):
    """The artifact with another manifest; what it was built from is asked before anything else is."""
    return replace(made, manifest={**made.manifest, **fields})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"definition": "0" * 64}, r"was built from another definition toy\.py: its manifest says '000"),
        ({"lock": "0" * 64}, r"was built from another lock toy\.lock"),
        ({"imagekit": "9.9"}, "was built from another imagekit: its manifest says '9.9'"),
        ({"name": "\x1b[2J"}, r"was built from another image of toy\.py: its manifest says '\\x1b\[2J'"),
    ],
)
def test_nothing_is_said_of_what_was_built_from_something_else(made, change, words):
    with pytest.raises(Problem, match=words):
        rebuild.check_fit(forged(made, **change), Path("toy.py"))


def test_a_definition_that_has_changed_since_is_refused(made):
    Path("toy.py").write_text(DEFINITION % "another")  # of another size: within a second Python takes what it compiled
    with pytest.raises(Problem, match=r"was built from another definition toy\.py"):
        again(made)
    assert proofs.found(made, "rebuilt") == []
    assert build.read_lock(Path("toy.py")).digest == made.manifest["lock"]
