"""A root whose blocks are checked, in real guests: one bit is flipped on its disk, and what was declared happens."""

import json
import os
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from imagekit import File, Image, Layout, Verity, build, key, plugs, supply
from imagekit import artifact as artifacts
from imagekit.artifact import Artifact
from imagekit.disk import gpt, verity
from imagekit.disk.sparse import of_file
from imagekit.guest import Guest, GuestProblem, Rig
from imagekit.stores.directory import open_store

HOME = Path(__file__).parents[1]
KEY = HOME / "fixtures/keys/test.key"
FORMATS = HOME / "images/formats.py"
UNREAD = b"".join(sha256(b"%d" % number).digest() for number in range(8192))  # 256 KiB that nobody can pack


def image(corrupted: str) -> Image:
    return Image(
        "flipped",
        kernel="debian:linux-image-cloud",
        network="none",
        files={"/srv/unread": File("unread")},
        formats=("raw_efi",),
        disk=Layout(root="squashfs", verity=Verity(corrupted=corrupted)),
    )


def flipped(folder: Path, arch: str, corrupted: str, *, name: str, at: Any) -> Artifact:
    """An artifact, signed, with one bit of a partition that is another one; at: its offset of the partition's bytes."""
    (folder / "unread").write_bytes(UNREAD)
    made, lock = image(corrupted), build.read_lock(FORMATS)
    lock = replace(lock, request=supply._request_digest(made))  # the same packages, and some that are not asked for
    whole = build.artifact(made, folder=folder, lock=lock, arch=arch, format="raw_efi", key=key.read(KEY),
                           store=open_store())  # fmt: skip
    path = folder / whole.parts[0].file
    path.write_bytes((whole.path.parent / path.name).read_bytes())
    part = next(part for part in gpt.read(of_file(str(path), path.stat().st_size)) if part.name == name)
    with path.open("r+b") as file:
        file.seek(part.start)
        offset = part.start + at(file.read(part.size))
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x10]))
    manifest = json.loads(whole.text)
    manifest["parts"][0]["sha256"] = sha256(path.read_bytes()).hexdigest()
    text = artifacts.canonical(manifest)
    (folder / whole.path.name).write_bytes(text)
    (folder / f"{whole.path.name}.minisig").write_text(key.read(KEY).sign(text, comment="flipped"))
    (folder / manifest["sbom"]["file"]).write_bytes((whole.path.parent / manifest["sbom"]["file"]).read_bytes())
    return artifacts.load(folder / whole.path.name)


def boot(made: Artifact) -> Guest:
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"))
    with made.opened(key.read(KEY)) as opened:
        return plugs.load("targets", f"qemu_{made.arch}").start(opened, rig=rig, store=open_store())


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_whoever_reads_a_flipped_bit_gets_an_error_and_no_data(arch: str, tmp_path: Path) -> None:
    at = lambda data: data.index(UNREAD[:64]) + 70000  # noqa: E731
    with boot(flipped(tmp_path, arch, "error", name="root-a", at=at)) as guest:
        told = guest.run(("cat", "/srv/unread"))
        assert "Input/output error" in told.stderr.decode()
        assert UNREAD[:70000].startswith(told.stdout), "what was hashed, and nothing behind it"
        assert "verity" in guest.console.text
        assert "is corrupted" in guest.console.text


@pytest.mark.parametrize(
    ("arch", "corrupted", "name", "at", "words"),
    [
        ("x86_64", "restart", "root-a", 0, ("data block 0 is corrupted", "reboot: Restarting system")),
        ("aarch64", "panic", "root-a-verity", 2 * verity.BLOCK, ("metadata block 2 is corrupted", "Kernel panic")),
    ],
)
def test_the_machine_does_what_was_declared(arch, corrupted, name, at, words, tmp_path):
    with pytest.raises(GuestProblem) as told:
        boot(flipped(tmp_path, arch, corrupted, name=name, at=lambda _: at))
    assert all(word in str(told.value) for word in words), told.value
