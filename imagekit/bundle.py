"""A bundle: one executable of a launcher and a signed image, which runs where nothing is installed.

    launcher, as it is shipped | zeros | the signer's public key | body and trailer of the signed image

The launchers are static programs (inside/launcher/), one per architecture; a test makes them again from their sources.
The key stands in the 64 bytes before the body, which begins at a whole page: "imagekit bundle" and a line feed, the
number of the key, its 32 bytes, 1 for a root that is read-only else 0, seven zeros. docs/bundle.md says what the
launcher does.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from imagekit import host
from imagekit.disk import signedchunks, signedfile
from imagekit.disk.signedfile import BLOCK, Signed
from imagekit.errors import Problem
from imagekit.key import Key

LAUNCHERS = Path(__file__).parent / "inside" / "launcher" / "bin"
ARCHES = ("x86_64", "aarch64", "armhf", "riscv64")
MAGIC = b"imagekit bundle\n"
SLOT = 64


class Bundle(NamedTuple):
    """What was made."""

    size: int
    image: Signed
    arch: str


def bundle(image: Path, out: Path, *, keys: Sequence[Key], arch: str = "", read_only: bool = False) -> Bundle:
    """Write an executable of a signed image, if one of the keys signed it; raises Problem else, and leaves nothing.

    arch: of the launcher, where the image is for any. read_only: its root cannot be written to, but /tmp and /run can.
    """
    with open(image, "rb") as source, host.draft(out, is_large=True) as draft:
        signed = signedfile.read(source.fileno(), keys)
        machine = _arch(signed, arch)
        draft.write(launcher(machine, signed, read_only=read_only))
        for number in range(len(signed.chunks)):
            draft.write(signedfile.chunk(source.fileno(), signed, number))
        draft.write(os.pread(source.fileno(), signed.trailer, signed.said.body))
        draft.flush()
        with open(draft.name, "rb") as written:
            _check(written.fileno(), signed)
        os.fchmod(draft.fileno(), 0o755)
    return Bundle(out.stat().st_size, signed, machine)


def launcher(arch: str, signed: Signed, *, read_only: bool = False) -> bytes:
    """What stands before the body: the launcher, and the key of whoever signed the image."""
    if signed.key is None:
        raise Problem("an image that nobody vouches for is not made into a bundle", "sign it: `imagekit sign`")
    program = (LAUNCHERS / f"launcher.{arch}").read_bytes()
    slot = MAGIC + signed.key.number + signed.key.public + bytes([read_only])
    return program + bytes(-(len(program) + SLOT) % BLOCK) + slot.ljust(SLOT, b"\0")


def check(handle: int, keys: Sequence[Key]) -> Signed:
    """What an open image or bundle says, if every byte of it is one that a key signed, or of a launcher of ours."""
    signed = signedfile.read(handle, keys, in_bundle=True)
    signedchunks.check(handle, signed)
    if signed.start:
        known = [launcher(arch, signed, read_only=way) for arch in ARCHES for way in (False, True)]
        begins = os.pread(handle, signed.start, 0) if signed.start in map(len, known) else b""
        if begins not in known:  # it is what would run first, and nobody signed it
            raise Problem("its launcher is none that this imagekit has", "make it again: `imagekit bundle`")
    return signed


def _arch(signed: Signed, asked: str) -> str:
    """The architecture of the launcher."""
    own = signed.said.architecture
    arch = asked or (os.uname().machine if own == "any" else own)
    if own not in ("any", arch):
        raise Problem(f"the image is for {own}, not for {arch}", "leave --arch away: the image says what it is for")
    if arch not in ARCHES:
        raise Problem(f"there is no launcher for {arch}", f"known: {', '.join(ARCHES)}")
    return arch


def _check(handle: int, signed: Signed) -> None:
    """Read again what was written: the file that it was copied from may have been changed meanwhile."""
    assert signed.key is not None
    again = signedfile.read(handle, [signed.key], in_bundle=True)
    if again.manifest != signed.manifest:
        raise Problem("the image was changed while it was copied", "try again")
