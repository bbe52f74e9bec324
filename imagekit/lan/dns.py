"""Names of a private network: the answer to a DNS query (RFC 1035), from a table and nowhere else."""

from collections.abc import Mapping
from ipaddress import IPv4Address
from struct import Struct

PORT = 53
SECONDS = 5  # that an answer may be remembered: guests come and go
_HEADER, _QUESTION = Struct("!HHHHHH"), Struct("!HH")
_IS_ANSWER, _OPERATION, _AUTHORITATIVE, _WANTS_RECURSION = 0x8000, 0x7800, 0x0400, 0x0100
_BROKEN, _UNKNOWN, _CANNOT = 1, 3, 4  # RCODE: FORMERR, NXDOMAIN, NOTIMP
_A, _ANY, _INTERNET = 1, 255, 1


def answer(query: bytes, names: Mapping[str, IPv4Address]) -> bytes | None:
    """The answer; None for what is no query. `names` are in lower case."""
    if len(query) < _HEADER.size:
        return None
    number, flags, questions, *_ = _HEADER.unpack_from(query)
    if flags & _IS_ANSWER:
        return None
    kept = _IS_ANSWER | _AUTHORITATIVE | (flags & (_OPERATION | _WANTS_RECURSION))
    if flags & _OPERATION:
        return _HEADER.pack(number, kept | _CANNOT, 0, 0, 0, 0)
    asked = _asked(query) if questions == 1 else None
    if asked is None:
        return _HEADER.pack(number, kept | _BROKEN, 0, 0, 0, 0)
    name, kind, end = asked
    known = names.get(name)
    if known is None:
        return _HEADER.pack(number, kept | _UNKNOWN, 1, 0, 0, 0) + query[_HEADER.size : end]
    record = b"\xc0\x0c" + Struct("!HHIH").pack(_A, _INTERNET, SECONDS, 4) + known.packed  # the name: as in the query
    records = [record] if kind in (_A, _ANY) else []
    return _HEADER.pack(number, kept, 1, len(records), 0, 0) + query[_HEADER.size : end] + b"".join(records)


def _asked(query: bytes) -> tuple[str, int, int] | None:
    """(name in lower case, type, where the question ends); None where it is cut, or is no question of the Internet."""
    labels, place = [], _HEADER.size
    while place < len(query) and (length := query[place]):
        if length > 63 or place - _HEADER.size > 255:  # a pointer has nothing to point to yet
            return None
        labels.append(query[place + 1 : place + 1 + length])
        place += 1 + length
    end = place + 1 + _QUESTION.size
    if end > len(query):
        return None
    kind, family = _QUESTION.unpack_from(query, place + 1)
    if family != _INTERNET:
        return None
    return b".".join(labels).lower().decode("latin-1"), kind, end
