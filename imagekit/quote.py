"""Quotes: what a TPM says of its PCRs and signs, read strictly; every byte of them may be a stranger's.

Source: "Trusted Platform Module Library", part 2 (structures): TPMT_PUBLIC 12.2.4, TPMS_ATTEST 10.12.12,
TPMS_CLOCK_INFO 10.11.1, TPMS_QUOTE_INFO 10.12.4, TPMT_SIGNATURE 11.3.4. One kind of key is taken, as inside/attest.c
asks for it: made from the seed of the endorsement hierarchy by a fixed template, hence the same at each boot and
nowhere stored; restricted, hence signing only what the TPM itself made, which begins with a magic number.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

from imagekit.ecdsa import COORDINATE, verify_p256
from imagekit.errors import Problem

MAGIC = 0xFF544347  # TPM_GENERATED_VALUE
QUOTE = 0x8018  # TPM_ST_ATTEST_QUOTE
ECC, ECDSA, SHA256, NULL, P256 = 0x0023, 0x0018, 0x000B, 0x0010, 0x0003
ENDORSEMENT = 0x4000000B  # TPM_RH_ENDORSEMENT
ATTRIBUTES = 0x00050472  # fixedTPM fixedParent sensitiveDataOrigin userWithAuth noDA restricted sign
PCRS = 24  # a TPM for a PC has so many
DIGEST = 32  # bytes of sha256
NONCE = 32  # bytes


def _numbers(*each: tuple[int, int]) -> bytes:
    return b"".join(value.to_bytes(size) for size, value in each)


TEMPLATE = _numbers((2, ECC), (2, SHA256), (4, ATTRIBUTES), (2, 0)) + _numbers(
    (2, NULL), (2, ECDSA), (2, SHA256), (2, P256), (2, NULL)
)


class Key(NamedTuple):
    """A key that a TPM attests with."""

    public: bytes  # its TPMT_PUBLIC
    point: tuple[bytes, bytes]

    @property
    def name(self) -> bytes:
        """Its name: part 1, 16."""
        return _named(self.public)

    @property
    def qualified_name(self) -> bytes:
        """The name that tells whose child it is as well: the endorsement hierarchy's."""
        return _named(ENDORSEMENT.to_bytes(4) + self.name)


class Quote(NamedTuple):
    """What a TPM said; nobody's word before `signed` took it."""

    signer: bytes  # qualified name of the key
    nonce: bytes
    clock: int  # milliseconds that the TPM has run in its life
    resets: int  # how often the machine was started since the TPM was cleared
    restarts: int  # and how often it went on from hibernation or sleep since
    pcrs: tuple[int, ...]
    digest: bytes  # sha256 of their values, one after the other


class _Bytes:
    """Bytes of a stranger, taken from the front."""

    def __init__(self, data: bytes, what: str) -> None:
        self.left, self.what = data, what

    def take(self, size: int) -> bytes:
        taken, self.left = self.left[:size], self.left[size:]
        if len(taken) < size:
            raise Problem(f"{self.what} is cut")
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def sized(self, most: int) -> bytes:
        """A TPM2B."""
        size = self.number(2)
        if size > most:
            raise Problem(f"{self.what} has a field of {size} bytes, more than {most}")
        return self.take(size)

    def expect(self, size: int, wanted: int, name: str) -> None:
        if (found := self.number(size)) != wanted:
            raise Problem(f"{self.what}: its {name} is {found:#x}, not {wanted:#x}")

    def end(self) -> None:
        if self.left:
            raise Problem(f"{self.what} has {len(self.left)} bytes too many")


def key(public: bytes) -> Key:
    """The key of a TPMT_PUBLIC. Raises Problem for one of another template: it might sign what no TPM made."""
    what = _Bytes(public, "the attestation key")
    if what.take(len(TEMPLATE)) != TEMPLATE:
        raise Problem("the attestation key is of another kind: not a restricted signing key of P-256, made in the TPM")
    point = _coordinate(what), _coordinate(what)
    what.end()
    return Key(public, point)


def signed(by: Key, data: bytes, signature: bytes) -> Quote:
    """The quote that these bytes are, of that key's TPM. Raises Problem if the key did not sign them."""
    what = _Bytes(signature, "the quote's signature")
    what.expect(2, ECDSA, "algorithm")
    what.expect(2, SHA256, "hash")
    numbers = _coordinate(what), _coordinate(what)
    what.end()
    if not verify_p256(by.point, numbers, data):
        raise Problem("the quote is not signed by the attestation key: it is forged, or was altered on its way")
    quote = _quote(data)
    if quote.signer != by.qualified_name:
        raise Problem("the quote's key is not one of the TPM's endorsement hierarchy")
    return quote


def check_pcrs(quote: Quote, values: Mapping[int, bytes], *, wanted: tuple[int, ...]) -> None:
    """Raise Problem unless these values are the quoted ones, and of all the PCRs that are wanted."""
    if quote.pcrs != wanted:
        missing = sorted(set(wanted) - set(quote.pcrs))
        which = f"leaves out PCR {', '.join(map(str, missing))}" if missing else "is of more PCRs than were asked for"
        raise Problem(f"the quote {which}")
    if sha256(b"".join(values[pcr] for pcr in wanted)).digest() != quote.digest:
        raise Problem("the PCRs' values are not those that were quoted")


def _quote(data: bytes) -> Quote:
    what = _Bytes(data, "the quote")
    what.expect(4, MAGIC, "magic number")
    what.expect(2, QUOTE, "type")
    signer, nonce = what.sized(2 + DIGEST), what.sized(2 + 64)
    clock, resets, restarts = what.number(8), what.number(4), what.number(4)
    what.take(1 + 8)  # whether the clock was saved in time; the TPM's firmware
    what.expect(4, 1, "number of PCR banks")
    what.expect(2, SHA256, "PCR bank")
    what.expect(1, PCRS // 8, "size of a selection")
    bits = int.from_bytes(what.take(PCRS // 8), "little")
    digest = what.sized(DIGEST)
    what.end()
    pcrs = tuple(pcr for pcr in range(PCRS) if bits >> pcr & 1)
    return Quote(signer, nonce, clock, resets, restarts, pcrs, digest)


def _coordinate(what: _Bytes) -> bytes:
    """A number of the curve; some TPMs leave zeros in front away."""
    return what.sized(COORDINATE).rjust(COORDINATE, b"\0")


def _named(data: bytes) -> bytes:
    return SHA256.to_bytes(2) + sha256(data).digest()
