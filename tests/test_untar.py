"""The strict reader of our own tar: what is written comes back; everything else is refused."""

import pytest

from imagekit.disk import tar, untar
from imagekit.errors import Problem
from imagekit.tree import Entry, directory, file, symlink

LONG = "/" + "/".join(["a long name of a folder é"] * 10)
WRITTEN = {
    "/etc": directory(0o750, uid=3, gid=4),
    "/etc/file": file(b"bytes" * 300, mode=0o4755, uid=70_000_000),
    "/etc/empty": file(b""),
    "/etc/link": symlink("../" * 60 + "x"),
    "/etc/hard": Entry("hardlink", 0o4755, uid=70_000_000, target="/etc/file"),  # it is its file
    "/null": Entry("char", 0o666, device=(1, 3)),
    "/pipe": Entry("fifo", 0o600),
    LONG: file(b"far", mode=0o600)._replace(xattrs=(("security.capability", b"\1\0\n=x"),)),
}


def archive(entries=WRITTEN) -> bytes:
    return b"".join(tar.chunks(entries.items())) + tar.END


@pytest.mark.parametrize("step", [1, 511, 1 << 20])
def test_what_is_written_comes_back(step):
    data = archive()
    read = dict(untar.members(data[at : at + step] for at in range(0, len(data), step)))
    assert set(read) == set(WRITTEN)
    for path, entry in WRITTEN.items():
        assert read[path].identity[:5] == entry.identity[:5]
        assert read[path].identity[6:] == entry.identity[6:]
        assert read[path].content == entry.content


def test_every_cut_is_found():
    data = archive({"/a": file(b"1"), LONG: file(b"2")})
    for size in range(0, len(data), 64):
        with pytest.raises(Problem):
            list(untar.members([data[:size]]))


def header(**fields) -> bytes:
    """A header of tar.py with other bytes at some places, its checksum mended."""
    block = bytearray(next(iter(tar.chunks([("/f", file(b""))]))))
    for place, data in fields.items():
        at = int(place[1:])
        block[at : at + len(data)] = data
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(body: bytes) -> bytes:
    return header(_156=b"x", _124=b"%011o\0" % len(body)) + body + bytes(-len(body) % 512)


F = header()
BAD = {
    "nothing at all": (b"", "cut short"),
    "checksum": (F[:1] + b"X" + F[2:] + tar.END, "checksum"),
    "GNU magic": (header(_257=b"ustar  \0") + tar.END, "not ours"),
    "a name prefix": (header(_345=b"x") + tar.END, "not ours"),
    "GNU long name": (header(_156=b"L") + tar.END, "type"),
    "global header": (header(_156=b"g") + tar.END, "type"),
    "size of a link": (header(_156=b"2", _124=b"00000000001\0") + bytes(512) + tar.END, "has a size"),
    "negative size": (header(_124=b"\xff" * 12) + tar.END, "number"),
    "size with blanks": (header(_124=b"         1\0 ") + tar.END, "number"),
    "single zero block": (F + bytes(512), "cut short"),
    "bytes after the end": (F + tar.END + b"x", "follows"),
    "zeros after the end": (F + tar.END + bytes(512), "follows"),
    "half an end": (F + bytes(512) + F, "follows"),
    "two PAX headers": (pax(b"9 path=a\n") * 2 + F + tar.END, "two PAX headers"),
    "PAX for nobody": (pax(b"9 path=a\n") + tar.END, "belongs to no member"),
    "PAX key twice": (pax(b"9 path=a\n" * 2) + F + tar.END, "not ours"),
    "PAX key unknown": (pax(b"10 mtime=\n") + F + tar.END, "not ours"),
    "PAX length too long": (pax(b"99 path=a\n") + F + tar.END, "not ours"),
    "PAX length too short": (pax(b"8 path=a\n") + F + tar.END, "not ours"),
    "PAX length no number": (pax(b"x path=a\n") + F + tar.END, "number"),
    "PAX size no number": (pax(b"11 size=-1\n") + F + tar.END, "number"),
    "PAX body too large": (header(_156=b"x", _124=b"77777777777\0") + tar.END, "bytes of PAX"),
    "zero byte in a name": (pax(b"12 path=a\0b\n") + F + tar.END, "zero byte"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_ours_is_refused(name):
    data, words = BAD[name]
    with pytest.raises(Problem) as caught:
        list(untar.members([data]))
    assert words in str(caught.value)
