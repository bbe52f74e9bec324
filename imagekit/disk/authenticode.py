"""Authenticode: the signature inside a program for UEFI, by which firmware decides whether it starts.

Sources: Microsoft's "Windows Authenticode Portable Executable Signature Format" (what is hashed, SpcIndirectData), its
"PE Format" (the attribute certificate table) and RFC 2315 (PKCS #7). A signature here has no signing time and nothing
else that could differ: the same program and key give the same bytes.

What is hashed is the whole file, less the two header fields that signing changes and the signature. The specification
hashes sections by their rows, so a file with gaps between sections could be read two ways; those are refused.
"""

import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import NamedTuple

from imagekit import der, pkcs7, rsa
from imagekit.der import Value
from imagekit.disk import pe
from imagekit.disk.sparse import glance
from imagekit.errors import Problem
from imagekit.pkcs7 import ALGORITHM, CONTENT_TYPE, MESSAGE_DIGEST
from imagekit.rsa import Certificate, Pair
from imagekit.store import Stored, flow, size_of

Pieces = Sequence[bytes | Stored]
ALIGNMENT = 8  # of the certificate table and of each row in it
CERTIFICATE = struct.Struct("<IHH")  # WIN_CERTIFICATE: length, revision, type
REVISION, PKCS = 0x0200, 0x0002
CHECKSUM, DIRECTORIES, SECURITY = 64, 108, 112 + 8 * 4  # offsets in a PE32+ optional header
MAX_SIGNATURE = 1 << 16  # bytes
SPC_INDIRECT, SPC_PE_IMAGE = "1.3.6.1.4.1.311.2.1.4", "1.3.6.1.4.1.311.2.1.15"
OBSOLETE = "<<<Obsolete>>>".encode("utf-16-be")  # SpcLink's one value; every signer writes it
IMAGE = der.make(  # SpcPeImageData: no flags, no page hashes
    der.SEQUENCE, der.make(der.BITS, b"\0"), der.make(0xA0, der.make(0xA2, der.make(0x80, OBSOLETE)))
)


class _Plan(NamedTuple):
    """A program as it is hashed."""

    head: bytes  # its beginning, up to `pe.HEAD` bytes
    checksum: int  # offset of the field
    security: int  # offset of the data directory's row
    end: int  # of what is hashed; a signature may follow
    size: int  # of the file


def digest(pieces: Pieces, *, what: str = "the program") -> bytes:
    """The SHA-256 by which firmware knows a program, less the signature that it may have; read piece by piece."""
    plan = _plan(pieces, what)
    total, at = sha256(), 0
    holes = ((plan.checksum, plan.checksum + 4), (plan.security, plan.security + 8), (plan.end, plan.size))
    for data in flow(pieces):
        begin = 0
        for first, last in holes:
            first, last = (min(max(edge - at, begin), len(data)) for edge in (first, last))
            total.update(data[begin:first])
            begin = last
        total.update(data[begin:])
        at += len(data)
    return total.digest()


def signed(pieces: Pieces, pair: Pair, *, what: str = "the program") -> list[bytes | Stored]:
    """A program with a signature; the same at each time. Raises Problem when it has one already.

    One whose size is no multiple of 8 gets zeros, which are hashed and stay when it is stripped.
    """
    pieces = [*pieces, bytes(-sum(map(size_of, pieces)) % ALIGNMENT)]
    plan = _plan(pieces, what)
    if plan.end != plan.size:
        raise Problem(f"{what} is signed already", "strip it first, or sign what it was made from")
    made = signature(digest(pieces, what=what), pair)
    row = CERTIFICATE.pack(CERTIFICATE.size + len(made), REVISION, PKCS) + made
    row += bytes(-len(row) % ALIGNMENT)
    head, rest = _cut(pieces, plan.security + 8)
    head = head[: plan.security] + struct.pack("<II", plan.size, len(row))
    return [head, *rest, row]


def strip(data: bytes, *, what: str = "the program") -> bytes:
    """A program without its signature."""
    plan = _plan([data], what)
    return data[: plan.security] + bytes(8) + data[plan.security + 8 : plan.end]


def verify(data: bytes, certificate: Certificate, *, what: str = "the program") -> bytes:
    """The digest of a program whose one signature is by this certificate's key. Raises Problem for any other."""
    plan = _plan([data], what)
    if plan.end == plan.size:
        raise Problem(f"{what} is not signed")
    found, told = digest([data], what=what), _told(_table(data[plan.end :], what), certificate, what)
    if found != told:
        raise Problem(f"{what} was altered: it has the digest {found.hex()[:16]}…, and {told.hex()[:16]}… was signed")
    return found


def signature(of: bytes, pair: Pair) -> bytes:
    """The PKCS #7 of a program that has this digest."""
    image = der.make(der.SEQUENCE, der.oid(SPC_PE_IMAGE), IMAGE)
    content = image + der.make(der.SEQUENCE, ALGORITHM, der.make(der.OCTETS, of))
    whole = pkcs7.signed_data(pair, content, kind=SPC_INDIRECT)
    return der.make(der.SEQUENCE, der.oid(pkcs7.SIGNED_DATA), der.make(0xA0, whole))


# --- the file -------------------------------------------------------------------------------------------------------


def _plan(pieces: Pieces, what: str) -> _Plan:
    """Raises Problem unless headers, sections and signature lie one behind the other."""
    size = sum(map(size_of, pieces))
    head = _begin(pieces, min(size, pe.HEAD))
    image = pe.read(head, what=what, size=size)
    (headers,) = struct.unpack_from("<I", head, image.optional + 60)
    (directories,) = struct.unpack_from("<I", head, image.optional + DIRECTORIES)
    if directories < 5 or image.optional + SECURITY + 8 > image.table:
        raise Problem(f"{what} has no place for a signature in its headers")
    end = headers
    for section in sorted((s for s in image.sections if s.raw_size), key=lambda s: s.offset):
        if section.offset != end:
            raise Problem(f"{what}: section {section.name!r} begins at {section.offset}, not at {end}: a gap")
        end = section.end
    place, length = struct.unpack_from("<II", head, image.optional + SECURITY)
    if (place or length) and (place % ALIGNMENT or place < end or place + length != size or length % ALIGNMENT):
        raise Problem(f"{what}: its signature does not lie behind all else")
    return _Plan(head, image.optional + CHECKSUM, image.optional + SECURITY, place or size, size)


def _begin(pieces: Pieces, size: int) -> bytes:
    """The first `size` bytes, at which is looked before all of them are checked."""
    head = b""
    for piece in pieces:
        head += glance(piece, 0, size - len(head))
        if len(head) >= size:
            break
    return head


def _cut(pieces: Pieces, size: int) -> tuple[bytes, list[bytes | Stored]]:
    """The first `size` bytes, and the rest as pieces."""
    head, rest = b"", list(pieces)
    while len(head) < size:
        piece = b"".join(flow([rest.pop(0)]))
        left = size - len(head)
        head += piece[:left]
        if len(piece) > left:
            rest.insert(0, piece[left:])
    return head, rest


# --- the signature --------------------------------------------------------------------------------------------------


def _table(table: bytes, what: str) -> bytes:
    """The PKCS #7 of a certificate table with one row, whose length may count the zeros behind it or not."""
    length, revision, kind = CERTIFICATE.unpack_from(table) if len(table) >= CERTIFICATE.size else (0, 0, 0)
    padded = length + -length % ALIGNMENT
    if not CERTIFICATE.size < length <= MAX_SIGNATURE or padded != len(table) or (revision, kind) != (REVISION, PKCS):
        raise Problem(f"{what}: its certificate table is not one signature of PKCS #7")
    try:
        whole = der.first(table[CERTIFICATE.size : length]).whole
    except ValueError as error:
        raise Problem(f"{what}: its signature is damaged: {error}") from error
    end = CERTIFICATE.size + len(whole)
    if any(table[end:]) or len(table) - end >= ALIGNMENT or length not in (end, len(table)):
        raise Problem(f"{what}: something follows its signature")
    return whole


def _told(whole: bytes, certificate: Certificate, what: str) -> bytes:
    """The digest that a PKCS #7 tells, where the certificate's key signed it."""
    try:
        content, signers = _signed_data(whole, certificate)
        _expect(len(signers) == 1, "it has not one signer")
        _check_signer(signers[0], content, certificate)
        image, told = content.parts()
        _expect(image.parts()[0].whole == der.oid(SPC_PE_IMAGE), "it is not of a program")
        algorithm, value = told.parts()
        _expect(algorithm.whole == ALGORITHM and len(value.held(der.OCTETS)) == 32, "its hash is not SHA-256")
        return value.content
    except ValueError as error:  # no DER, or another number of parts
        raise Problem(f"{what}: its signature is damaged: {error}") from error
    except Problem as problem:
        raise Problem(f"{what}: its signature is not one to believe: {problem.message}") from problem


def _signed_data(whole: bytes, certificate: Certificate) -> tuple[Value, list[Value]]:
    """(SpcIndirectDataContent, signers) of a ContentInfo (RFC 2315, 7 and 9.1)."""
    kind, explicit = der.only(whole).parts()
    _expect(kind.whole == der.oid(pkcs7.SIGNED_DATA), "it is no signed data")
    (data,) = explicit.parts(0xA0)
    version, algorithms, inner, certificates, signers = data.parts()
    _expect(der.natural(version) == 1 and certificates.held(0xA0) == certificate.whole, "it is by another certificate")
    _expect(algorithms.held(der.SET) == ALGORITHM, "its hash is not SHA-256")
    inner_kind, inner_explicit = inner.parts()
    _expect(inner_kind.whole == der.oid(SPC_INDIRECT), "it is not of a program")
    (content,) = inner_explicit.parts(0xA0)
    return content, signers.parts(der.SET)


def _check_signer(signer: Value, content: Value, certificate: Certificate) -> None:
    """The attributes speak of this content, and are signed by this certificate's key (RFC 2315, 9.2 and 9.3)."""
    version, who, algorithm, attributes, kind, value = signer.parts()
    _expect(der.natural(version) == 1 and kind.held(der.SEQUENCE) == der.oid(rsa.RSA) + rsa.NULL, "it is not RSA")
    _expect(who.held(der.SEQUENCE) == certificate.issuer + certificate.serial, "it is by another certificate")
    _expect(algorithm.whole == ALGORITHM, "its hash is not SHA-256")
    pairs = [attribute.parts() for attribute in attributes.parts(0xA0)]
    found = {name.whole: told.held(der.SET) for name, told in pairs}
    _expect(len(found) == len(pairs), "it says something twice")
    _expect(found.get(der.oid(CONTENT_TYPE)) == der.oid(SPC_INDIRECT), "it is not of a program")
    told = der.make(der.OCTETS, sha256(content.held(der.SEQUENCE)).digest())
    _expect(found.get(der.oid(MESSAGE_DIGEST)) == told, "it is not of this content")
    whole = sha256(der.make(der.SET, attributes.content)).digest()
    _expect(certificate.public.verify(whole, value.held(der.OCTETS)), "it does not fit the certificate's key")


def _expect(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise Problem(otherwise)
