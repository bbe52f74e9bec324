"""The files that bali makes and runs: a tar, mostly gzipped, whose stream ends with a signature behind the tar's end.

    8 zero bytes, "iksig", 3 zero bytes, 64 bytes: Ed25519ph with the context "bali" over the tar (RFC 8032, 5.1)

as its source has it (github.com/kraudcloud/bali: main.go, verify.go; github.com/devguardio/identity: go/identity.go).
All of it must be unpacked to find the signature; docs/format.md's own files are verified when they are opened.
"""

import zlib
from base64 import b32decode, b32encode
from collections.abc import Generator, Iterable, Iterator, Sequence
from hashlib import sha512
from typing import BinaryIO

from imagekit import ed25519
from imagekit.disk import gzip
from imagekit.errors import Problem
from imagekit.key import Key

CONTEXT = b"bali"
MARK = bytes(8) + b"iksig\0\0\0"
TRAILER = len(MARK) + ed25519.SIGNATURE
KIND = 0x19  # version 1, identity
STEP = 1 << 20


def identity(public: bytes) -> str:
    """A public key as bali prints and takes it."""
    whole = bytes([KIND]) + public
    return "c" + b32encode(whole + bytes([_crc(whole)])).decode().rstrip("=")


def public_of(text: str) -> bytes:
    """The public key of an identity; raises Problem for what is none, or cannot be trusted."""
    try:
        raw = b32decode(text[1:].upper() + "=" * (-(len(text) - 1) % 8))
    except ValueError:
        raw = b""
    if len(raw) != 34 or raw[0] != KIND or identity(raw[1:33]) != text[:1] + text[1:].upper():  # its CRC, too
        raise Problem(f"{text[:80]!a} is no identity of bali", "`bali id` prints one: c, then 55 letters and digits")
    if not ed25519.is_strong(raw[1:33]):
        raise Problem(f"the identity {text} cannot be trusted: anybody's signature may fit it")
    return raw[1:33]


def signer(file: BinaryIO, publics: Sequence[bytes]) -> bytes:
    """Which of the keys signed an open file, all of which is read; raises Problem if none did."""
    pieces = tar(file, publics)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return bytes(end.value)


def tar(file: BinaryIO, publics: Sequence[bytes]) -> Generator[bytes, None, bytes]:
    """The tar in an open file, and then which of the keys signed it; raises Problem behind its last byte if none did.

    So nothing of it may be used before the end.
    """
    total, end = sha512(), b""
    for piece in _plain(file):
        whole = end + piece
        end = whole[-TRAILER:]
        plain = whole[:-TRAILER]
        total.update(plain)
        yield plain
    if len(end) != TRAILER or not end.startswith(MARK):
        raise Problem("it has no signature of bali", "bali's own files end with one")
    signature, digest = end[len(MARK) :], total.digest()
    for public in publics:
        if ed25519.verify_prehashed(public, digest, signature, context=CONTEXT):
            return public
    raise Problem("it is signed by none of the identities that are trusted, or was changed")


def packed(pieces: Iterable[bytes], key: Key) -> Iterator[bytes]:
    """The file of a tar, signed."""
    yield from gzip.member(gzip.runs(_signed(pieces, key)))


def _signed(pieces: Iterable[bytes], key: Key) -> Iterator[bytes]:
    total = sha512()
    for piece in pieces:
        total.update(piece)
        yield piece
    yield MARK + key.sign_prehashed(total.digest(), context=CONTEXT)


def _plain(file: BinaryIO) -> Iterator[bytes]:
    """A tar, or what the one gzip member of a file holds; raises Problem for anything before or after that."""
    data = file.read(STEP)
    if not data.startswith(b"\x1f\x8b"):
        while data:
            yield data
            data = file.read(STEP)
        return
    unpacker = zlib.decompressobj(31)
    try:
        while data and not unpacker.eof:
            yield unpacker.decompress(data, STEP)
            data = unpacker.unconsumed_tail or (b"" if unpacker.eof else file.read(STEP))
        yield unpacker.flush()
    except zlib.error as error:
        raise Problem(f"it cannot be unpacked: {error}") from error
    if not unpacker.eof or unpacker.unused_data or file.read(1):
        raise Problem("it is cut short, or something follows its end")


def _crc(data: bytes) -> int:
    """CRC-8 with the polynomial 0x4d, reflected, as identitykit has it."""
    crc = 0xFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xB2 if crc & 1 else 0)
    return crc ^ 0xFF
