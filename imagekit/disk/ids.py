"""Identifiers that are derived, never drawn: the same image has the same partition, file system and disk ids."""

from hashlib import sha256
from uuid import UUID


def guid(seed: str, what: str) -> UUID:
    """An id for one thing of an image (RFC 9562, version 8: 122 bits that the maker chooses)."""
    raw = bytearray(_digest(seed, what)[:16])
    raw[6] = raw[6] & 0x0F | 0x80
    raw[8] = raw[8] & 0x3F | 0x80
    return UUID(bytes=bytes(raw))


def salt(seed: str, what: str) -> bytes:
    """Bytes that differ from image to image, and are no secret."""
    return _digest(seed, f"{what} salt")


def number(seed: str, what: str, bits: int = 32) -> int:
    """A number of so many bits, and never 0, which many fields take for "none"."""
    return int.from_bytes(_digest(seed, what)[:8], "big") % ((1 << bits) - 1) + 1


def _digest(seed: str, what: str) -> bytes:
    return sha256(f"{seed}\n{what}".encode()).digest()
