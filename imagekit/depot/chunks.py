"""A file as a list of blobs that are cut where its content says so, and a long list as a file in its turn.

Two versions of a file then share every blob but those around what changed, wherever it moved to. Cuts are where formats
begin a part of their own (a zstd frame in an initrd, RFC 8878 section 3.1.1; a full flush in a .tar.gz, RFC 1951
section 3.2.4), so that equal packages are equal blobs in every image; at two pairs of bytes, one of which comes every
32 KiB of what is compressed; and before one in eight of the digests of a text (of manifests and SBOMs). A blob is
compressed where that helps, and named by the bytes that are stored, so that nothing is unpacked before it is verified.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

from imagekit.errors import Problem
from imagekit.site import Blob, checked_digest

CUT = re.compile(rb"\x28\xb5\x2f\xfd|(?<=\x00\x00\xff\xff)|(?<=\x7a[\xe0\xe1])|\"[01][0-9a-f]{63}\"", re.DOTALL)
LEAST, MOST = 2 << 10, 128 << 10  # bytes of a piece of a file; the last one may be smaller
WINDOW = 4 << 20  # bytes that are looked at together
TOP = 24  # entries that a list may have; a longer one is cut in its turn
PAGE, LONGEST_PAGE = 16, 64  # entries of a piece of a list: on average, and at most
DEEPEST = 6  # lists above one another: enough for some hundred GiB
LONGEST_ENTRY = 64 + 1 + 6 + 1 + 6 + 1  # "sha256 stored size\n"
LEVEL = 3


class Entry(NamedTuple):
    """A blob of a list, and how many bytes it is when unpacked; it is compressed if it is stored in fewer."""

    blob: Blob
    size: int

    def line(self) -> str:
        """As it stands in a list."""
        return f"{self.blob.digest} {self.blob.size} {self.size}\n"


class Listing(NamedTuple):
    """A file's blobs. depth 0: the file follows; depth 1: a list follows that the file follows from; and so on."""

    depth: int
    entries: tuple[Entry, ...]


def listed(chunks: Iterable[bytes], keep: Callable[[Blob, bytes], object]) -> Listing:
    """The list of a file's blobs, each of which is given to `keep` with what is to be stored."""
    return listed_as(cut(chunks), keep)


def listed_as(pieces: Iterable[bytes], keep: Callable[[Blob, bytes], object]) -> Listing:
    """The same of a file that is in pieces already: of LEAST to MOST bytes, the last one of any."""
    found = [_kept(piece, keep) for piece in pieces]
    depth = 0
    while len(found) > TOP:
        found = [_kept("".join(entry.line() for entry in page).encode(), keep) for page in _pages(found)]
        depth += 1
    return Listing(depth, tuple(found))


def cut(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The pieces of a file; where it is cut depends on the bytes around the cut and on the cut before it."""
    rest = b""
    for chunk in chunks:
        rest += chunk
        if len(rest) >= WINDOW:
            at = 0
            while len(rest) - at > MOST + 4:  # all that a cut depends on is there
                end = _end(rest, at)
                yield rest[at:end]
                at = end
            rest = rest[at:]
    at = 0
    while at < len(rest):
        end = _end(rest, at)
        yield rest[at:end]
        at = end


def unpacked(data: bytes, entry: Entry) -> bytes:
    """The content of a blob whose stored bytes were verified; raises Problem when it is not as large as was said."""
    content = _unpack(data, entry.size) if entry.blob.size < entry.size else data
    if len(content) != entry.size:
        raise Problem(f"the blob {entry.blob.digest} does not unpack to the {entry.size} bytes that its list names")
    return content


def walk(listing: Listing, size: int, read: Callable[[Sequence[Entry]], Iterable[bytes]]) -> Iterator[Entry]:
    """The entries of a file of `size` bytes in order; `read` gives the contents of those that are lists.

    However a list was made, it costs no more than a file of that size can.
    """
    entries: Iterable[Entry] = listing.entries
    most = size // LEAST + len(listing.entries) + 1  # entries of any level
    for _ in range(checked_depth(listing.depth)):
        entries = _parsed(read, list(entries), most)
    total = 0
    for entry in entries:
        total += entry.size
        if total > size:
            break
        yield entry
    if total != size:
        raise Problem(f"the list of a file of {size} bytes names {'more' if total > size else total}")


def entry(digest: object, stored: object, size: object) -> Entry:
    """An entry as a stranger wrote it, if its numbers can be those of a piece."""
    for number in (stored, size):
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= MOST:
            raise Problem(f"{ascii(number)[:40]} is no size of a blob: 1 to {MOST} bytes")
    assert isinstance(stored, int)
    assert isinstance(size, int)
    if stored > size:
        raise Problem(f"the blob {checked_digest(digest)} is stored in {stored} bytes, and is {size}")
    return Entry(Blob(checked_digest(digest), stored), size)


def _end(data: bytes, at: int) -> int:
    last = min(at + MOST, len(data))
    found = CUT.search(data, at + LEAST, last)
    return found.start() if found else last


def _kept(content: bytes, keep: Callable[[Blob, bytes], object]) -> Entry:
    packed = _pack(content)
    stored = packed if len(packed) < len(content) else content
    blob = Blob(sha256(stored).hexdigest(), len(stored))
    keep(blob, stored)
    return Entry(blob, len(content))


def _pages(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """A list in pieces, which end where a digest says so."""
    page: list[Entry] = []
    for one in entries:
        page.append(one)
        if (int(one.blob.digest[-8:], 16) % PAGE == 0 and len(page) > 1) or len(page) == LONGEST_PAGE:
            yield page
            page = []
    if page:
        yield page


def _parsed(read: Callable[[Sequence[Entry]], Iterable[bytes]], pages: Sequence[Entry], most: int) -> list[Entry]:
    if sum(page.size for page in pages) > most * LONGEST_ENTRY:
        raise Problem("a list of blobs is longer than its file allows")
    found: list[Entry] = []
    for text in read(pages):
        try:
            lines = text.decode("ascii").split("\n")
            if lines.pop():
                raise ValueError("its last line has no end")
            for line in lines:
                digest, stored, size = line.split(" ")
                found.append(entry(digest, _number(stored), _number(size)))
        except ValueError as error:
            raise Problem(f"a list of blobs is malformed: {error}") from None
        if len(found) > most:
            raise Problem("a list of blobs is longer than its file allows")
    return found


def _number(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise ValueError(f"{ascii(text)[:40]} is no size")
    return int(text)


def checked_depth(depth: object) -> int:
    """How many lists stand above one another, if that many may."""
    if not isinstance(depth, int) or isinstance(depth, bool) or not 0 <= depth <= DEEPEST:
        raise Problem(f"{ascii(depth)[:40]} is no depth of lists: 0 to {DEEPEST}")
    return depth


def _pack(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True).compress(content)


def _unpack(data: bytes, size: int) -> bytes:
    """At most so many bytes, whatever the frame says of itself."""
    import zstandard

    try:
        reader = zstandard.ZstdDecompressor(max_window_size=1 << 20).stream_reader(data)
        content = reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise Problem(f"a blob does not unpack: {error}") from error
    return bytes(content)
