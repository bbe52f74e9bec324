"""Slots: how UKIs are named where an image has two of them, and which one starts first; as systemd-boot has it.

    EFI/Linux/NAME_VERSION.efi              an image that has proven itself
    EFI/Linux/NAME_VERSION+LEFT-DONE.efi    one that has not: tries that it has left, and those that it had

Sources: the UAPI Group's "Boot Loader Specification" and "Version Format Specification", and "Automatic Boot
Assessment" of systemd. inside/slots/ has the same in C.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from imagekit.errors import Problem

FOLDER = "EFI/Linux"
LOADER = "loader/loader.conf"
LOADER_TEXT = b"timeout 0\neditor no\n"
TRIES = 3
VERSION = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9.~^-]{0,98}[A-Za-z0-9])?\Z"
)  # ends as it must: systemd-boot orders "1-" oddly
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,99}\Z")
UKI = re.compile(
    r"(?P<version>[A-Za-z0-9.~^-]+?)(\+(?P<left>[0-9]{1,4})(-(?P<done>[0-9]{1,4}))?)?\.efi\Z", re.IGNORECASE
)
LONGEST = 160  # characters of NAME_VERSION: its name on the boot partition is written at once, in one sector
MARKS = "~-^."  # what separates the parts of a version, the lowest first
PART = re.compile(r"[0-9]+|[A-Za-z]+|[~^.-]")


class Uki(NamedTuple):
    """A UKI by its file name."""

    file: str
    version: str
    left: int | None  # tries; None when it needs none any more


def check(name: str, version: str) -> None:
    """Raise Problem for an image whose name or version cannot stand in the name of a UKI beside another one."""
    if not VERSION.match(version):
        raise Problem(
            f"disk: slots=2: version {version!r} cannot be ordered by systemd-boot",
            "up to 100 letters, digits and '.~^-', as in '1.4'; a '+' counts tries there",
        )
    if not NAME.match(name) or len(name) + len(version) >= LONGEST:
        raise Problem(f"disk: slots=2: {name}_{version} is no name for a file on the boot partition", "a shorter one")


def uki(name: str, version: str, *, tries: int = 0) -> str:
    """The path of a UKI on the boot partition."""
    return f"{FOLDER}/{name}_{version}{f'+{tries}' if tries else ''}.efi"


def of(name: str, files: Iterable[str]) -> list[Uki]:
    """The UKIs of an image among the files of a boot partition, in the order in which systemd-boot prefers them."""
    found = []
    for path in files:
        folder, _, file = path.rpartition("/")
        rest = file[len(name) + 1 :]
        match = UKI.match(rest) if file.casefold().startswith(f"{name}_".casefold()) else None
        if folder.casefold() == FOLDER.casefold() and match:
            found.append(Uki(path, match["version"], int(match["left"]) if match["left"] else None))
    newest = sorted(found, key=lambda one: order(one.version), reverse=True)
    return sorted(newest, key=lambda one: one.left == 0)  # the exhausted ones come last


def first(files: Iterable[str]) -> str:
    """The UKI that systemd-boot takes first of a volume that has two slots of one image; "" for any other volume."""
    paths = list(files)
    named = [path for path in paths if path.startswith(f"{FOLDER}/")]
    images = {path.rpartition("/")[2].rpartition("_")[0] for path in named}
    ordered = of(images.pop(), named) if LOADER in paths and len(images) == 1 else []
    return ordered[0].file if ordered else ""


def order(version: str) -> "Order":
    """What versions are sorted by."""
    return Order(version)


class Order:
    """A version, to be compared with others."""

    __slots__ = ("parts",)

    def __init__(self, version: str) -> None:
        self.parts = PART.findall(version)

    def __lt__(self, other: "Order") -> bool:
        return _compare(self.parts, other.parts) < 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Order) and _compare(self.parts, other.parts) == 0

    def __hash__(self) -> int:
        return hash(tuple(part.lstrip("0") if part.isdigit() else part for part in self.parts))


def _compare(a: list[str], b: list[str]) -> int:
    """Part by part; the first pair that differs tells."""
    for one, other in zip([*a, ""], [*b, ""], strict=False):
        if (left := _rank(one)) != (right := _rank(other)):
            return -1 if left < right else 1
    return 0


def _rank(part: str) -> tuple[int, int, str]:
    """'~' is before the end, that before '-', '^', '.', words and numbers."""
    if not part or part in MARKS:
        return ("~", "", "-", "^", ".").index(part), 0, ""
    if part.isdigit():
        digits = part.lstrip("0")
        return 6, len(digits), digits
    return 5, 0, part
