"""What differs first between two files, in words: which member, section, partition or field, and how."""

from pathlib import Path

from imagekit.disk import anatomy
from imagekit.errors import RigProblem

SHOWN = 60  # characters of a value
DEEPEST = 12  # archives in archives
LARGEST = 4 << 30  # bytes of a file that is read whole


def first(one: Path, other: Path, *, what: str) -> str:
    """The first difference of two files; "" if there is none."""
    try:
        if max(one.stat().st_size, other.stat().st_size) > LARGEST:
            return f"{what}: {_offset_of(one, other)}"
        return of_bytes(one.read_bytes(), other.read_bytes(), what=what)
    except OSError as error:
        raise RigProblem(f"cannot compare {one} with {other}: {error.strerror}") from error


def of_bytes(one: bytes, other: bytes, *, what: str, depth: int = 0) -> str:
    """The first difference of some bytes that are called `what`; "" if there is none."""
    if one == other:
        return ""
    kind, parts = anatomy.parts(one) if depth < DEEPEST else ("", {})
    other_kind, others = anatomy.parts(other) if depth < DEEPEST else ("", {})
    if kind and kind == other_kind:
        for name in (*parts, *others):
            if name not in others or name not in parts:
                return f"{what}: {name} is only in {'one' if name in parts else 'the other'}"
            if parts[name] != others[name]:
                return of_bytes(parts[name], others[name], what=f"{what}: {name}", depth=depth + 1)
        if list(parts) != list(others):
            name = next(a for a, b in zip(parts, others, strict=True) if a != b)
            return f"{what}: the same in another order, from {name} on"
    return f"{what}: {_values(one, other) or _offset(one, other)}"


def _values(one: bytes, other: bytes) -> str:
    """Both, where they are short and can be printed."""
    if max(len(one), len(other)) > SHOWN:
        return ""
    shown = []
    for value in (one, other):
        text = value.decode("utf-8", "replace")
        shown.append(text if text.isprintable() and "\ufffd" not in text else f"0x{value.hex()}")
    return f"{shown[0] or 'nothing'} against {shown[1] or 'nothing'}"


def _offset(one: bytes, other: bytes) -> str:
    """Where two values part, as a number and with what stands there."""
    size = min(len(one), len(other))
    step, at = 1 << 16, 0
    while at < size and one[at : at + step] == other[at : at + step]:
        at += step
    while at < size and one[at] == other[at]:
        at += 1
    sizes = "" if len(one) == len(other) else f", of {len(one)} and {len(other)} bytes"
    if at >= size:
        return f"one goes on at byte offset {size}{sizes}"
    a, b = (_around(value, at) for value in (one, other))
    return f"{a} against {b} at byte offset {at}{sizes}"


def _around(value: bytes, at: int) -> str:
    text = value[at : at + 16]
    return repr(text.decode("ascii")) if text.isascii() and text.decode("ascii").isprintable() else f"0x{text.hex()}"


def _offset_of(one: Path, other: Path) -> str:
    """The same of files too large to be held, a MiB at a time."""
    at = 0
    with open(one, "rb") as a, open(other, "rb") as b:
        while True:
            x, y = a.read(1 << 20), b.read(1 << 20)
            if x != y or not x:
                return _offset(x, y).replace("byte offset ", f"byte offset {at} + ")
            at += len(x)
