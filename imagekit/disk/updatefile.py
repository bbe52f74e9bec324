"""The update file: root, hashes and UKI of an image as one signed stream, which a machine verifies as it comes.

    head (160 bytes) | manifest | table: sha256 of each chunk | root | hashes | UKI

docs/updates.md has every byte. Chunks are a mebibyte, the last one of each of the three is what is left. The signature
is docs/format.md's: two as minisign makes them, over the manifest and over the first one and a comment.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import BinaryIO, NamedTuple

from imagekit import ed25519, slots
from imagekit.disk.sparse import Sparse
from imagekit.errors import Problem
from imagekit.key import Key

MAGIC = b"IKUPDAT1"
HEAD = 160  # bytes
CHUNK = 1 << 20
MAX_MANIFEST, MAX_CHUNKS = 4096, 1 << 16
MAX_PART, MAX_UKI = 1 << 40, (1 << 32) - 1  # bytes; the second is FAT's
BLOCK = 4096
COMMENT = "imagekit update sha256:"
MANIFEST = re.compile(
    rb"""imagekit\ update\ 1\n
    name:\ (?P<name>[!-~]{1,100})\n
    version:\ (?P<version>[!-~]{1,100})\n
    architecture:\ (?P<arch>[a-z0-9_]{1,32})\n
    generation:\ (?P<generation>0|[1-9][0-9]{0,9})\n
    roothash:\ (?P<root_hash>[0-9a-f]{64}|-)\n
    salt:\ (?P<salt>[0-9a-f]{64}|-)\n
    root:\ (?P<root>0|[1-9][0-9]{0,14})\n
    hashes:\ (?P<hashes>0|[1-9][0-9]{0,14})\n
    uki:\ (?P<uki>[1-9][0-9]{0,14})\n
    chunks:\ (?P<chunks>[1-9][0-9]{0,9})\n
    table:\ sha256:(?P<table>[0-9a-f]{64})\n\Z""",
    re.VERBOSE,
)


class Said(NamedTuple):
    """What an update says of itself."""

    name: str
    version: str
    arch: str
    generation: int
    root_hash: str  # of dm-verity, in hexadecimal digits; "" where the root is in the UKI
    salt: str
    root: int  # bytes
    hashes: int
    uki: int


class Update(NamedTuple):
    """What an open update says of itself, verified; and its chunks' hashes."""

    said: Said
    table: tuple[bytes, ...]


class Parts(NamedTuple):
    """What an update brings; the first two are empty where the root is in the UKI."""

    root: Sparse
    hashes: Sparse
    uki: Sparse


def write(said: Said, parts: Parts, *, key: Key) -> Iterator[bytes]:
    """The update piece by piece; the parts are read twice, and must be the same both times."""
    slots.check(said.name, said.version)
    told = (said.root, said.hashes, said.uki)
    if told != tuple(part.size for part in parts) or not 0 < said.uki <= MAX_UKI or max(told) > MAX_PART:
        raise Problem(f"an update cannot have parts of {', '.join(str(part.size) for part in parts)} bytes")
    table = b"".join(sha256(chunk).digest() for chunk in _chunks(parts))
    if len(table) > 32 * MAX_CHUNKS:
        raise Problem(f"an update of {sum(told)} bytes is larger than the {MAX_CHUNKS * CHUNK} that there may be")
    text = _manifest(said, table)
    first = key.sign_bytes(text)
    second = key.sign_bytes(first + _comment(text))
    lengths = len(text).to_bytes(4, "little") + len(table).to_bytes(4, "little")
    yield MAGIC + lengths + key.number + first + second + bytes(8) + text + table
    yield from _chunks(parts)


def signatures(head: bytes) -> tuple[bytes, bytes]:
    """Both signatures of an update that begins so, which may be anybody's."""
    return head[24:88], head[88:152]


def read(file: BinaryIO, keys: Sequence[Key]) -> Update:
    """What the beginning of an update says, if one of the keys signed it; raises Problem for anything else."""
    head = file.read(HEAD)
    if len(head) != HEAD or head[:8] != MAGIC or any(head[152:]):
        raise Problem("it is no update", '`imagekit build` writes one where formats= has "update"')
    length, rows = int.from_bytes(head[8:12], "little"), int.from_bytes(head[12:16], "little")
    if not 0 < length <= MAX_MANIFEST or not 0 < rows <= 32 * MAX_CHUNKS or rows % 32:
        raise Problem("it is no update: its lengths cannot be")
    text, table = file.read(length), file.read(rows)
    _check_signature(text, head, keys)
    match = MANIFEST.match(text)
    if not match or len(table) != rows or sha256(table).hexdigest() != match["table"].decode():
        raise Problem("it was altered, or is incomplete: its table is not the one that was signed")
    said = _said({name: value.decode() for name, value in match.groupdict().items()})
    if _count(said) * 32 != rows or int(match["chunks"]) * 32 != rows:
        raise Problem("its table is not of what its manifest names")
    return Update(said, tuple(table[at : at + 32] for at in range(0, rows, 32)))


def check(file: BinaryIO, update: Update) -> None:
    """Raise Problem unless what follows in the file is what was signed, and all of it."""
    sizes = (update.said.root, update.said.hashes, update.said.uki)
    lengths = [min(CHUNK, size - at) for size in sizes for at in range(0, size, CHUNK)]
    for number, (length, digest) in enumerate(zip(lengths, update.table, strict=True)):
        data = file.read(length)
        if len(data) != length or sha256(data).digest() != digest:
            raise Problem(f"chunk {number} of {len(lengths)} is not the one that was signed, or is not there")
    if file.read(1):
        raise Problem("something stands behind the update that nobody signed")


def _manifest(said: Said, table: bytes) -> bytes:
    return (
        f"imagekit update 1\nname: {said.name}\nversion: {said.version}\narchitecture: {said.arch}\n"
        f"generation: {said.generation}\nroothash: {said.root_hash or '-'}\nsalt: {said.salt or '-'}\n"
        f"root: {said.root}\nhashes: {said.hashes}\nuki: {said.uki}\n"
        f"chunks: {len(table) // 32}\ntable: sha256:{sha256(table).hexdigest()}\n"
    ).encode()


def _said(found: dict[str, str]) -> Said:
    """Raises Problem for what no update of ours says."""
    root_hash, salt = (found[name].replace("-", "") for name in ("root_hash", "salt"))
    generation, *sizes = (int(found[name]) for name in ("generation", "root", "hashes", "uki"))
    said = Said(found["name"], found["version"], found["arch"], generation, root_hash, salt, *sizes)
    slots.check(said.name, said.version)
    is_whole = len({bool(value) for value in (said.root_hash, said.salt, said.root, said.hashes)}) == 1
    if not is_whole or said.root % BLOCK or said.hashes % BLOCK or said.uki > MAX_UKI or max(sizes) > MAX_PART:
        raise Problem("its manifest does not fit together")
    return said


def _chunks(parts: Parts) -> Iterator[bytes]:
    for part in parts:
        for offset, data in part.blocks(CHUNK):
            yield bytes(min(CHUNK, part.size - offset)) if data is None else data


def _count(said: Said) -> int:
    return sum(-(-size // CHUNK) for size in (said.root, said.hashes, said.uki))


def _comment(text: bytes) -> bytes:
    return f"{COMMENT}{sha256(text).hexdigest()}".encode()


def _check_signature(text: bytes, head: bytes, keys: Iterable[Key]) -> None:
    """Both signatures, by one of the keys that have the number."""
    own = [key for key in keys if key.number == head[16:24]]
    for key in own:
        if ed25519.verify(key.public, head[24:88] + _comment(text), head[88:152]) and ed25519.verify(
            key.public, text, head[24:88]
        ):
            return
    signer = head[16:24][::-1].hex().upper()
    if own:
        raise Problem(f"its signature is not one of key {signer}: it was altered, or is a forgery")
    raise Problem(f"it is signed by key {signer}, which is not trusted", "name the signer's key with --key")
