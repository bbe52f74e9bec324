"""The manifest of a signed image file: a text of which there is one meaning, and one way to write it.

docs/format.md has the rules. It is read after its signature was verified; whoever starts an image waits for that, so
this loads nothing.
"""

from imagekit.errors import Problem

TYPE_CHECKING = False  # typing's own takes long to load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

FIRST = b"imagekit image 1"
MAX_LINE = 4096  # bytes
REPEATED = ("argument", "environment")

_LOWER, _DIGITS = b"abcdefghijklmnopqrstuvwxyz", b"0123456789"
_LETTERS = _LOWER + _LOWER.upper()
_ALNUM = _LETTERS + _DIGITS
_CONTROL = bytes(range(32)) + b"\x7f"


class Said:
    """What a manifest says."""

    __slots__ = (
        "architecture", "arguments", "body", "chunks", "compressor", "content", "environment", "gid", "name",
        "payload", "size", "table", "uid", "version", "workdir",
    )  # fmt: skip

    def __init__(self, values: "Mapping[str, list[bytes]]") -> None:
        text = {word: lines[0].decode("ascii", "replace") for word, lines in values.items() if word not in REPEATED}
        self.payload = text["payload"]  # "tar.gz" or "erofs"
        self.name, self.version, self.architecture = text["name"], text["version"], text["architecture"]
        self.arguments = tuple(values["argument"])  # of what is run; () where the image names no program
        self.environment = tuple(values["environment"])  # b"NAME=VALUE"
        self.uid, self.gid = map(int, text["user"].split(":"))
        self.workdir = values["workdir"][0]
        self.compressor = text["compressor"]
        self.content = text["content"][7:]  # sha256 of the payload uncompressed: of a tar the diff_id of OCI
        self.size, self.body, self.chunks = int(text["size"]), int(text["body"]), int(text["chunks"])
        self.table = text["table"][7:]  # sha256


def read(manifest: bytes) -> Said:
    """What a manifest says; raises Problem unless every byte of it is as it must be."""
    lines = manifest.split(b"\n")
    if lines[0] != FIRST or lines.pop() or max(map(len, lines)) > MAX_LINE:
        raise Problem("its manifest is not one of an image, or of a later version", "a newer imagekit may read it")
    values: dict[str, list[bytes]] = {}
    at = 1
    for word in _WORDS:
        start, begin = word.encode() + b": ", at
        while at < len(lines) and lines[at].startswith(start):
            at += 1
        values[word] = [line[len(start) :] for line in lines[begin:at]]
    if at != len(lines):
        raise Problem(f"its manifest has a line where it cannot be: {lines[at][:80]!a}")
    check(values)
    return Said(values)


def text(values: "Mapping[str, list[bytes]]") -> bytes:
    """The manifest that says this; raises Problem for what no manifest can say."""
    check(values)
    lines = [f"{word}: ".encode() + line for word in _WORDS for line in values[word]]
    if max(map(len, lines)) > MAX_LINE:
        raise Problem(f"an argument or a variable is longer than {MAX_LINE} bytes")
    return b"\n".join([FIRST, *lines, b""])


def check(values: "Mapping[str, list[bytes]]") -> None:
    """Raise Problem for lines that no manifest has."""
    for word in _WORDS:
        lines = values[word]
        if word not in REPEATED and len(lines) != 1:
            raise Problem(f"its manifest has {len(lines)} lines that say {word}, where one must be")
        if not _IS_RIGHT[word](lines if word in REPEATED else lines[0]):
            raise Problem(f"its {word} cannot be {b', '.join(lines)[:200]!a}")


def _is_of(letters: bytes, value: bytes, *, most: int, first: bytes = b"") -> bool:
    return 0 < len(value) <= most and not value.translate(None, letters) and value[:1] in (first or letters)


def _is_number(value: bytes, most: int = 10**15 - 1) -> bool:
    return _is_of(_DIGITS, value, most=15) and (value == b"0" or value[:1] != b"0") and int(value) <= most


def _is_text(value: bytes) -> bool:
    return value.translate(None, _CONTROL) == value


def _is_path(value: bytes) -> bool:
    return value[:1] == b"/" and _is_text(value) and b".." not in value.split(b"/")


def _is_digest(value: bytes) -> bool:
    return len(value) == 71 and value[:7] == b"sha256:" and not value[7:].translate(None, b"0123456789abcdef")


def _is_user(value: bytes) -> bool:
    parts = value.split(b":")
    return len(parts) == 2 and all(_is_number(part, 2**32 - 2) for part in parts)


def _are_arguments(values: "list[bytes]") -> bool:
    return all(map(_is_text, values)) and (not values or values[0][:1] == b"/")


def _are_variables(values: "list[bytes]") -> bool:
    before = b""
    for variable in values:
        name, found, value = variable.partition(b"=")
        if not found or not _is_text(value) or name <= before:
            return False
        if not _is_of(_ALNUM + b"_", name, most=MAX_LINE, first=_LETTERS + b"_"):
            return False
        before = name
    return True


_IS_RIGHT: "dict[str, Callable[[Any], bool]]" = {  # in the order in which they stand
    "payload": lambda value: value in (b"tar.gz", b"erofs"),
    "name": lambda value: _is_of(_ALNUM + b"._+-", value, most=100, first=_ALNUM),
    "version": lambda value: _is_of(_ALNUM + b"._+~:-", value, most=100, first=_ALNUM),
    "architecture": lambda value: _is_of(_LOWER + _DIGITS + b"_", value, most=32, first=_LOWER),
    "argument": _are_arguments,
    "environment": _are_variables,
    "user": _is_user,
    "workdir": _is_path,
    "compressor": lambda value: _is_of(bytes(range(32, 127)), value, most=100),
    "content": _is_digest,
    "size": _is_number,
    "body": _is_number,
    "chunks": _is_number,
    "table": _is_digest,
}
_WORDS = tuple(_IS_RIGHT)
