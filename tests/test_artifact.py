"""An artifact is used as it was verified, or not at all: every change of manifest, signature or part is told."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from imagekit import artifact, key
from imagekit.artifact import Artifact
from imagekit.errors import Problem

KEY = key.from_seed(bytes(32), comment=key.TEST_MARK)
PARTS = {"kernel": b"kernel" * 1000, "initrd": b"initrd" * 300_000, "cmdline": b""}


def part(role: str, data: bytes) -> dict[str, Any]:
    digest = sha256(data).hexdigest()
    return {"role": role, "file": f"web_1_x86_64.{role}", "size": len(data), "sha256": digest, "compressor": "none"}


def manifest(**changes: Any) -> dict[str, Any]:
    parts = [part(role, data) for role, data in PARTS.items()]
    about = {"name": "web", "version": "1", "arch": "x86_64", "format": "kernel_initrd", "kind": "kernel"}
    return {**about, "parts": parts, **changes}


def laid(folder: Path, content: dict[str, Any] | bytes, *, signer: key.Key = KEY) -> Artifact:
    """An artifact on disk, signed over whatever it says."""
    text = content if isinstance(content, bytes) else artifact.canonical(content)
    path = folder / "web_1_x86_64.kernel_initrd.manifest.json"
    path.write_bytes(text)
    path.with_name(path.name + ".minisig").write_text(signer.sign(text, comment="web"))
    for role, data in PARTS.items():
        (folder / f"web_1_x86_64.{role}").write_bytes(data)
    return artifact.load(path)


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    return laid(tmp_path, manifest())


def test_what_was_signed_is_opened(made: Artifact) -> None:
    assert (made.name, made.arch, made.format, made.kind) == ("web", "x86_64", "kernel_initrd", "kernel")
    assert made.size == sum(map(len, PARTS.values()))
    assert made.verified(KEY)
    with made.opened(KEY) as opened:
        assert {role: opened.read(role) for role in PARTS} == PARTS


@pytest.mark.parametrize(
    "name",
    [
        "web_1_x86_64.kernel_initrd.manifest.json",
        "web_1_x86_64.kernel_initrd.manifest.json.minisig",
        "web_1_x86_64.kernel",
        "web_1_x86_64.initrd",
    ],
)
def test_any_of_its_files_names_it(made: Artifact, tmp_path: Path, name: str) -> None:
    assert artifact.load(tmp_path / name) == made


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("role", ["kernel", "initrd"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cut, r"has \d+ bytes, not the \d+ that the manifest names"),
        (grow, "has more bytes, not the"),
        (flip, "has other bytes, not the"),
        (Path.unlink, "cannot read .*: No such file"),
        (make_a_folder, "cannot read .*: Is a directory"),
    ],
)
def test_a_changed_part_is_told(
    made: Artifact, tmp_path: Path, role: str, change: Callable[[Path], None], words: str
) -> None:
    change(tmp_path / f"web_1_x86_64.{role}")
    assert not made.verified(KEY)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(Problem, match=rf"web_1_x86_64\.{role}.*" + words if "has" in words else words):
        made.verify(KEY)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


SBOM = b'{"bomFormat":"CycloneDX"}'


def told(**changes: Any) -> dict[str, Any]:
    """A manifest with a CycloneDX document beside it."""
    about = {"file": "web.cdx.json", "size": len(SBOM), "sha256": sha256(SBOM).hexdigest()}
    return manifest(sbom={**about, **changes})


@pytest.mark.parametrize("change", [cut, grow, flip, Path.unlink, make_a_folder])
def test_a_changed_sbom_is_told_and_no_machine_needs_it(tmp_path: Path, change: Callable[[Path], None]) -> None:
    (tmp_path / "web.cdx.json").write_bytes(SBOM)
    made = laid(tmp_path, told())
    made.verify(KEY)
    assert made.read_sbom() == SBOM
    assert artifact.load(tmp_path / "web.cdx.json") == made
    change(tmp_path / "web.cdx.json")
    with pytest.raises(Problem, match=r"web\.cdx\.json"):
        made.verify(KEY)
    with pytest.raises(Problem, match=r"web\.cdx\.json"):
        made.read_sbom()
    with made.opened(KEY) as opened:
        assert opened.handles.keys() == PARTS.keys()


def test_an_artifact_without_an_sbom_has_none(made: Artifact) -> None:
    assert (made.sbom, made.files, made.read_sbom()) == (None, made.parts, b"")


HOLE, EDGE = bytes(artifact.CHUNK), b"data"


@pytest.mark.parametrize("data", [EDGE + HOLE * 3 + EDGE, HOLE * 4, EDGE + HOLE * 2], ids=["around", "all", "last"])
def test_a_large_part_is_copied_into_a_sparse_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(artifact, "LARGEST_IN_MEMORY", 1 << 20)
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PARTS, "initrd", data)
    made = laid(tmp_path, manifest())
    with made.opened(KEY) as opened:
        (tmp_path / "web_1_x86_64.initrd").write_bytes(b"others")
        handle = opened.handles["initrd"]
        assert opened.read("initrd") == data
        assert os.fstat(handle).st_blocks * 512 <= 2 * artifact.CHUNK
        assert os.fstat(handle).st_nlink == 0
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(handle, b"x")
    assert list((tmp_path / "cache/opened").iterdir()) == []


def test_a_changed_large_part_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "LARGEST_IN_MEMORY", 1 << 20)
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    made = laid(tmp_path, manifest())
    flip(tmp_path / "web_1_x86_64.initrd")
    with pytest.raises(Problem, match=r"web_1_x86_64\.initrd has other bytes"), made.opened(KEY):
        pass


def test_no_room_for_a_large_part_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "LARGEST_IN_MEMORY", 1 << 20)
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(Problem, match=r"cannot copy web_1_x86_64\.initrd to .*: Not a directory"):
        with laid(tmp_path, manifest()).opened(KEY):
            pass


def test_an_endless_part_ends(made: Artifact, tmp_path: Path) -> None:
    (tmp_path / "web_1_x86_64.cmdline").unlink()
    (tmp_path / "web_1_x86_64.cmdline").symlink_to("/dev/zero")
    with pytest.raises(Problem, match="has more bytes"):
        made.verify(KEY)


SIGNATURE = "web_1_x86_64.kernel_initrd.manifest.json.minisig"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not signed: there is no .*minisig beside it"),
        (b"\xff", "is not signed"),
        (b"", "manifest.json: not a signature"),
        (b"x" * 100_000, "not a signature"),
        (KEY.sign(b"other", comment="").encode(), "does not fit"),
        (key.from_seed(bytes(31) + b"1").sign(b"", comment="").encode(), "signed by key"),
    ],
)
def test_a_wrong_signature_is_told(made: Artifact, tmp_path: Path, content: bytes | None, words: str) -> None:
    (tmp_path / SIGNATURE).unlink()
    if content is not None:
        (tmp_path / SIGNATURE).write_bytes(content)
    with pytest.raises(Problem, match=words):
        made.verify(KEY)
    assert not made.verified(KEY)


def test_another_key_opens_nothing(made: Artifact) -> None:
    with pytest.raises(Problem, match=f"signed by key {KEY.id}, not by"), made.opened(key.new()):
        pytest.fail("it was opened")


def test_one_changed_byte_of_the_manifest_is_told(made: Artifact) -> None:
    assert not replace(made, text=made.text.replace(b'"web"', b'"wep"')).verified(KEY)


def test_what_was_verified_is_what_is_used(made: Artifact, tmp_path: Path) -> None:
    with made.opened(KEY) as opened:
        for role in PARTS:
            (tmp_path / f"web_1_x86_64.{role}").write_bytes(b"changed after it was verified")
        assert opened.read("kernel") == PARTS["kernel"]
        with pytest.raises(PermissionError):
            os.pwrite(opened.handles["kernel"], b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(opened.handles["kernel"], 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        opened.read("kernel")


ONE = part("root", b"")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "JSONDecodeError"),
        (b"[]\n", "not in canonical form"),
        (b"\xff\n", "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError|JSONDecodeError"),
        (json.dumps(manifest()).encode(), "not in canonical form"),
        (artifact.canonical(manifest())[:-1], "not in canonical form"),
        (artifact.canonical(manifest()).replace(b'{\n "arch"', b'{\n "arch": "y",\n "arch"'), "not in canonical form"),
        (artifact.canonical({"parts": []}), "KeyError: 'name'"),
        (manifest(name=7), "name is no text"),
        (manifest(parts=None), "TypeError"),
        (manifest(parts=[7]), "TypeError"),
        (manifest(parts=[{**ONE, "file": "../../etc/passwd"}]), "is no file beside it"),
        (manifest(parts=[{**ONE, "file": ".."}]), "is no file beside it"),
        (manifest(parts=[{**ONE, "file": ""}]), "is no file beside it"),
        (manifest(parts=[{**ONE, "file": "a\x1b[2J"}]), "is no file beside it"),
        (manifest(parts=[{**ONE, "file": "a\n"}]), "is no file beside it"),
        (manifest(parts=[{**ONE, "file": "a" * 300}]), "is no file beside it"),
        (manifest(parts=[{**ONE, "size": "12"}]), "has no size and sha256"),
        (manifest(parts=[{**ONE, "size": -1}]), "has no size and sha256"),
        (manifest(parts=[{**ONE, "sha256": "x"}]), "has no size and sha256"),
        (manifest(parts=[{k: v for k, v in ONE.items() if k != "sha256"}]), "KeyError: 'sha256'"),
        (manifest(sbom=7), "TypeError"),
        (manifest(sbom={}), "KeyError: 'file'"),
        (told(file="../x"), "is no file beside it"),
        (told(file="web_1_x86_64.kernel"), "two parts have the same file"),
        (told(size=-1), "has no size and sha256"),
        (manifest(parts=[ONE, {**ONE, "file": "b"}]), "two parts have the same role"),
        (manifest(parts=[ONE, {**ONE, "role": "b"}]), "two parts have the same file"),
    ],
)
def test_a_hostile_manifest_is_refused_before_it_is_used(
    tmp_path: Path, content: dict[str, Any] | bytes, words: str
) -> None:
    with pytest.raises(Problem, match=f"is not a manifest: .*({words})"):
        laid(tmp_path, content)


def test_a_manifest_beyond_all_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.manifest.json"
    with open(path, "wb") as file:
        file.truncate(artifact.MAX_MANIFEST + 1)
    with pytest.raises(Problem, match="larger than a manifest can be"):
        artifact.load(path)


@pytest.mark.parametrize("name", ["other.img", "missing/other.img", "gone.manifest.json"])
def test_what_is_no_artifact_is_told(made: Artifact, tmp_path: Path, name: str) -> None:
    assert made
    (tmp_path / "folder.manifest.json").mkdir()
    with pytest.raises(Problem, match=r"is no artifact: there is no manifest for it|cannot read"):
        artifact.load(tmp_path / name)


def test_canonical_bytes_are_promised() -> None:
    assert artifact.canonical({"b": [1, "é"], "a": {}}) == '{\n "a": {},\n "b": [\n  1,\n  "é"\n ]\n}\n'.encode()


def test_the_digest_names_every_byte(made: Artifact) -> None:
    assert made.digest == sha256(made.path.read_bytes()).hexdigest()
