"""Device trees: read, changed and written again; and what is none is refused."""

import struct
from contextlib import suppress

import pytest

from imagekit.disk import fdt
from imagekit.disk.fdt import Fdt, Node
from imagekit.errors import Problem

TREE = Fdt(
    Node(
        "",
        {"compatible": fdt.text("raspberrypi,3-model-b", "brcm,bcm2837"), "#size-cells": struct.pack(">I", 1)},
        (
            Node("soc", {}, (Node("usb@7e980000", {"dr_mode": fdt.text("otg"), "empty": b""}, ()),)),
            Node("chosen", {"bootargs": fdt.text("x")}, ()),
        ),
    ),
    reserved=struct.pack(">QQQQ", 0x1000, 0x2000, 0, 0),
    boot_cpu=1,
)
DATA = fdt.write(TREE)


def test_what_was_written_is_read() -> None:
    assert fdt.read(DATA) == TREE
    assert fdt.write(fdt.read(DATA)) == DATA
    assert fdt.read(DATA + b"more behind it") == TREE


def test_nodes_are_found_and_changed() -> None:
    def change(path: str, node: Node) -> Node:
        return node._replace(properties={"status": fdt.text("disabled")}) if path == "/soc/usb@7e980000" else node

    made = fdt.changed(TREE.root, change)
    usb = made.at("/soc/usb@7e980000")
    assert usb is not None
    assert usb.strings("status") == ("disabled",)
    assert made.at("/soc/gone") is None
    assert made.strings("compatible") == ("raspberrypi,3-model-b", "brcm,bcm2837")
    assert made.at("/chosen") == TREE.root.at("/chosen")


def word(at: int, value: int) -> bytes:
    return DATA[:at] + struct.pack(">I", value) + DATA[at + 4 :]


STRUCTURE = struct.unpack_from(">I", DATA, 8)[0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no device tree"),
        (b"\xd0\x0d\xfe\xed", "no device tree"),
        (bytes(40), "does not begin as one"),
        (bytes(3 << 20), "more than"),
        (DATA[:-1], "cut"),
        (word(4, 1 << 31), "cut"),  # its size
        (word(8, 1 << 31), "cut"),  # where its structure is
        (word(12, 1 << 31), "cut"),  # strings
        (word(16, len(DATA)), "cut"),  # reservations
        (word(20, 16), "version 16"),
        (word(32, 1 << 31), "cut"),  # size of the strings
        (word(36, 4), "name is cut"),  # size of the structure
        (word(STRUCTURE, 2), "does not begin with a node"),
        (word(STRUCTURE + 8, 7), "token 7"),
        (word(STRUCTURE + 12, 1 << 31), "a property is cut"),
        (word(STRUCTURE + 16, 1 << 31), "a name is cut"),
        (DATA[: -len("compatible\0#size-cells\0dr_mode\0empty\0bootargs\0")], "cut"),
    ],
)
def test_hostile_bytes(data: bytes, words: str) -> None:
    with pytest.raises(Problem, match=words):
        fdt.read(data)


def test_nodes_without_end() -> None:
    deep = Node("x", {}, ())
    for _ in range(100):
        deep = Node("x", {}, (deep,))
    with pytest.raises(Problem, match="too many nodes"):
        fdt.read(fdt.write(Fdt(deep)))


def test_every_byte_that_is_changed_is_a_tree_or_a_problem() -> None:
    for at in range(len(DATA)):
        for bit in (0x01, 0x80):
            broken = bytearray(DATA)
            broken[at] ^= bit
            with suppress(Problem):
                fdt.read(bytes(broken))
