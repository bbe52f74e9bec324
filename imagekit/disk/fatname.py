"""Names on FAT: which can be represented, their 8.3 alias, and the entries that hold a long one.

Source: Microsoft, "FAT32 File System Specification" 1.03 (sections on short and long directory entries).
"""

import re
import struct
from collections.abc import Collection, Iterable

from imagekit.errors import Problem

LONGEST = 255  # UTF-16 code units
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f"*/:<>?\\|]')
DEVICES = re.compile(r"(?:CON|PRN|AUX|NUL|COM[1-9]|LPT[1-9])(?:\.|\Z)", re.IGNORECASE)
NOT_SHORT = re.compile(r"[^A-Z0-9$%'_@~`!(){}^#&-]")
LONG = struct.Struct("<B10sBBB12sH4s")
ATTRIBUTE_LONG, LAST = 0x0F, 0x40
UNITS = 13  # of a name, per entry


def check(names: Iterable[str], *, where: str) -> None:
    """Raise a Problem for the first name of a folder that FAT cannot hold, or that it takes for another one."""
    seen: dict[str, str] = {}
    for name in names:
        path = f"{where}{name}"
        if fault := _fault(name):
            raise Problem(f"FAT cannot hold {path!a}: {fault}", "give the file another name")
        other = seen.setdefault(name.upper(), name)
        if other != name:
            raise Problem(f"FAT cannot hold both {path!a} and {where + other!a}: it does not tell case", "rename one")


def _fault(name: str) -> str:
    try:
        units = len(name.encode("utf-16-le")) // 2
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if units > LONGEST:
        return f"its name is longer than {LONGEST} characters"
    if found := FORBIDDEN.search(name):
        return f"its name has the character {found[0]!a}"
    if DEVICES.match(name):
        return "its name is that of a DOS device"
    if not name.strip(". ") or name[-1] in ". ":
        return "its name ends with a dot or a space"
    return ""


def short(name: str, taken: Collection[bytes]) -> bytes:
    """The 11 bytes of a name's alias, which none of `taken` is."""
    stem, _, extension = name.upper().lstrip(".").rpartition(".") if "." in name.lstrip(".") else (name.upper(), "", "")
    stem, clean = stem.lstrip("."), NOT_SHORT.sub("_", extension)[:3]
    basis = NOT_SHORT.sub("_", stem.replace(" ", "").replace(".", ""))
    fits = (basis, clean) == (stem, extension) and len(basis) <= 8 and not name.startswith(".")
    if fits and (plain := _padded(basis, clean)) not in taken:
        return plain
    for number in range(1, 1_000_000):
        tail = f"~{number}"
        found = _padded(basis[: 8 - len(tail)] + tail, clean)
        if found not in taken:
            return found
    raise Problem(f"a folder has too many names like {name!a} for FAT")


def is_short(name: str, alias: bytes) -> bool:
    """Whether the alias says all, so that no long entry is needed."""
    stem, extension = alias[:8].decode().rstrip(), alias[8:].decode().rstrip()
    return name == (f"{stem}.{extension}" if extension else stem)


def long_entries(name: str, alias: bytes) -> bytes:
    """The entries that stand before the one of the alias, last part first."""
    units = name.encode("utf-16-le")
    if len(units) % (2 * UNITS):
        units = (units + b"\0\0").ljust(-(-(len(units) + 2) // (2 * UNITS)) * 2 * UNITS, b"\xff")
    parts = [units[at : at + 2 * UNITS] for at in range(0, len(units), 2 * UNITS)]
    total = checksum(alias)
    rows = []
    for number, part in reversed(list(enumerate(parts, 1))):
        order = number | (LAST if number == len(parts) else 0)
        rows.append(LONG.pack(order, part[:10], ATTRIBUTE_LONG, 0, total, part[10:22], 0, part[22:]))
    return b"".join(rows)


def checksum(alias: bytes) -> int:
    """What binds long entries to their alias."""
    total = 0
    for byte in alias:
        total = ((total & 1) << 7) + (total >> 1) + byte & 0xFF
    return total


def _padded(stem: str, extension: str) -> bytes:
    return (stem.ljust(8) + extension.ljust(3)).encode("ascii")
