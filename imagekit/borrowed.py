"""Borrowed: an artifact's own signatures, for whoever builds it again without the private keys.

A signature of RSA is the same at each time, and is one of the bytes that it was made of or of none. So whoever has the
public halves of the boot keys and the artifact can build all of it: what is to be signed is looked for among its
signatures. None fits where something else was built, and then what differs is found as in any other artifact.
"""

import json
import re
from base64 import b64decode
from binascii import Error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from imagekit.artifact import Artifact
from imagekit.bootkeys import SIGNATURES, BootKeys
from imagekit.disk import containers, fatfiles, gpt, pe
from imagekit.disk.discoverable import ESP
from imagekit.disk.sparse import Sparse, of_file
from imagekit.errors import Problem
from imagekit.layout import Layout

MOST_PROGRAMS, MOST_SIGNATURES = 16, 256
LARGEST = 64 << 10  # bytes of a table of certificates, and of .pcrsig
IN_DER = re.compile(rb"\x04\x82\x01\x00(.{256})", re.DOTALL)  # an OCTET STRING of RSA-2048's size


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
        if part.role == "uki":
            found |= dict.fromkeys(_of_program(of_file(str(path), path.stat().st_size)))
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
