"""Building again without the private keys: with the signatures that the artifact has, where they fit."""

from dataclasses import replace

import pytest
from test_guarded import ALL, KEYS, TREE, job  # noqa: F401 - a fixture

from imagekit import Layout, Problem, borrowed, key, plugs
from imagekit.artifact import Artifact
from imagekit.bootkeys import BootKeys
from imagekit.disk import updatefile
from imagekit.disk.sparse import Sparse
from imagekit.tree import Tree, file

LAYOUTS = {"raw_efi": Layout(root="squashfs", slots=2, **ALL), "qcow2_efi": Layout(root="squashfs", **ALL),
           "uki": Layout(secure_boot=ALL["secure_boot"], seal=ALL["seal"])}  # fmt: skip


@pytest.fixture
def public(tmp_path):
    """A folder of the keys' public halves."""
    (tmp_path / "keys").mkdir()
    for path in KEYS.files[1:]:
        (tmp_path / "keys" / path.name).write_bytes(path.read_bytes())
    return BootKeys(tmp_path / "keys")


def written(job, format, tree=TREE):  # noqa: F811
    """(role, bytes)"""
    ((role, part),) = plugs.load("formats", format).write(tree, job=replace(job, layout=LAYOUTS[format])).items()
    return role, job.store.read(part.sha256)


@pytest.mark.parametrize("format", LAYOUTS)
def test_the_same_bytes_come_of_public_halves_and_the_signatures(format, job, public, tmp_path):  # noqa: F811
    role, data = written(job, format)
    (tmp_path / "part").write_bytes(data)
    made = Artifact(tmp_path / "m", b"", {"parts": [{"role": role, "file": "part", "size": len(data), "sha256": ""}]})
    with borrowed.keys(public, LAYOUTS[format], made) as folder:
        lent = replace(job, boot_keys=BootKeys(folder))
        assert written(lent, format) == (role, data)
        other = written(lent, format, TREE.override(Tree({"/etc/more": file(b"something else")})))[1]
        assert other != data
        assert bytes(256) in other, "what was signed is something else"


def test_a_key_of_signatures_signs_again_what_was_signed_and_nothing_else(tmp_path):
    by = key.from_seed(bytes(32))
    (tmp_path / "m").write_bytes(b"a manifest")
    (tmp_path / "m.minisig").write_text(by.sign(b"a manifest", comment="once"))
    said = updatefile.Said("toy", "1", "x86_64", 0, "", "", 0, 0, 4096)
    nothing = Sparse(0, ())
    parts = updatefile.Parts(nothing, nothing, Sparse(4096, ()))
    (tmp_path / "u").write_bytes(b"".join(updatefile.write(said, parts, key=by)))
    made = Artifact(tmp_path / "m", b"", {"parts": [{"role": "update", "file": "u", "size": 1, "sha256": ""}]})
    (tmp_path / "lent").write_text(borrowed.key_text(by, [made]))
    lent = key.read(tmp_path / "lent")
    assert (lent.public, lent.public_text()) == (by.public, by.public_text())
    assert lent.sign(b"a manifest", comment="once") == by.sign(b"a manifest", comment="once")
    assert b"".join(updatefile.write(said, parts, key=lent)) == (tmp_path / "u").read_bytes()
    with pytest.raises(Problem, match="does not fit"):
        by.verify(b"another", lent.sign(b"another", comment="once"))


def test_who_has_the_private_keys_needs_no_signatures():
    with borrowed.keys(KEYS, LAYOUTS["raw_efi"], made=None) as folder:
        assert folder is None
