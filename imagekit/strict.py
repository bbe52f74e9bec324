"""JSON that a stranger wrote: an object, or a Problem; nothing in it can mean two things, or cost more than its size.

Stricter than json: no key twice (RFC 8259, section 4, leaves open which one counts), no NaN or Infinity (section 6), no
half of a surrogate pair (section 8.2), UTF-8 alone, and limits to size and depth.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from imagekit.errors import Problem

DEEPEST = 32  # objects and lists in one another


def parse(data: bytes, *, what: str, limit: int) -> dict[str, Any]:
    """The object that some bytes are; `what` is what they are called where they are refused."""
    if len(data) > limit:
        raise Problem(f"{what} is larger than the {limit} bytes that it may have")
    try:
        found = json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair has no UTF-8
    except RecursionError:
        raise Problem(f"{what} is nested deeper than {DEEPEST} levels") from None
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise Problem(f"{what} is not UTF-8: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise Problem(f"{what} is not JSON: {error}") from None
    except ValueError as error:
        raise Problem(f"{what} is not strict JSON: {error}") from None
    if not isinstance(found, dict):
        raise Problem(f"{what} is no JSON object")
    if _is_deep(found):
        raise Problem(f"{what} is nested deeper than {DEEPEST} levels")
    return found


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {ascii(name)[:80]} is given twice")
        found[name] = value
    return found


def _constant(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number


def _is_deep(value: Any) -> bool:
    """Level by level: a function that called itself would need the depth that it is to refuse."""
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        if not inner:
            return False
        level = [one for values in inner for one in values]
    return True
