"""JSON of strangers: what could mean two things, or cost more than its size, is refused with its own words."""

import json

import pytest

from imagekit import strict
from imagekit.errors import Problem

LIMIT = 1 << 20
DEEP = strict.DEEPEST - 1
BAD = [
    (b"", "is not JSON: Expecting value"),
    (b"[1]", "is no JSON object"),
    (b"null", "is no JSON object"),
    (b'{"a": 1} {"a": 2}', "is not JSON: Extra data"),
    (b'\xef\xbb\xbf{"a": 1}', "is not JSON: Unexpected UTF-8 BOM"),
    ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
    (b'{"a": "\xff"}', "is not UTF-8: invalid start byte"),
    (b'{"a": "\\ud800"}', "is not UTF-8: surrogates not allowed"),
    (b'{"a": 1, "a": 1}', "is not strict JSON: key 'a' is given twice"),
    (b'{"a": {"b": [{"c": 1, "\\u0063": 2}]}}', "key 'c' is given twice"),
    (b'{"a": NaN}', "NaN is no number of JSON"),
    (b'{"a": -Infinity}', "-Infinity is no number of JSON"),
    (b'{"a": 1e999}', "1e999 is too large a number"),
    (b'{"a": ' + b"1" * 5000 + b"}", "is not strict JSON: Exceeds the limit"),
    (b'{"a": ' + b"[" * 200_000, "is nested deeper than 32 levels"),
    (b'{"a":' * 200_000, "is nested deeper than 32 levels"),
    (b'{"a": ' + b"[" * (DEEP + 1) + b"]" * (DEEP + 1) + b"}", "is nested deeper than 32 levels"),
    (b'{"a": "' + b"x" * LIMIT + b'"}', "is larger than the 1048576 bytes"),
]


@pytest.mark.parametrize(("data", "words"), BAD, ids=[f"{n}" for n in range(len(BAD))])
def test_what_is_not_strict_is_refused(data, words):
    with pytest.raises(Problem) as refused:
        strict.parse(data, what="the index", limit=LIMIT)
    assert str(refused.value).startswith("the index ")
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [{}, {"a": [1, 1.5, -2e3, True, None, "ü\N{GRINNING FACE}"]}, {"a": json.loads("[" * DEEP + "]" * DEEP)}],
)
def test_what_is_strict_is_read(value):
    assert strict.parse(json.dumps(value).encode(), what="it", limit=LIMIT) == value
