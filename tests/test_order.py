"""Versions in their order: dpkg, packaging and semver's own examples are the judges."""

import random
import subprocess
from itertools import pairwise

import pytest

from imagekit import order
from imagekit.errors import Problem

RECORDED = ["1.0~~", "1.0~~a", "1.0~", "1.0~rc1-1", "1.0", "1.0-1", "1.0-1~bpo12+1", "1.0-1+b1", "1.0-1+deb12u1",
            "1.0-1.1", "1.0+dfsg-1", "1.0a", "1:0.1", "2:0~", "3.0.11-1~deb12u2", "007", "7", "0"]  # fmt: skip


def relation(one: str, other: str) -> str:
    """What dpkg says."""
    for word in ("lt", "eq"):
        if subprocess.run(["dpkg", "--compare-versions", one, word, other], check=False).returncode == 0:
            return word
    return "gt"


def drawn(chance: random.Random) -> str:
    epoch = f"{chance.randrange(3)}:" if chance.random() < 0.3 else ""
    upstream = str(chance.randrange(3)) + "".join(chance.choice("019az.+~") for _ in range(chance.randrange(5)))
    revision = "-" + "".join(chance.choice("01a~+") for _ in range(chance.randrange(1, 4)))
    return epoch + upstream + (revision if chance.random() < 0.7 else "")


def test_debian_order_is_dpkgs() -> None:
    chance = random.Random(5)
    pairs = [*pairwise(RECORDED), *((drawn(chance), drawn(chance)) for _ in range(300))]
    said = []
    for one, other in pairs:
        a, b = order.debian(one), order.debian(other)
        ours = "lt" if a < b else "gt" if a > b else "eq"
        if ours != relation(one, other):
            said.append((one, other, ours))
    assert said == []


@pytest.mark.parametrize(
    ("version", "source"),
    [("1.2-3+b1", "1.2-3"), ("1:1.2-3+deb12u1+b12", "1:1.2-3+deb12u1"), ("1.2+b1-3", "1.2+b1-3"), ("1+b", "1+b")],
)
def test_a_package_built_again_has_its_sources_version(version: str, source: str) -> None:
    assert order.without_binnmu(version) == source


def test_npm_order_is_semvers() -> None:
    """semver.org, 11.4.4, and numbers as numbers."""
    rising = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11",
              "1.0.0-rc.1", "1.0.0", "1.2.0", "1.10.0"]  # fmt: skip
    assert [one for one, other in pairwise(rising) if not order.npm(one) < order.npm(other)] == []
    assert order.npm("1.0.0+built") == order.npm("1.0.0")


def test_pypi_order_is_packagings() -> None:
    rising = ["1.0.dev1", "1.0a1", "1.0rc1", "1.0", "1.0.post1", "1.1", "1!0.1"]
    assert [one for one, other in pairwise(rising) if not order.pypi(one) < order.pypi(other)] == []


@pytest.mark.parametrize("of", [order.debian, order.pypi, order.npm])
@pytest.mark.parametrize("version", ["", "a b", "1" * 5000, "1.0\n", "٣.0", "-1", ":1", "1:", "\0", "1/2"])
def test_what_is_no_version_is_refused(of: object, version: str) -> None:
    with pytest.raises(Problem, match="is no version"):
        of(version)  # type: ignore[operator]
