"""Tars byte by byte, good and evil, for what reads them."""

END = bytes(1024)
USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \0", bytes(8)
FIELDS = {  # name -> where it lies
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "kind": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "major": (329, 8),
    "minor": (337, 8),
    "prefix": (345, 155),
}
USUAL = {
    "name": b"a",
    "mode": b"0000644\0",
    "uid": b"0000000\0",
    "gid": b"0000000\0",
    "size": b"00000000000\0",
    "mtime": b"00000000000\0",
    "kind": b"0",
    "magic": USTAR,
}


def block(**fields: bytes) -> bytes:
    """A header with these raw fields and the right checksum."""
    made = bytearray(512)
    for name, value in {**USUAL, **fields}.items():
        at, width = FIELDS[name]
        assert len(value) <= width
        made[at : at + len(value)] = value
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    return bytes(made)


def member(name: bytes = b"a", data: bytes = b"", **fields: bytes) -> bytes:
    """A member with its bytes."""
    size = b"%011o\0" % len(data)
    return block(**{"name": name, "size": size, **fields}) + data + bytes(-len(data) % 512)


def folder(name: bytes, **fields: bytes) -> bytes:
    return member(name, kind=b"5", **{"mode": b"0000755\0", **fields})


def link(name: bytes, target: bytes, kind: bytes = b"2") -> bytes:
    return member(name, kind=kind, link=target)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A PAX header with these records."""
    body = b""
    for key, value in records:
        rest = len(key) + len(value) + 3
        length = rest + len(str(rest))
        body += b"%d %s=%s\n" % (rest + len(str(length)), key, value)
    return member(b"PaxHeader", body, kind=kind)


def gnu(name: bytes, kind: bytes = b"L") -> bytes:
    """What GNU tar writes before a member with a long name (L) or target (K)."""
    return member(b"././@LongLink", name + b"\0", kind=kind, magic=GNU)
