"""A program for UEFI that does nothing: what tests take for a kernel and a stub, without any package."""

import struct

MACHINES = {"x86_64": 0x8664, "aarch64": 0xAA64}


def program(arch: str = "x86_64", *, text: bytes = b"\xc3", room: int = 20, name: bytes = b".text") -> bytes:
    """One section with `text`, and room for so many rows in the section table; "PE Format" by Microsoft."""
    table, optional_size = 40 * (1 + room), 112 + 8 * 6
    coff = b"PE\0\0" + struct.pack("<HHIIIHH", MACHINES[arch], 1, 0, 1234, 7, optional_size, 0x22E)
    size = -(-(64 + len(coff) + optional_size + table) // 512) * 512
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, 512, 0, 0, 4096, 4096)
    optional += struct.pack("<QIIHHHHHHIIIIHH", 0, 4096, 512, 0, 0, 0, 0, 0, 0, 0, 8192, size, 0xBAD, 10, 0)
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 6) + struct.pack("<12I", *range(12))
    start = size - table - len(optional) - len(coff)
    head = b"MZ" + bytes(58) + struct.pack("<I", start) + bytes(start - 64) + coff + optional
    row = struct.pack("<8sIIIIIIHHI", name, len(text), 4096, -(-len(text) // 512) * 512, size, 0, 0, 0, 0, 0x60000020)
    return head + row + bytes(table - 40) + text + bytes(-len(text) % 512) + b"symbols"


def kernel(*, text: bytes = b"\xc3") -> bytes:
    """A program that loaders for a BIOS take for a kernel, too (Linux/x86 Boot Protocol)."""
    made = bytearray(program(text=text, room=30))  # so that its headers begin behind Linux's
    made[0x202:0x206] = b"HdrS"
    return bytes(made)
