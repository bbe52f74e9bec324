"""A strict reader of the initrd that initrd.py writes: zstd frames, each with a newc archive of a part of the tree.

Sources: RFC 8878, sections 3.1.1 and 3.1.1.2, for where a frame ends; cpio.py names that of newc. Nothing but what our
own writer writes is taken, and how much it unpacks to is known before it is unpacked.
"""

import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import NamedTuple

from imagekit.disk import cpio
from imagekit.errors import Problem
from imagekit.tree import Entry

KINDS = {kind: name for name, kind in cpio.TYPES.items() if name != "hardlink"}
HEAD, ZSTD = 110, b"\x28\xb5\x2f\xfd"
RECORD = re.compile(rb"070701[0-9A-F]{104}\Z")
TAKES = {name: name in ("file", "symlink") for name in KINDS.values()}  # whether a kind has bytes
RAW, RLE, COMPRESSED = 0, 1, 2  # types of a block


Alike = tuple[object, ...]  # what all names of a file have alike: inode, links, owner, mode


class Frame(NamedTuple):
    """Where a zstd frame lies, and how many bytes it unpacks to."""

    start: int
    end: int
    size: int


def members(data: bytes, *, most: int) -> Iterator[tuple[str, Entry]]:
    """Every member of an initrd with the digest of its bytes, which are not kept; frames are unpacked side by side.

    most: bytes that all of it may unpack to. Raises Problem for what imagekit does not write.
    """
    found = list(_frames(data))
    if (size := sum(frame.size for frame in found)) > most:
        raise Problem(f"it unpacks to {size} bytes, and the tree takes {most} at most")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # unpacking and hashing let go of Python's lock
        for part in pool.map(lambda frame: _archive(data, frame), found):
            yield from part


def _frames(data: bytes) -> Iterator[Frame]:
    import zstandard

    at = 0
    while at < len(data):
        try:
            about = zstandard.get_frame_parameters(data[at : at + 18])  # as long as a head can be
            start = at + zstandard.frame_header_size(data[at : at + 18])
        except zstandard.ZstdError as error:
            raise Problem(f"there is no zstd frame at {at}") from error
        if data[at : at + 4] != ZSTD or about.content_size >= 1 << 62:  # "not told" is a number beyond that
            raise Problem(f"the zstd frame at {at} does not tell its size")
        end = _end(data, start) + 4 * about.has_checksum
        yield Frame(at, end, about.content_size)
        at = end + -end % 4
        if data[end:at].strip(b"\0") or at > len(data):
            raise Problem(f"something lies between two frames, at {end}")


def _end(data: bytes, at: int) -> int:
    """Where the blocks of a frame end."""
    is_last = 0
    while not is_last:
        head = int.from_bytes(data[at : at + 3], "little")
        is_last, kind, size = head & 1, head >> 1 & 3, head >> 3
        at += 3 + (1 if kind == RLE else size)
        if at > len(data) or kind not in (RAW, RLE, COMPRESSED):
            raise Problem("a zstd frame is cut short")
    return at


def _archive(data: bytes, frame: Frame) -> list[tuple[str, Entry]]:
    import zstandard

    try:
        plain = zstandard.ZstdDecompressor().decompress(
            memoryview(data)[frame.start : frame.end], max_output_size=frame.size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise Problem(f"the zstd frame at {frame.start} is broken: {error}") from error
    return list(_members(plain))


def _members(plain: bytes) -> Iterator[tuple[str, Entry]]:
    """The members of one archive, which ends where the bytes do."""
    at, view = 0, memoryview(plain)
    groups: dict[Alike, list[str]] = {}  # names of one file, by its inode, as long as some of them are to come
    while True:
        inode, mode, uid, gid, links, size, device, name = _numbers(plain, at)
        start = at + HEAD + len(name) + 1
        start += -start % 4
        end = start + size
        body = view[start:end]
        kind = KINDS.get(stat.S_IFMT(mode), "")
        entry = Entry(kind, stat.S_IMODE(mode), uid, gid, device=device)
        path = "/" + name.decode("utf-8", "surrogateescape")
        if name == cpio.TRAILER.encode():
            kind, path, entry = "trailer", name.decode(), Entry("file", 0)
        elif kind == "symlink":
            entry = entry._replace(target=bytes(body).decode("utf-8", "surrogateescape"))
        elif kind == "file":
            entry = entry._replace(size=size, sha256=sha256(body).hexdigest())
        written = cpio.head(path, entry, inode, links=links, size=size, mode=None if kind in TAKES else 0)
        fits = plain[at:start] == written and len(body) == size and not bytes(view[end : end + -end % 4]).strip(b"\0")
        if not fits or not kind or (size and not TAKES.get(kind)) or (links != 1 and not (kind == "file" and links)):
            raise Problem(f"the record of {path!a} is not written as imagekit writes it")
        at = end + -end % 4
        if path == cpio.TRAILER:
            break
        if kind == "file" and links > 1:
            yield from _grouped(groups, inode, links, path, entry)
        else:
            yield path, entry
    if at != len(plain) or groups:
        raise Problem("something follows the end of an archive" if at != len(plain) else "a hard link is missing")


def _grouped(
    groups: dict[Alike, list[str]], inode: int, links: int, path: str, entry: Entry
) -> Iterator[tuple[str, Entry]]:
    """The names of one file when the last of them has come, which has the bytes: the first is the file."""
    alike = (inode, links, entry.device, *entry[:4])
    names = groups.setdefault(alike, [])
    names.append(path)
    if len(names) < links:
        if entry.size:
            raise Problem(f"{path!a} has bytes, and is not the last of its links")
        return
    first, *others = groups.pop(alike)
    yield first, entry
    for other in others:
        yield other, entry._replace(kind="hardlink", size=0, sha256="", target=first)


def _numbers(plain: bytes, at: int) -> tuple[int, int, int, int, int, int, tuple[int, int], bytes]:
    """(inode, mode, uid, gid, links, size, device, name) of the record there."""
    head = plain[at : at + HEAD]
    if not RECORD.match(head):
        raise Problem("an archive is cut short, or is none")
    inode, mode, uid, gid, links, _, size, _, _, major, minor, length, _ = (
        int(head[n : n + 8], 16) for n in range(6, HEAD, 8)
    )
    name = plain[at + HEAD : at + HEAD + length]
    return inode, mode, uid, gid, links, size, (major, minor), name[:-1]
