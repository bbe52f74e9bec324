"""Eventwords: what an event of a firmware's log says it measured: a name to find it again by, and its content.

Source: TCG, "PC Client Platform Firmware Profile", 10.4 (event types and their data); UEFI 2.10, 10.3 (device paths)
and 3.1.3 (load options). Anybody may have written the data: it is never believed, only shown, and what does not fit its
type is shown as bytes.
"""

import re
import struct
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import NamedTuple
from uuid import UUID

from imagekit.disk.parts import printable

MOST_SHOWN = 160  # characters of one event
NO_ACTION, SEPARATOR, ACTION, TAG, CRTM, FLAGS, IPL = 3, 4, 5, 6, 8, 0xA, 0xD
EFI = 0x80000000
VARIABLE_CONFIG, VARIABLE_BOOT, APPLICATION, GPT, EFI_ACTION, BLOB = (
    EFI + 1,
    EFI + 2,
    EFI + 3,
    EFI + 6,
    EFI + 7,
    EFI + 8,
)
DRIVERS, TABLES, BLOB_2, TABLES_2, VARIABLE_BOOT_2, AUTHORITY = (
    *((EFI + 4, EFI + 5), (EFI + 9,), EFI + 0xA, EFI + 0xB, EFI + 0xC),
    EFI + 0xE0,
)
NODE = struct.Struct("<BBH")
MAKERS = {UUID("55c5d1f8-04cd-46b5-8a20-e56cbb3052d0"): "systemd-stub"}  # of what firmware is given in memory
COUNTER = re.compile(r"\+[0-9]{1,4}(-[0-9]{1,4})?(?=\.efi$)")  # systemd-boot counts starts in a program's name
VARIABLE = struct.Struct("<16sQQ")
IMAGE_LOAD = struct.Struct("<QQQQ")


class Words(NamedTuple):
    """What an event is called, and what it says was measured."""

    name: str
    content: str = ""
    digest: bytes | None = None  # SHA-256 of what must have been measured, where the event has it whole


def words(kind: int, data: bytes) -> Words:
    """The words for an event of this type with this data."""
    tell = _TELL.get(kind, _unknown)
    try:
        found = tell(data)
    except (struct.error, ValueError, IndexError):
        found = _unknown(data)
    if tell is _unknown or found.name == UNREADABLE:
        found = found._replace(name=f"event of type {kind:#x}")
    return found._replace(name=_short(found.name), content=_short(found.content))


UNREADABLE = ""


def _unknown(data: bytes) -> Words:
    return Words(UNREADABLE, data[:MOST_SHOWN].hex())


def _text(name: str) -> Callable[[bytes], Words]:
    return lambda data: Words(f"{name}{_ascii(data)}")


def _crtm(data: bytes) -> Words:
    return Words("firmware's version", _utf16(data), sha256(data).digest())


def _action(data: bytes) -> Words:
    return Words(f"action: {_ascii(data)}", "", sha256(data).digest())


def _separator(data: bytes) -> Words:
    meaning = {b"\0\0\0\0": "", b"\xff\xff\xff\xff": ""}.get(data, "an error: ")
    return Words("separator", meaning + data.hex(), sha256(data).digest())


def _blob(data: bytes) -> Words:
    base, size = struct.unpack("<QQ", data)
    return Words(f"firmware volume at {base:#x}", f"{size} bytes")


def _blob_2(data: bytes) -> Words:
    size = data[0]
    base, length = struct.unpack("<QQ", data[1 + size :])
    return Words(f"firmware {_ascii(data[1 : 1 + size])}", f"{length} bytes at {base:#x}")


def _variable(data: bytes) -> Words:
    name, content = _split_variable(data)
    shown = f"{len(content)} bytes" if len(content) > 8 else (content.hex() or "empty")
    return Words(f"variable {name}", shown, sha256(data).digest())


def _authority(data: bytes) -> Words:
    name, content = _split_variable(data)
    owner = f"a key of {UUID(bytes_le=content[:16])}, " if len(content) > 16 else ""
    return Words(f"authority in {name}", f"{owner}{len(content)} bytes", sha256(data).digest())


def _boot_variable(data: bytes) -> Words:
    """Measured is the content alone; a boot option says where it leads to."""
    name, content = _split_variable(data)
    shown = content.hex()
    if name.startswith("Boot") and name != "BootOrder":
        (size,) = struct.unpack_from("<H", content, 4)
        title, end, _ = content[6:].decode("utf-16le", "replace").partition("\0")
        path = content[6 + 2 * (len(title) + len(end)) :][:size]
        shown = f"{title!r} {device_path(path)}".rstrip()
    return Words(f"variable {name}", shown, sha256(content).digest())


def _split_variable(data: bytes) -> tuple[str, bytes]:
    """Name and content of a UEFI_VARIABLE_DATA."""
    _, name, size = VARIABLE.unpack_from(data)
    start = VARIABLE.size + 2 * name
    if start + size != len(data):
        raise ValueError("the sizes do not add up")
    return data[VARIABLE.size : start].decode("utf-16le"), data[start:]


def _program(data: bytes) -> Words:
    _, size, _, length = IMAGE_LOAD.unpack_from(data)
    path = COUNTER.sub("", device_path(data[IMAGE_LOAD.size : IMAGE_LOAD.size + length]))
    return Words(f"program {path or 'from memory'}", f"{size} bytes")


def _partitions(data: bytes) -> Words:
    """UEFI_GPT_DATA: the table's header, and the entries in use."""
    disk = UUID(bytes_le=data[56:72])
    (count,) = struct.unpack_from("<Q", data, 92)
    return Words("partition table", f"disk {disk}, {count} partitions", sha256(data).digest())


def _ipl(data: bytes) -> Words:
    """What a boot loader measures, in words that it chose; systemd's are UTF-16, GRUB's and Linux' ASCII."""
    is_wide = len(data) > 1 and data[1] == 0
    return Words(_utf16(data) if is_wide else _ascii(data))


def _tagged(data: bytes) -> Words:
    _, size = struct.unpack_from("<II", data)
    return _ipl(data[8 : 8 + size])


def device_path(data: bytes) -> str:
    """The file, or else the device, that a device path leads to; "" for one that says neither."""
    found = ""
    for kind, sub, content in _nodes(data):
        if (kind, sub) == (4, 4):  # a file path
            return _utf16(content)
        if (kind, sub) == (4, 1) and len(content) >= 36:  # a partition, by its unique id
            found = f"partition {UUID(bytes_le=content[20:36])}"
        elif (kind, sub) == (4, 6) and len(content) == 16:
            found = f"file {UUID(bytes_le=content)} of the firmware"
        elif (kind, sub) == (4, 3) and len(content) >= 16:
            who = UUID(bytes_le=content[:16])
            found = f"from memory, by {MAKERS.get(who, who)}"
        elif (kind, sub) == (1, 1) and len(content) == 2:
            found = f"PCI device {content[1]:x}.{content[0]:x}"
    return found


def _nodes(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + NODE.size <= len(data):
        kind, sub, size = NODE.unpack_from(data, at)
        if kind == 0x7F or not NODE.size <= size <= len(data) - at:
            return
        yield kind, sub, data[at + NODE.size : at + size]
        at += size


def _ascii(data: bytes) -> str:
    return data.rstrip(b"\0").decode("latin-1")


def _utf16(data: bytes) -> str:
    return data.decode("utf-16le", "replace").rstrip("\0")


def _short(text: str) -> str:
    text = printable(text[: MOST_SHOWN + 1])
    return text if len(text) <= MOST_SHOWN else text[: MOST_SHOWN - 3] + "..."


_TELL: dict[int, Callable[[bytes], Words]] = {
    SEPARATOR: _separator,
    ACTION: _action,
    TAG: _tagged,
    CRTM: _crtm,
    FLAGS: _text(""),
    IPL: _ipl,
    VARIABLE_CONFIG: _variable,
    VARIABLE_BOOT: _boot_variable,
    VARIABLE_BOOT_2: _boot_variable,
    AUTHORITY: _authority,
    APPLICATION: _program,
    **dict.fromkeys(DRIVERS, _program),
    GPT: _partitions,
    EFI_ACTION: _action,
    BLOB: _blob,
    BLOB_2: _blob_2,
}
