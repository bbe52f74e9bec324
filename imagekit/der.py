"""DER: values of ASN.1 in the one encoding that a signature can rely on (ITU-T X.690, clauses 8 and 10).

What is no DER raises ValueError: whoever reads it knows what it should have been.
"""

from collections.abc import Iterable
from typing import NamedTuple

INTEGER, BITS, OCTETS, NULL, OID, SEQUENCE, SET = 0x02, 0x03, 0x04, 0x05, 0x06, 0x30, 0x31
UTC_TIME = 0x17


class Value(NamedTuple):
    """One value: its tag, what it holds, and all of its bytes."""

    tag: int
    content: bytes
    whole: bytes

    def parts(self, tag: int = SEQUENCE) -> list["Value"]:
        """The values that it is made of. Raises ValueError unless it has this tag."""
        return values(self.held(tag))

    def held(self, tag: int) -> bytes:
        """What it holds. Raises ValueError unless it has this tag."""
        if self.tag != tag:
            raise ValueError(f"a value has tag {self.tag:#04x}, not {tag:#04x}")
        return self.content


def values(data: bytes) -> list[Value]:
    """The values that lie one after the other in `data`, to its end."""
    found, rest = [], data
    while rest:
        found.append(first(rest))
        rest = rest[len(found[-1].whole) :]
    return found


def only(data: bytes) -> Value:
    """The one value that `data` is. Raises ValueError where something follows it."""
    found = first(data)
    if len(found.whole) != len(data):
        raise ValueError("it is not one value, which ends where the bytes do")
    return found


def first(data: bytes) -> Value:
    """The value at the beginning of `data`; its length must be written in the shortest way (10.1)."""
    if len(data) < 2 or data[0] & 0x1F == 0x1F:
        raise ValueError("a value is cut, or has a tag of several bytes")
    size, start = data[1], 2
    if size & 0x80:
        count = size & 0x7F
        start, size = 2 + count, int.from_bytes(data[2 : 2 + count], "big")
        if not 1 <= count <= 4 or len(data) < start or data[1:start] != _length(size):
            raise ValueError("a length is not written in the shortest way")
    if start + size > len(data):
        raise ValueError(f"a value ends at {start + size}, behind the end of the bytes at {len(data)}")
    return Value(data[0], data[start : start + size], data[: start + size])


def make(tag: int, *contents: bytes) -> bytes:
    """A value of a tag that holds these bytes."""
    content = b"".join(contents)
    return bytes([tag]) + _length(len(content)) + content


def integer(number: int) -> bytes:
    """An INTEGER that is not negative (clause 8.3)."""
    return make(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER (clause 8.19)."""
    first, second, *rest = map(int, dotted.split("."))
    return make(OID, b"".join(map(_base128, (first * 40 + second, *rest))))


def set_of(items: Iterable[bytes], *, tag: int = SET) -> bytes:
    """A SET OF values, in the one order that there is (clause 11.6)."""
    return make(tag, *sorted(items))


def natural(value: Value) -> int:
    """The number of an INTEGER. Raises ValueError for a negative one, and for one with bytes to spare."""
    content = value.held(INTEGER)
    if not content or content[0] & 0x80 or (len(content) > 1 and not content[0] and not content[1] & 0x80):
        raise ValueError("an INTEGER is negative, or not the shortest")
    return int.from_bytes(content, "big")


def _length(size: int) -> bytes:
    if size < 0x80:
        return bytes([size])
    count = -(-size.bit_length() // 8)
    return bytes([0x80 | count]) + size.to_bytes(count, "big")


def _base128(number: int) -> bytes:
    encoded = [number & 0x7F]
    while number := number >> 7:
        encoded.append(number & 0x7F | 0x80)
    return bytes(reversed(encoded))
