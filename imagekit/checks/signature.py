"""Signatures: whether an artifact is accepted, and whether a change of it is noticed."""

from pathlib import Path

from imagekit.artifact import MANIFEST_SUFFIX, SIGNATURE_SUFFIX, Artifact, load
from imagekit.errors import Problem
from imagekit.key import Key


def refusal(artifact: Artifact, key: Key) -> str:
    """Why an artifact is not accepted; empty when it is: `assert refusal(artifact, key) == ""`."""
    try:
        artifact.verify(key)
    except Problem as problem:
        return problem.message
    return ""


def unnoticed(artifact: Artifact, key: Key) -> list[str]:
    """The files of an artifact in which one changed bit goes unnoticed: `assert unnoticed(artifact, key) == []`."""
    names = [part.file for part in artifact.parts if part.size]
    names += [artifact.path.name, artifact.path.name + SIGNATURE_SUFFIX]
    return [name for name in names if not _is_noticed(artifact, name, key)]


def _is_noticed(artifact: Artifact, name: str, key: Key) -> bool:
    from shutil import copyfile  # here: every definition imports this module, also where nothing is tested
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        for file in artifact.path.parent.iterdir():
            (Path(folder) / file.name).symlink_to(file)
        changed = Path(folder) / name
        changed.unlink()
        copyfile(artifact.path.parent / name, changed)
        _flip(changed)
        try:
            return bool(refusal(load(_manifest(Path(folder), artifact)), key))
        except Problem:
            return True


def _manifest(folder: Path, artifact: Artifact) -> Path:
    assert artifact.path.name.endswith(MANIFEST_SUFFIX)
    return folder / artifact.path.name


def _flip(path: Path) -> None:
    """Turn over the lowest bit of the byte in the middle."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
