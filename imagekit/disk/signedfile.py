"""The signed image file: a .tar.gz or an EROFS, behind which stand what it is, a table of its chunks and a signature.

docs/format.md has every byte. Whoever starts an image waits for this module, so it loads nothing that is large. What
comes out of `read` was signed by a key that the caller trusts; what comes out of `chunk` is what that key signed, in
memory that nobody else writes.
"""

import os

from imagekit import ed25519
from imagekit.disk import signedtext
from imagekit.errors import Problem

TYPE_CHECKING = False  # typing's own takes long to load

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    class Trusted(Protocol):
        """What a key must have to verify: `Public` here, or the `Key` of key.py."""

        @property
        def number(self) -> bytes: ...
        @property
        def public(self) -> bytes: ...


MAGIC = b"IKIMAGE1"
MEMBER = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"  # a gzip member with an extra field (RFC 1952, 2.3.1)
NOTHING = b"\x03\0" + bytes(8)  # an empty last block, the CRC-32 and the size of nothing
FRAME = len(MEMBER) + 6 + len(NOTHING)
PIECE = 15_960  # bytes in a member; more than 16,000 in an extra field would make some readers refuse the file
LAST = 160  # bytes in the last member
END = FRAME + LAST
GZIP = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # the beginning of a body that is a gzip member
TAIL = 10  # bytes: an empty last block, CRC-32 and size
FLUSHED = b"\0\0\xff\xff"  # the end of what a full flush writes
ROW = 40  # bytes in the table per chunk
MAX_MANIFEST, MAX_CHUNKS = 1 << 16, 1 << 16
MAX_PACKED, MAX_UNPACKED = 2 << 20, 4 << 20
BLOCK = 4096  # bytes: an EROFS in a bundle begins at a multiple of it
COMMENT = "imagekit image sha256:"


class Public:
    """A public key as a signed file needs it."""

    __slots__ = ("number", "public")

    def __init__(self, number: bytes, public: bytes) -> None:
        self.number, self.public = number, public


class Signed:
    """What a signed file says of itself, verified; and its chunks, which are verified one by one as they are read."""

    __slots__ = (
        "chunks", "key", "manifest", "number", "said", "signatures", "start", "table", "trailer"
    )  # fmt: skip

    said: signedtext.Said  # what the manifest says
    chunks: "Sequence[tuple[int, int, int, bytes]]"  # where it begins in the body, bytes there and unpacked, its sha256
    key: "Trusted | None"  # that signed; None where nobody asked
    number: bytes  # of the signer's key
    signatures: tuple[bytes, bytes]  # of the manifest, and of that signature and the comment
    manifest: bytes
    table: bytes
    trailer: int  # bytes of it
    start: int  # where the body begins in the file: 0 but in a bundle


def read(handle: int, keys: "Iterable[Trusted] | None", *, in_bundle: bool = False) -> Signed:
    """What an open file says of itself, if one of the keys signed it; raises Problem for anything else.

    keys: those that are trusted; None verifies no signature, which is for who is told so by the user.
    in_bundle: a launcher stands before the body. No chunk is looked at.
    """
    size = os.fstat(handle).st_size
    length = trailer_length(os.pread(handle, END, max(size - END, 0)))
    if length > size:
        raise Problem("it is no signed image, or its beginning is missing")
    found = parse(os.pread(handle, length, size - length), keys)
    start = size - length - found.said.body
    if start < 0:
        raise Problem(f"{-start} bytes of it are missing")
    if start and not in_bundle:
        raise Problem(
            f"{start} bytes stand before the image, or in it, that nobody signed",
            "of a bundle, `imagekit verify` knows the launcher; it starts by itself",
        )
    if start % BLOCK and found.said.payload == "erofs":
        raise Problem("its file system does not begin at a whole block")
    found.start = start
    return found


def trailer_length(end: bytes) -> int:
    """Bytes of the trailer that ends with these END bytes; raises Problem unless a signed file ends so."""
    if len(end) != END or end[16:24] != MAGIC or end != _members(b"IS", end[16 : 16 + LAST]) or any(end[168:176]):
        raise Problem("it is not a signed image, or its end is missing", "`imagekit sign` makes one of a .tar.gz")
    manifest, table = _lengths(end)
    if not 0 < manifest <= MAX_MANIFEST or not 0 < table <= MAX_CHUNKS * ROW or table % ROW:
        raise Problem("its end is malformed: no image has such lengths")
    return _length(manifest) + _length(table) + END


def parse(trailer: bytes, keys: "Iterable[Trusted] | None") -> Signed:
    """What a trailer says, if one of the keys signed it; raises Problem for anything else."""
    end = trailer[-END:]
    if len(trailer) != trailer_length(end):
        raise Problem("its end was changed while it was read")
    manifest_length, _ = _lengths(end)
    middle = _length(manifest_length)
    manifest, table = _gathered(trailer[:middle], b"IM"), _gathered(trailer[middle:-END], b"IK")
    found = Signed()
    found.manifest, found.table, found.trailer, found.start = manifest, table, len(trailer), 0
    found.number, found.signatures = end[32:40], (end[40:104], end[104:168])
    found.key = None if keys is None else _signer(found, keys)
    found.said = signedtext.read(manifest)
    if found.said.table != _sha256(table):
        raise Problem("its table of chunks is that of another image")
    found.chunks = _read_table(table, found.said)
    return found


def chunk(handle: int, signed: Signed, number: int) -> bytes:
    """A chunk as it stands in the file, in memory of our own, after its sha256 was compared; raises Problem else."""
    at, packed, _, _ = signed.chunks[number]
    data = os.pread(handle, packed, signed.start + at)
    while len(data) < packed and (more := os.pread(handle, packed - len(data), signed.start + at + len(data))):
        data += more
    return checked(data, signed, number)


def checked(data: bytes, signed: Signed, number: int) -> bytes:
    """`data`, if it is that chunk; raises Problem else."""
    from hashlib import sha256  # OpenSSL's, which takes a while to load

    _, packed, _, digest = signed.chunks[number]
    if len(data) != packed or sha256(data).digest() != digest:
        raise Problem(f"chunk {number} of {len(signed.chunks)} is not the one that was signed: the file was changed")
    return data


def deflate(data: bytes, signed: Signed, number: int) -> bytes:
    """The raw deflate in a chunk of a tar.gz; raises Problem where what stands around it is not as it must be."""
    first, last = number == 0, number == len(signed.chunks) - 1
    inner = data[len(GZIP) * first : len(data) - TAIL * last]  # a chunk between them is not copied
    is_right = len(data) >= len(GZIP) * first + len(FLUSHED) + TAIL * last and inner.endswith(FLUSHED)
    if first and data[: len(GZIP)] != GZIP:
        is_right = False
    if last and (data[-10:-8], data[-4:]) != (b"\x03\0", (signed.said.size & 0xFFFFFFFF).to_bytes(4, "little")):
        is_right = False
    if not is_right:
        raise Problem(f"chunk {number} is not as a chunk of a .tar.gz must be")
    return inner


def comment(manifest: bytes) -> str:
    """The trusted comment of the signature over a manifest."""
    return COMMENT + _sha256(manifest)


def id_of(number: bytes) -> str:
    """A key's number as minisign prints it."""
    return number[::-1].hex().upper()


# --- the frame ------------------------------------------------------------------------------------------------------


def members(manifest: bytes, table: bytes, number: bytes, signatures: tuple[bytes, bytes]) -> bytes:
    """The trailer of these."""
    lengths = len(manifest).to_bytes(4, "little") + len(table).to_bytes(4, "little")
    last = MAGIC + lengths + number + signatures[0] + signatures[1] + bytes(8)
    return _members(b"IM", manifest) + _members(b"IK", table) + _members(b"IS", last)


def _members(tag: bytes, data: bytes) -> bytes:
    """`data` as empty gzip members that carry it."""
    pieces = (data[at : at + PIECE] for at in range(0, len(data), PIECE))
    return b"".join(
        MEMBER + (len(piece) + 4).to_bytes(2, "little") + tag + len(piece).to_bytes(2, "little") + piece + NOTHING
        for piece in pieces
    )


def _gathered(raw: bytes, tag: bytes) -> bytes:
    """What members carry, if every byte around it is as it must be."""
    whole = PIECE + FRAME
    parts = (raw[at : at + whole] for at in range(0, len(raw), whole))
    data = b"".join(part[16 : len(part) - len(NOTHING)] for part in parts)
    if _members(tag, data) != raw:
        raise Problem("its end is malformed: something stands in it that belongs to no image")
    return data


def _length(size: int) -> int:
    return size + FRAME * -(-size // PIECE)


def _lengths(end: bytes) -> tuple[int, int]:
    return int.from_bytes(end[24:28], "little"), int.from_bytes(end[28:32], "little")


def _signer(found: Signed, keys: "Iterable[Trusted]") -> "Trusted":
    """Which of the keys made both signatures, as minisign verifies them."""
    trusted = list(keys)
    first, second = found.signatures
    own = [key for key in trusted if key.number == found.number]
    for key in own:  # anybody can give a key another one's number
        if ed25519.verify(key.public, first + comment(found.manifest).encode(), second) and ed25519.verify(
            key.public, found.manifest, first
        ):
            return key
    if own:
        raise Problem(f"its signature is not one of key {id_of(found.number)}: it was changed, or is a forgery")
    known = ", ".join(id_of(key.number) for key in trusted) or "none"
    raise Problem(f"it is signed by key {id_of(found.number)}, which is not trusted", f"trusted: {known}")


def _sha256(data: bytes) -> str:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found] # 3.11's own: at once there, enough for a table
    except ImportError:
        from hashlib import sha256
    return str(sha256(data).hexdigest())


def _read_table(table: bytes, said: signedtext.Said) -> "list[tuple[int, int, int, bytes]]":
    from struct import iter_unpack

    rows: list[tuple[int, int, int, bytes]] = []
    at, size, is_plain = 0, 0, said.payload == "erofs"
    for packed, unpacked, digest in iter_unpack("<II32s", table):
        if not 0 < packed <= MAX_PACKED or not 0 < unpacked <= MAX_UNPACKED or (is_plain and packed != unpacked):
            raise Problem(f"chunk {len(rows)} has a length that none can have: {packed}, unpacked {unpacked}")
        rows.append((at, packed, unpacked, digest))
        at, size = at + packed, size + unpacked
    if (len(rows), at, size) != (said.chunks, said.body, said.size):
        raise Problem("its chunks do not make up the image that its manifest names")
    return rows
