"""Feeds and OpenVEX documents with wrong values in any place: read, or refused with a message; never anything else."""

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from imagekit import feeds, vex, vulnerability
from imagekit.errors import Problem

MADE_UP = Path(__file__).parent.parent / "fixtures/advisories"
WRONG = ["null", "1", "-1", "1.5", "1e308", "true", '""', '"x"', "[]", "{}", "[[]]", "[null]", '{"a": 1}',
         f'"{"1" * 400}"', '"\\u001b"', '"\\ud83e\\udd80"', "[" * 9 + "]" * 9]  # fmt: skip
ROWS = [("debian", "libcheese1", "1:1.2-3", ["cheese", "1:1.2-3"]), ("wheel", "cheese-shop", "1.0", None),
        ("npm", "@made-up/cheese", "1.0.0", None)]  # fmt: skip
MANIFEST = {"name": "web", "version": "1", "arch": "x86_64", "format": "tar", "suite": "bookworm", "packages": [
    {"name": name, "version": version, "architecture": "amd64", "source": source, "size": 1, "sha256": "11" * 32,
     "origin": origin} for source, name, version, origin in ROWS]}  # fmt: skip


def changed(text: str, chance: random.Random) -> str:
    """The document with another value somewhere."""
    whole = at = json.loads(text)
    while isinstance(at, dict | list) and at:
        name: Any = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if chance.random() < 0.3 or not isinstance(at[name], dict | list):
            at[name] = json.loads(chance.choice(WRONG))
            break
        at = at[name]
    return json.dumps(whole)


@pytest.mark.parametrize("name", ["made-up-tracker.json", "made-up-osv.json", "made-up.openvex.json"])
def test_wrong_values_anywhere(name: str, tmp_path: Path) -> None:
    chance, path, refused, rounds = random.Random(11), tmp_path / name, 0, 400
    said = feeds.read([MADE_UP / "made-up-tracker.json"], vulnerability.wanted([MANIFEST]))
    report = vulnerability.judge(MANIFEST, said)
    for _ in range(rounds):
        path.write_text(changed((MADE_UP / name).read_text(), chance))
        try:
            if "vex" in name:
                statements = vex.read(path, keys=[], is_unsigned_fine=True)
                vex.dismissed(report, statements, MANIFEST, today=datetime(2026, 11, 25, tzinfo=UTC))
            else:
                vulnerability.judge(MANIFEST, feeds.read([path], vulnerability.wanted([MANIFEST])))
        except Problem:
            refused += 1
    assert rounds // 10 < refused < rounds
