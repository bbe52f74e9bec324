"""CVSS v3 scores: FIRST's published examples, and every vector there is by another implementation."""

from itertools import product

import pytest
from cvss import CVSS3

from imagekit import cvss
from imagekit.errors import Problem

PUBLISHED = [  # https://www.first.org/cvss/v3.1/examples
    ("AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N", 6.1),  # CVE-2013-1937
    ("AV:N/AC:L/PR:L/UI:N/S:C/C:L/I:L/A:N", 6.4),  # CVE-2013-0375
    ("AV:N/AC:H/PR:N/UI:R/S:U/C:L/I:N/A:N", 3.1),  # CVE-2014-3566
    ("AV:N/AC:L/PR:L/UI:N/S:C/C:H/I:H/A:H", 9.9),  # CVE-2012-1516
    ("AV:L/AC:L/PR:H/UI:N/S:U/C:L/I:L/A:L", 4.2),  # CVE-2009-0783
    ("AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N", 7.5),  # CVE-2014-0160
    ("AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 9.8),  # CVE-2014-6271
    ("AV:N/AC:H/PR:N/UI:N/S:C/C:N/I:H/A:N", 6.8),  # CVE-2008-1447
    ("AV:P/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 6.8),  # CVE-2014-2005
]


@pytest.mark.parametrize(("vector", "score"), PUBLISHED)
def test_published_examples(vector: str, score: float) -> None:
    assert cvss.score(f"CVSS:3.1/{vector}") == score


@pytest.mark.parametrize("version", ["3.0", "3.1"])
def test_every_vector_as_another_implementation_has_it(version: str) -> None:
    said = []
    for values in product(*cvss.WEIGHTS.values()):
        pairs = "/".join(f"{name}:{value}" for name, value in zip(cvss.WEIGHTS, values, strict=True))
        vector = f"CVSS:{version}/{pairs}"
        ours, theirs = cvss.score(vector), CVSS3(vector)
        if (ours, cvss.level(ours)) != (float(theirs.base_score), theirs.severities()[0].lower()):
            said.append((vector, ours, theirs.base_score))
    assert said == []


@pytest.mark.parametrize(
    "vector",
    ["", "CVSS:3.1", "CVSS:2.0/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", "CVSS:3.1/AV:X/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H",
     "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H", "CVSS:3.1/AV:N/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H",
     "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H" + "/X:Y" * 1000],
)  # fmt: skip
def test_what_is_no_vector_is_refused(vector: str) -> None:
    with pytest.raises(Problem, match=r"is no vector|twice"):
        cvss.score(vector)
