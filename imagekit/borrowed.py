"""Borrowed: an artifact's own signatures, for whoever builds it again without the private keys.

A signature of ed25519 or RSA is the same at each time, and fits the bytes that it was made of and no others. So who has
the public halves and the artifact can build all of it: what is to be signed is looked for among its signatures. Where
none fits something else was built; what differs is then found as in any other artifact.
"""

import json
import re
from base64 import b64decode
from binascii import Error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from imagekit import key
from imagekit.artifact import MAX_SIGNATURE, SIGNATURE_SUFFIX, Artifact
from imagekit.bootkeys import SIGNATURES, BootKeys
from imagekit.disk import containers, fatfiles, gpt, pe, updatefile
from imagekit.disk.discoverable import ESP
from imagekit.disk.sparse import Sparse, of_file
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.layout import Layout

MOST_PROGRAMS, MOST_SIGNATURES = 16, 256
LARGEST = 64 << 10  # bytes of a table of certificates, and of .pcrsig
IN_DER = re.compile(rb"\x04\x82\x01\x00(.{256})", re.DOTALL)  # an OCTET STRING of RSA-2048's size


def key_text(by: Key, made: Sequence[Artifact]) -> str:
    """The file of the key that signed these artifacts, in which their signatures are in place of the secret one."""
    found: dict[bytes, None] = {}
    for one in made:
        beside = one.path.with_name(one.path.name + SIGNATURE_SUFFIX)
        with open(beside, encoding="utf-8", errors="replace") as file:
            found |= dict.fromkeys(key.signatures(file.read(MAX_SIGNATURE)))
        for part in one.parts:
            if part.role == "update":
                with open(one.path.parent / part.file, "rb") as update:
                    found |= dict.fromkeys(updatefile.signatures(update.read(updatefile.HEAD)))
    return by.lent_text(found)


@contextmanager
def keys(of: BootKeys, layout: Layout, made: Artifact) -> Iterator[Path | None]:
    """A folder of public halves and the artifact's signatures, while the block lasts; None where nothing is lacking."""
    if all((of.folder / f"{name}.key").exists() for name in layout.signing):
        yield None
        return
    with TemporaryDirectory() as folder:
        for path in of.files[1:]:
            (Path(folder) / path.name).write_bytes(path.read_bytes())
        (Path(folder) / SIGNATURES).write_text("".join(f"{one.hex()}\n" for one in signatures(made)))
        yield Path(folder)


def signatures(made: Artifact) -> list[bytes]:
    """What may be a signature in the programs of an artifact, which is anybody's until one of them fits."""
    found: dict[bytes, None] = {}
    for part in made.parts:
        path = made.path.parent / part.file
        if part.role in ("uki", "update"):
            whole = of_file(str(path), path.stat().st_size)
            found |= dict.fromkeys(_of_program(_of_update(whole) if part.role == "update" else whole))
        elif part.role == "disk":
            with containers.opened(path) as (_, disk):
                for program in _programs(disk):
                    found |= dict.fromkeys(_of_program(program))
    return list(found)[:MOST_SIGNATURES]


def _programs(disk: Sparse) -> Iterator[Sparse]:
    for partition in gpt.read(disk):
        if partition.type == ESP:
            files = fatfiles.read(disk.part(partition.start, partition.size))
            paths = [path for path in sorted(files) if path.lower().endswith(".efi")]
            yield from (files[path].content() for path in paths[:MOST_PROGRAMS])


def _of_update(whole: Sparse) -> Sparse:
    """The UKI of an update, which comes last."""
    beginning = whole.read(updatefile.HEAD, updatefile.MAX_MANIFEST)
    size = re.search(rb"^uki: ([0-9]{1,15})$", beginning, re.MULTILINE)
    if not size or not 0 < int(size[1]) <= whole.size:
        raise Problem("the update does not say how large its UKI is")
    return whole.part(whole.size - int(size[1]), int(size[1]))


def _of_program(program: Sparse) -> Iterator[bytes]:
    """The signature behind a program, and the one of what PCR 11 will be."""
    head = program.read(0, pe.HEAD)
    image = pe.read(head, size=program.size)
    size = min(pe.signature_size(head, image), LARGEST)
    yield from IN_DER.findall(program.read(program.size - size, size))
    for section in image.sections:
        if section.name == ".pcrsig" and section.content <= LARGEST:
            yield from _of_states(program.read(section.offset, section.content))


def _of_states(text: bytes) -> Iterator[bytes]:
    try:
        yield from (b64decode(one["sig"]) for one in json.loads(text.rstrip(b"\0"))["sha256"])
    except (ValueError, TypeError, LookupError, RecursionError, Error):
        raise Problem("a UKI's .pcrsig is none") from None
