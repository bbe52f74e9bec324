"""Names on FAT: which can be represented, their 8.3 alias, and the entries that hold a long one.

Source: Microsoft, "FAT32 File System Specification" 1.03 (sections on short and long directory entries).
"""

import re
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from imagekit.errors import Problem

LONGEST = 255  # UTF-16 code units
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f"*/:<>?\\|]')
DEVICES = re.compile(r"(?:CON|PRN|AUX|NUL|CLOCK\$|COM[1-9]|LPT[1-9]) *(?:\.|\Z)", re.IGNORECASE)
NOT_SHORT = re.compile(r"[^A-Z0-9$%'_@~`!(){}^#&-]")
LONG = struct.Struct("<B10sBBB12sH4s")
ATTRIBUTE_LONG, LAST = 0x0F, 0x40
UNITS = 13  # of a name, per entry
DEEPEST = 32  # folders in folders: no path of 260 letters, the longest that DOS had, has many more


def check(names: Iterable[str], *, where: str) -> None:
    """Raise a Problem for the first name of a folder that FAT cannot hold, or that it takes for another one."""
    seen: dict[str, str] = {}
    for name in names:
        path = f"{where}{name}"
        if fault := _fault(name):
            raise Problem(f"FAT cannot hold {path!a}: {fault}", "give the file another name")
        other = seen.setdefault(folded(name), name)
        if other != name:
            raise Problem(f"FAT cannot hold both {path!a} and {where + other!a}: it does not tell case", "rename one")


def folded(name: str) -> str:
    """A name in capitals, letter by letter: names that are one name to FAT are the same then."""
    return "".join(upper if len(upper := letter.upper()) == 1 else letter for letter in name)


def _fault(name: str) -> str:
    if not name:
        return "a name in it is empty"
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
    if name[-1] in ". " or name[0] == " ":  # readers ignore them
        return "its name ends with a dot or a space, or begins with a space"
    return ""


def aliases(names: Collection[str]) -> Mapping[str, bytes]:
    """The 11 bytes by which each name of a folder is found too, no two the same.

    Names that are their own alias come first: else "foo bar", as FOOBAR~1, could be found in place of "foobar~1".
    """
    plain = {name: alias for name in names if (alias := _plain(name))}
    taken, counts = set(plain.values()), Counter[tuple[str, str]]()
    return {name: plain.get(name) or _numbered(name, taken, counts) for name in names}


def _plain(name: str) -> bytes:
    """The name itself as an alias; b"" for one that is not of that form."""
    stem, dot, extension = folded(name).partition(".")
    is_plain = 0 < len(stem) <= 8 and len(extension) <= 3 and bool(dot) == bool(extension)
    return b"" if not is_plain or NOT_SHORT.search(stem + extension) else _padded(stem, extension)


def _numbered(name: str, taken: set[bytes], counts: Counter[tuple[str, str]]) -> bytes:
    """The next free alias with a number ("The Basis-Name Generation Algorithm"); `counts` tells where to go on."""
    stem, _, extension = folded(name).lstrip(".").rpartition(".")
    if not stem:
        stem, extension = extension, ""
    basis = NOT_SHORT.sub("_", stem.replace(" ", "").replace(".", ""))[:8]
    extension = NOT_SHORT.sub("_", extension.replace(" ", ""))[:3]
    while True:
        counts[basis, extension] += 1
        tail = f"~{counts[basis, extension]}"
        found = _padded(basis[: 8 - len(tail)] + tail, extension)
        if found not in taken:
            taken.add(found)
            return found


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
