"""Signed images to try things on: a small one and a large one, made in memory of the test."""

import io
import os
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from struct import pack

from imagekit import key, signing
from imagekit.disk import gzip, signedchunks, signedfile
from imagekit.disk.signedfile import Signed
from imagekit.key import Key

KEY = key.read(Path(__file__).parent.parent / "fixtures/keys/test.key")
OTHER = key.from_seed(b"another one".ljust(32, b"."))
ABOUT = signing.About("web", "1.2", "x86_64", ("/bin/sh", "-c", "exit 7"), ("A=b c", "PATH=/usr/bin:/bin"), "33:33")


def tar(files: dict[str, bytes]) -> bytes:
    """A tar as GNU tar would write it, without padding to its usual 10 KiB."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    size = -(-whole.getvalue().rstrip(b"\0").__len__() // 512) * 512 + 1024
    return whole.getvalue()[:size]


WORDS = [random.Random(n).randbytes(256) for n in range(16)]
SMALL = tar({"bin/sh": b"#!nothing\n"})


@cache
def large() -> bytes:
    """A tar of 40 MiB, eleven chunks: what repeats itself packs to little, so that a chunk is hashed quickly."""
    dice = random.Random(6)
    return tar({f"file{n}": b"".join(dice.choice(WORDS) for _ in range(1 << 14)) for n in range(10)})


def signed(folder: Path, data: bytes, *, name: str = "image.tar.gz", by: Key = KEY, about=ABOUT) -> Path:
    """The file of a signed image."""
    (folder / f"{name}.tar").write_bytes(data)
    signing.sign(folder / f"{name}.tar", folder / name, about=about, key=by)
    return folder / name


@contextmanager
def handle_of(data: bytes) -> Iterator[int]:
    """A descriptor of these bytes."""
    handle = os.memfd_create("signed")
    try:
        os.write(handle, data)
        yield handle
    finally:
        os.close(handle)


def read(data: bytes, keys=(KEY,)) -> Signed:
    """What the bytes of a signed image say."""
    with handle_of(data) as handle:
        return signedfile.read(handle, keys)


def taken(data: bytes, keys=(KEY,)) -> bytes:
    """The payload of an image's bytes, all of it verified."""
    with handle_of(data) as handle:
        found = signedfile.read(handle, keys)
        signedchunks.check(handle, found)
        return b"".join(signedchunks.pieces(handle, found))


def many() -> bytes:
    """An image whose manifest and whose table each take two members of the trailer: 400 chunks of 512 bytes or less."""
    whole = tar({"many": b"".join(bytes([number & 255]) * 512 for number in range(398))})
    parts = [gzip.segment([whole[at : at + 512]]) for at in range(0, len(whole), 512)]
    body = b"".join(gzip.member(parts))
    lengths = [len(part.data) for part in parts]
    lengths[0], lengths[-1] = lengths[0] + len(signedfile.GZIP), lengths[-1] + signedfile.TAIL
    at, table = 0, b""
    for length, part in zip(lengths, parts, strict=True):
        table += pack("<II", length, part.size) + sha256(body[at : at + length]).digest()
        at += length
    arguments = ("/bin/many", *("a word that is repeated".ljust(100, ".") for _ in range(160)))
    about = signing.About("many", "0~1", "any", arguments, compressor=gzip.VERSION)
    chunks = tuple((length, part.size) for length, part in zip(lengths, parts, strict=True))
    found = signing.Body("tar.gz", chunks, sha256(whole).hexdigest(), len(whole), gzip.VERSION, "")
    manifest = signing.manifest(about, found, table)
    return body + signedfile.members(manifest, table, KEY.number, signing.signatures(manifest, KEY))
