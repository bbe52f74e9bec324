"""Signed images in the hands of others: programs that read .tar.gz find the same in them as without a signature."""

import gzip
import io
import json
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest
from signed_rig import ABOUT, KEY, SMALL, large, read, signed

from imagekit import signing, toolbox
from imagekit.stores.directory import open_store


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    return signed(tmp_path_factory.mktemp("readers"), large())


TREE = ("bsdtar", "busybox", "pigz", "minisign", "umoci", "tar2sqfs")  # from the tools tree; the rest is everywhere


@pytest.fixture(scope="module")
def run() -> Callable[..., bytes]:
    """Give what a program writes: it must end well, and complain of nothing."""
    tools = toolbox.tools(*TREE, store=open_store())

    def ran(program: str, *words: str | Path, cwd: Path, data: bytes = b"", code: int = 0) -> bytes:
        command = tools.argv(program, *words) if program in TREE else [program, *map(str, words)]
        env = {**tools.env, "LC_ALL": "C"}
        done = subprocess.run(command, env=env, cwd=cwd, input=data, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        assert code or not done.stderr, done.stderr
        return done.stdout

    return ran


@cache
def files() -> dict[str, bytes]:
    """What the large tar holds."""
    with tarfile.open(fileobj=io.BytesIO(large())) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def unpacked(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "words", [("gzip", "-dc"), ("zcat",), ("pigz", "-dc"), ("pigz", "-p4", "-dc"), ("busybox", "zcat")], ids=" ".join
)
def test_gunzip_gives_the_tar(image, run, words):
    assert run(*words, image, cwd=image.parent) == large()


@pytest.mark.parametrize("words", [("gzip", "-t"), ("pigz", "-t"), ("busybox", "gzip", "-t")], ids=" ".join)
def test_gunzip_finds_nothing_wrong(image, run, words):
    assert run(*words, image, cwd=image.parent) == b""


@pytest.mark.parametrize("words", [("tar", "-xzf"), ("bsdtar", "-xf"), ("busybox", "tar", "-xzf")], ids=" ".join)
def test_tar_programs_unpack_it(image, run, tmp_path, words):
    run(*words, image, cwd=tmp_path)
    assert unpacked(tmp_path) == files()


def test_tar_from_a_pipe(image, run, tmp_path):
    run("tar", "-xz", data=image.read_bytes(), cwd=tmp_path)
    assert unpacked(tmp_path) == files()


@pytest.mark.parametrize("mode", ["r:gz", "r:*", "r|gz", "r|*"])
def test_python_reads_it(image, mode):
    with tarfile.open(image, mode) as archive:
        assert {member.name: archive.extractfile(member).read() for member in archive} == files()
    assert gzip.decompress(image.read_bytes()) == large()


def test_tar2sqfs_takes_it_for_a_root(run, tmp_path):
    data = signed(tmp_path, SMALL).read_bytes()
    run("tar2sqfs", "--quiet", "root.squashfs", data=data, cwd=tmp_path)
    assert (tmp_path / "root.squashfs").read_bytes().startswith(b"hsqs")


def test_go_unpacks_it_as_a_layer_whose_diff_id_its_manifest_names(image, run, tmp_path):
    """umoci is written in Go, and compares what it unpacked with the diff_id."""
    content = read(image.read_bytes()).said.content
    blobs = tmp_path / "layout/blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, kind: str) -> dict[str, object]:
        digest = sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    def text(value: object) -> bytes:
        return json.dumps(value).encode()

    rootfs = {"type": "layers", "diff_ids": [f"sha256:{content}"]}
    config = blob(text({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}), "config.v1+json")
    layer = blob(image.read_bytes(), "layer.v1.tar+gzip")
    manifest = blob(text({"schemaVersion": 2, "config": config, "layers": [layer]}), "manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (tmp_path / "layout/index.json").write_bytes(text({"schemaVersion": 2, "manifests": [manifest]}))
    (tmp_path / "layout/oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    run("umoci", "unpack", "--rootless", "--image=layout:1", "bundle", cwd=tmp_path)
    assert unpacked(tmp_path / "bundle/rootfs") == files()


def test_minisign_verifies_what_is_exported(image, run, tmp_path):
    found = read(image.read_bytes())
    manifest, signature = signing.export(found, tmp_path / "web")
    assert (manifest.name, signature.name) == ("web.manifest", "web.manifest.minisig")
    (tmp_path / "own.pub").write_text(KEY.public_text())
    told = run("minisign", "-V", "-p", "own.pub", "-m", manifest, cwd=tmp_path)
    assert b"imagekit image sha256:" + sha256(found.manifest).hexdigest().encode() in told
    manifest.write_bytes(found.manifest.replace(b"name: web", b"name: wob"))
    run("minisign", "-V", "-p", "own.pub", "-m", manifest, cwd=tmp_path, code=1)


def test_another_reader_of_the_format_finds_the_same(image):
    """docs/format.md, read once more and otherwise: forwards, member by member, and by PyNaCl's own verifier."""
    from nacl.signing import VerifyKey

    data, members = image.read_bytes(), []
    rest = data
    while rest:
        member = zlib.decompressobj(31)
        plain = member.decompress(rest)
        length = len(rest) - len(member.unused_data)
        members.append((rest[:length], plain))
        rest = member.unused_data
    (body, tar), *others = members
    assert all(plain == b"" for _, plain in others)
    pieces = [(member[12:14], member[16:-10]) for member, _ in others]
    manifest = b"".join(piece for tag, piece in pieces if tag == b"IM")
    table = b"".join(piece for tag, piece in pieces if tag == b"IK")
    [last] = [piece for tag, piece in pieces if tag == b"IS"]
    lines = dict(line.split(": ", 1) for line in manifest.decode().splitlines()[1:])
    first, second = last[24:88], last[88:152]
    key = VerifyKey(KEY.public)
    key.verify(manifest, first)
    key.verify(first + b"imagekit image sha256:" + sha256(manifest).hexdigest().encode(), second)
    assert lines["table"] == f"sha256:{sha256(table).hexdigest()}"
    assert lines["content"] == f"sha256:{sha256(tar).hexdigest()}"
    assert (int(lines["size"]), int(lines["body"]), int(lines["chunks"])) == (len(tar), len(body), len(table) // 40)
    at, whole = 0, b""
    for row in range(0, len(table), 40):
        packed = int.from_bytes(table[row : row + 4], "little")
        chunk = body[at : at + packed]
        assert sha256(chunk).digest() == table[row + 8 : row + 40]
        deflate = chunk[10 if at == 0 else 0 : -10 if at + packed == len(body) else None]
        whole += zlib.decompress(deflate + b"\x03\0", -15)
        at += packed
    assert whole == tar == large()
    assert lines["name"] == ABOUT.name
