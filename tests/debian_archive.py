"""A tiny Debian archive for tests: packages made from dictionaries, indices, an InRelease signed by a throw-away key.

`deb(...)` makes the bytes of one package; `Archive` lays several out as a mirror does, in a folder that `served` serves
on a loopback address. Nothing here is used outside tests.
"""

import lzma
from collections.abc import Iterable, Mapping
from typing import NamedTuple

BLOCK = 512


class Item(NamedTuple):
    """One member of a data.tar: `data` makes a file, `link` a symlink, `hard` a hard link, none of them a folder."""

    name: str
    data: bytes | None = None
    mode: int = 0o644
    link: str = ""
    hard: str = ""
    uid: int = 0
    gid: int = 0


def folders(*names: str) -> list[Item]:
    """Folders, as dpkg-deb lists them: ./ first."""
    return [Item("./", mode=0o755), *(Item(f"./{name}/", mode=0o755) for name in names)]


def header(
    name: bytes, flag: bytes, *, mode: int = 0o644, size: int = 0, link: bytes = b"", uid: int = 0, gid: int = 0
) -> bytes:
    """A GNU tar header as dpkg-deb writes it."""
    fields = [name[:100].ljust(100, b"\0"), b"%07o\0" % mode, b"%07o\0" % uid, b"%07o\0" % gid, b"%011o\0" % size]
    fields += [b"%011o\0" % 0, b" " * 8, flag, link[:100].ljust(100, b"\0"), b"ustar  \0", bytes(247)]
    raw = bytearray(b"".join(fields))
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(data: bytes) -> bytes:
    """`data` filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def long_name(name: bytes, flag: bytes) -> bytes:
    """A GNU long name (flag L) or long link (flag K)."""
    return header(b"././@LongLink", flag, size=len(name) + 1) + padded(name + b"\0")


def member(item: Item) -> bytes:
    """A member of a tar archive."""
    name = item.name.encode()
    target = (item.link or item.hard).encode()
    flag = b"2" if item.link else b"1" if item.hard else b"5" if item.data is None else b"0"
    data = item.data or b""
    long = long_name(name, b"L") if len(name) > 100 else b""
    long += long_name(target, b"K") if len(target) > 100 else b""
    made = header(name, flag, mode=item.mode, size=len(data), link=target, uid=item.uid, gid=item.gid)
    return long + made + padded(data)


def tar(items: Iterable[Item]) -> bytes:
    """A whole tar archive."""
    return b"".join(map(member, items)) + bytes(2 * BLOCK)


def ar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A whole ar archive."""
    parts = [b"!<arch>\n"]
    for name, data in members:
        parts.append(
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return b"".join(parts)


def xz(data: bytes) -> bytes:
    """`data` compressed as dpkg-deb does by default, but faster."""
    return lzma.compress(data, preset=0)


def control(name: str, version: str, architecture: str, fields: Mapping[str, str]) -> str:
    """The text of a control file."""
    about = {"Package": name, "Version": version, "Architecture": architecture, "Maintainer": "a test"}
    return "".join(f"{key}: {value}\n" for key, value in {**about, **fields, "Description": "a test"}.items())


def deb(
    name: str = "tiny",
    items: Iterable[Item] = (),
    *,
    version: str = "1",
    architecture: str = "all",
    fields: Mapping[str, str] | None = None,
    scripts: Mapping[str, str] | None = None,
    data_tar: tuple[str, bytes] | None = None,
) -> bytes:
    """The bytes of a package; `data_tar` replaces its data member whole, for the broken ones."""
    texts = {"control": control(name, version, architecture, fields or {}), **(scripts or {})}
    control_tar = tar([Item("./", mode=0o755), *(Item(f"./{key}", text.encode()) for key, text in texts.items())])
    data = data_tar or ("data.tar.xz", xz(tar(items)))
    return ar((("debian-binary", b"2.0\n"), ("control.tar.xz", xz(control_tar)), data))
