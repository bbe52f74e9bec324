"""Parts: what was found in a file of anybody's, as a listing that steers no terminal and as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

WIDEST = 48  # of a name, with its indent, that the other lines give room to


@dataclass(frozen=True)
class Part:
    """Something with a name, what is known of it, and what lies in it."""

    name: str
    facts: Mapping[str, Any]
    parts: tuple["Part", ...] = field(default=())

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it was found damaged."""
        return "damaged" not in self.facts and all(part.is_whole for part in self.parts)

    def lines(self) -> Iterator[str]:
        """The listing for people: a line each, what lies in it below, a text below its name."""
        rows = list(self._rows(0))
        width = min(max(len(name) for name, _ in rows), WIDEST)
        for name, told in rows:
            yield f"{name:{width}}  {told}".rstrip() if told is not None else name

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        inner = {"parts": [part.json() for part in self.parts]} if self.parts else {}
        return {"name": self.name, **self.facts, **inner}

    def _rows(self, depth: int) -> Iterator[tuple[str, str | None]]:
        """(indented name, what is told of it); None beside a line of a text."""
        indent, texts = "  " * depth, [(name, value) for name, value in self.facts.items() if _is_text(value)]
        told = (f"{_title(name)}{_value(value)}" for name, value in self.facts.items() if not _is_text(value))
        yield indent + printable(self.name), ", ".join(told)
        for name, value in texts:
            for line in value.rstrip("\n").split("\n"):
                yield f"{indent}  {printable(name)}| {printable(line)}", None
        for part in self.parts:
            yield from part._rows(depth + 1)


def printable(text: str) -> str:
    """A text with everything shown that would steer a terminal, turn its direction or hide."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def size(number: int) -> str:
    """Bytes, for people."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\n" in value


def _title(name: str) -> str:
    return "" if name == "kind" else f"{printable(name)} "


def _value(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 20:
        return f"{value} ({size(value)})"
    return printable(str(value))
