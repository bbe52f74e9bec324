"""Device trees as files: read one, change nodes, write it down again.

Source: Devicetree Specification 0.4, chapter 5 (flattened devicetree, version 17). What is read may be anybody's file:
it is small, its nodes are not deep, and every offset is looked at before it is followed.
"""

import struct
from collections.abc import Callable, Mapping
from typing import NamedTuple

from imagekit.errors import Problem

MAGIC, VERSION, COMPATIBLE = 0xD00DFEED, 17, 16
MAX_SIZE = 2 << 20  # bytes: what the kernel's boot protocol allows (Documentation/arch/arm64/booting.rst)
MAX_DEPTH, MAX_NODES = 32, 1 << 16
_HEADER = struct.Struct(">10I")
_TOKEN, _PROPERTY = struct.Struct(">I"), struct.Struct(">II")
BEGIN, END, PROPERTY, NOP, LAST = 1, 2, 3, 4, 9


class Node(NamedTuple):
    """A device: its properties and the devices below it, in the order of the file."""

    name: str
    properties: Mapping[str, bytes]
    nodes: tuple["Node", ...]

    def strings(self, name: str) -> tuple[str, ...]:
        """A property that is a list of strings; empty where there is none."""
        value = self.properties.get(name, b"")
        return tuple(word.decode("latin-1") for word in value.split(b"\0")[:-1])

    def at(self, path: str) -> "Node | None":
        """The node at a path from here, as in "soc/serial@7e201000"; None when there is none."""
        name, _, rest = path.strip("/").partition("/")
        if not name:
            return self
        found = next((node for node in self.nodes if node.name == name), None)
        return found.at(rest) if found else None


class Fdt(NamedTuple):
    """A whole device tree."""

    root: Node
    reserved: bytes = bytes(16)  # memory reservation block, with the entry that ends it
    boot_cpu: int = 0


def read(data: bytes) -> Fdt:
    """The device tree in these bytes; raises Problem that says what is wrong with them."""
    try:
        return _Reader(data).tree()
    except (struct.error, ValueError, RecursionError) as error:
        raise Problem(f"this is no device tree: {error}") from error


def write(tree: Fdt) -> bytes:
    """A device tree as a file; the same tree has the same bytes."""
    names: dict[str, int] = {}
    structure = b"".join((_written(tree.root, names), _TOKEN.pack(LAST)))
    strings = b"".join(name.encode("latin-1") + b"\0" for name in names)
    at_structure = _HEADER.size + len(tree.reserved)
    at_strings = at_structure + len(structure)
    sizes = (len(strings), len(structure))
    header = (MAGIC, at_strings + len(strings), at_structure, at_strings, _HEADER.size, VERSION, COMPATIBLE)
    return b"".join((_HEADER.pack(*header, tree.boot_cpu, *sizes), tree.reserved, structure, strings))


def changed(node: Node, change: Callable[[str, Node], Node], path: str = "") -> Node:
    """The node with `change(path, node)` in place of every one below it and of itself; the paths begin with "/"."""
    below = tuple(changed(child, change, f"{path}/{child.name}") for child in node.nodes)
    return change(path or "/", node._replace(nodes=below))


def text(*words: str) -> bytes:
    """Strings as a property holds them."""
    return b"".join(word.encode("latin-1") + b"\0" for word in words)


class _Reader:
    def __init__(self, data: bytes) -> None:
        if len(data) > MAX_SIZE:
            raise Problem(f"this is no device tree: it has {len(data)} bytes, more than {MAX_SIZE}")
        magic, size, structure, strings, reserved, version, compatible, self.boot_cpu, length, room = (
            _HEADER.unpack_from(data)
        )
        if magic != MAGIC:
            raise ValueError("it does not begin as one")
        if compatible > VERSION or version < VERSION:
            raise ValueError(f"it is of version {version}, not {VERSION}")
        if size > len(data) or max(structure + room, strings + length, reserved + 16) > size or structure % 4:
            raise ValueError("it is cut")
        self._at, self._structure = 0, data[structure : structure + room]
        self._strings = data[strings : strings + length]
        self._reserved = data[reserved:size]
        self._count = 0

    def tree(self) -> Fdt:
        """All of it."""
        if self._token() != BEGIN:
            raise ValueError("it does not begin with a node")
        root = self._node(0)
        if self._token() != LAST:
            raise ValueError("something stands behind its last node")
        return Fdt(root, self._reservations(), self.boot_cpu)

    def _node(self, depth: int) -> Node:
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_NODES:
            raise ValueError("it has too many nodes")
        name = _string(self._structure, self._at)
        self._skip(len(name) + 1)
        properties: dict[str, bytes] = {}
        nodes: list[Node] = []
        while (token := self._token()) != END:
            if token == BEGIN:
                nodes.append(self._node(depth + 1))
            elif token == PROPERTY and not nodes:
                properties.update([self._property()])
            else:
                raise ValueError(f"token {token} stands in the node {name!r}")
        return Node(name, properties, tuple(nodes))

    def _property(self) -> tuple[str, bytes]:
        size, name = _PROPERTY.unpack_from(self._structure, self._at)
        begin = self._at + _PROPERTY.size
        if begin + size > len(self._structure):
            raise ValueError("a property is cut")
        self._skip(_PROPERTY.size + size)
        return _string(self._strings, name), self._structure[begin : begin + size]

    def _token(self) -> int:
        token = NOP
        while token == NOP:
            (token,) = _TOKEN.unpack_from(self._structure, self._at)
            self._skip(_TOKEN.size)
        return int(token)

    def _skip(self, size: int) -> None:
        self._at += size + -size % 4

    def _reservations(self) -> bytes:
        """Pairs of address and size; the last one is zero."""
        for at in range(0, len(self._reserved) - 15, 16):
            if self._reserved[at : at + 16] == bytes(16):
                return self._reserved[: at + 16]
        raise ValueError("its memory reservations have no end")


def _string(data: bytes, at: int) -> str:
    end = data.find(b"\0", at) if at < len(data) else -1
    if end < 0:
        raise ValueError("a name is cut")
    return data[at:end].decode("latin-1")


def _written(node: Node, names: dict[str, int]) -> bytes:
    parts = [_TOKEN.pack(BEGIN), _padded(text(node.name))]
    for name, value in node.properties.items():
        offset = names.setdefault(name, sum(len(other) + 1 for other in names))
        parts.append(_TOKEN.pack(PROPERTY) + _PROPERTY.pack(len(value), offset) + _padded(value))
    return b"".join((*parts, *(_written(child, names) for child in node.nodes), _TOKEN.pack(END)))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
