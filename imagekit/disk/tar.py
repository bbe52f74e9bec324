"""Canonical tar: POSIX ustar (IEEE Std 1003.1-2017, pax) with PAX records only for what ustar cannot hold.

One tree has one tar: sorted, times zero, numeric owners, no user names. Every reader agrees on what it writes.
"""

from collections.abc import Iterable, Iterator, Mapping
from zlib import crc32

from imagekit.tree import Entry

TYPES = {
    "file": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "dir": b"5",
    "fifo": b"6",
}
END = bytes(1024)  # two zero blocks
LARGE, RUN = 32 << 10, 32  # bytes of a file that is a run by itself, and the files of another run, on average


def chunks(entries: Iterable[tuple[str, Entry]], *, binary: bool = False) -> Iterator[bytes]:
    """The members of these paths, parents first and hard links last, without the end of the archive.

    binary: say of every long name that is more than ASCII that it is bytes, for readers whose locale knows no UTF-8.
    """
    ordered = _ordered(entries)
    files = {path: entry for path, entry in ordered if entry.kind == "file"}
    yield from _members(ordered, files, binary=binary)


def runs(entries: Iterable[tuple[str, Entry]]) -> Iterator[Iterator[bytes]]:
    """The same in runs that are worth compressing apart, each to be taken before the next one.

    A large file is a run, and of the others about one in RUN begins one, as its path says: so a file that changed
    changes what its run is compressed to, and nothing else, whatever came or went around it.
    """
    ordered = _ordered(entries)
    files = {path: entry for path, entry in ordered if entry.kind == "file"}
    run: list[tuple[str, Entry]] = []
    for path, entry in ordered:
        is_large = entry.kind == "file" and entry.size >= LARGE
        if run and (is_large or crc32(path.encode("utf-8", "surrogateescape")) % RUN == 0):
            yield _members(run, files)
            run = []
        run.append((path, entry))
        if is_large:
            yield _members(run, files)
            run = []
    if run:
        yield _members(run, files)


def _ordered(entries: Iterable[tuple[str, Entry]]) -> list[tuple[str, Entry]]:
    return sorted(entries, key=lambda item: (item[1].kind == "hardlink", item[0].split("/")))


def _members(
    ordered: Iterable[tuple[str, Entry]], files: Mapping[str, Entry], *, binary: bool = False
) -> Iterator[bytes]:
    for path, entry in ordered:
        yield head(path, _like_its_file(entry, files), binary=binary)
        if entry.kind == "file":
            data = entry.read()
            yield data
            yield bytes(-len(data) % 512)


def _like_its_file(entry: Entry, files: Mapping[str, Entry]) -> Entry:
    """A hard link with mode and owner of its file: some readers, mke2fs for one, give the file those of the link."""
    of = files.get(entry.target, entry) if entry.kind == "hardlink" else entry
    return entry._replace(mode=of.mode, uid=of.uid, gid=of.gid)


def head(path: str, entry: Entry, *, binary: bool = False) -> bytes:
    """What stands before a member's bytes: its header, behind PAX records where it needs some."""
    name = (path.lstrip("/") + "/" * (entry.kind == "dir")).encode("utf-8", "surrogateescape")
    link = entry.target.lstrip("/") if entry.kind == "hardlink" else entry.target
    target = link.encode("utf-8", "surrogateescape")
    records = _pax_records(name, target, entry, binary=binary)
    size = entry.size if entry.kind == "file" else 0
    block = _block(name[:100], TYPES[entry.kind], entry, min(size, 0o77777777777), target[:100])
    if not records:
        return block
    body = b"".join(records)
    before = _block(b"PaxHeader", b"x", Entry("file", 0o644), len(body), b"")
    return before + body + bytes(-len(body) % 512) + block


def _pax_records(name: bytes, target: bytes, entry: Entry, *, binary: bool) -> list[bytes]:
    long = b"".join(text for text in (name, target) if len(text) > 100)
    records = [_record(b"hdrcharset", b"BINARY")] if _is_bytes(long, binary=binary) else []
    if len(name) > 100:
        records.append(_record(b"path", name))
    if len(target) > 100:
        records.append(_record(b"linkpath", target))
    if entry.size > 0o77777777777:
        records.append(_record(b"size", b"%d" % entry.size))
    records += [_record(b"SCHILY.xattr." + key.encode(), value) for key, value in entry.xattrs]
    return records


def _is_bytes(text: bytes, *, binary: bool) -> bool:
    """Whether a name must be said to be bytes: a record is UTF-8 else ("pax Extended Header", hdrcharset)."""
    try:
        text.decode("ascii" if binary else "utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _record(key: bytes, value: bytes) -> bytes:
    """'LENGTH KEY=VALUE\\n', where LENGTH counts itself (pax, "pax Extended Header")."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(name: bytes, kind: bytes, entry: Entry, size: int, target: bytes) -> bytes:
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b"%07o\0" % entry.mode
    block[108:116] = b"%07o\0" % entry.uid if entry.uid < 0o10000000 else _binary(entry.uid)
    block[116:124] = b"%07o\0" % entry.gid if entry.gid < 0o10000000 else _binary(entry.gid)
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"%011o\0" % 0  # modification time
    block[148:156] = b" " * 8  # the checksum counts as blanks while it is made
    block[156:157] = kind
    block[157 : 157 + len(target)] = target
    block[257:265] = b"ustar\x0000"
    if kind in b"34":
        block[329:337] = b"%07o\0" % entry.device[0]
        block[337:345] = b"%07o\0" % entry.device[1]
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _binary(number: int) -> bytes:
    """Base-256, as GNU tar writes a number too large for octal digits."""
    return (number | 1 << 63).to_bytes(8, "big")
