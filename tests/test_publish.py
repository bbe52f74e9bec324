"""An artifact gets into a folder whole, or what lay there stays as it was."""

import errno
import os
from pathlib import Path

import depot_rig
import pytest

from imagekit import artifact, build
from imagekit.errors import RigProblem

NEW = {"kernel": os.urandom(1000), "initrd": os.urandom(1 << 20)}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_full_folder_keeps_the_artifact_that_it_has(tmp_path: Path, small: Path) -> None:
    build.publish(depot_rig.made(tmp_path / "1"), small / "out")
    before = contents(small / "out")
    (small / "filler").write_bytes(bytes((3 << 20) - (600 << 10)))
    with pytest.raises(RigProblem, match="No space left on device"):
        build.publish(depot_rig.made(tmp_path / "2", parts=NEW), small / "out")
    assert contents(small / "out") == before


@pytest.mark.parametrize("written", range(4))  # of two parts, manifest and signature
def test_whichever_file_cannot_be_written_the_artifact_before_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    out, copy, left = tmp_path / "out", build._copy, [None] * written
    build.publish(depot_rig.made(tmp_path / "1"), out)
    before = contents(out)

    def full(*given: object) -> None:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left.pop()
        copy(*given)

    monkeypatch.setattr(build, "_copy", full)
    with pytest.raises(RigProblem, match="No space left on device"):
        build.publish(depot_rig.made(tmp_path / "2", parts=NEW), out)
    assert contents(out) == before


def test_a_new_version_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    build.publish(depot_rig.made(tmp_path / "1"), tmp_path / "out")
    new = build.publish(depot_rig.made(tmp_path / "2", parts=NEW), tmp_path / "out")
    artifact.load(new.path).verify(depot_rig.IMAGE_KEY)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
