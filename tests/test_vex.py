"""OpenVEX: signed, timely, of this product and justified, or it dismisses nothing."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from imagekit import feeds, key, vex, vulnerability
from imagekit.errors import Problem

MADE_UP = Path(__file__).parent.parent / "fixtures/advisories"
NOW = datetime(2026, 11, 25, tzinfo=UTC)
MANIFEST = {"name": "web", "version": "1", "arch": "x86_64", "format": "tar", "suite": "bookworm", "packages": [
    {"name": "libcheese1", "version": "1:1.2-3", "architecture": "amd64", "source": "debian", "size": 1,
     "sha256": "11" * 32, "origin": ["cheese", "1:1.2-3"]}]}  # fmt: skip
BINARY = "pkg:deb/debian/libcheese1"
DIGEST = "ab" * 32


def document(path: Path, **changed: Any) -> Path:
    """A document that says of one thing what it is told to say."""
    whole: dict[str, Any] = json.loads((MADE_UP / "made-up.openvex.json").read_text())
    whole["statements"][0] |= changed
    path.write_text(json.dumps(whole))
    return path


def dismissed(path: Path) -> list[str]:
    data = feeds.read([MADE_UP / "made-up-tracker.json"], vulnerability.wanted([MANIFEST]))
    report = vulnerability.judge(MANIFEST, data, digest=DIGEST)
    statements = vex.read(path, keys=[], is_unsigned_fine=True)
    report = vex.dismissed(report, statements, MANIFEST, today=NOW)
    assert all(one.id == "CVE-2099-0001" for one in report.findings if one.dismissed)
    counted = {one.id for one in vulnerability.counted(report, max_severity="none")}
    return [one.id for one in report.findings if one.dismissed and one.id not in counted]


def product(name: str = "", **more: Any) -> dict[str, Any]:
    return {"products": [{"@id": name, **more}]}


PARTS = {"subcomponents": [{"@id": BINARY}]}


@pytest.mark.parametrize(
    ("does", "changed"),
    [
        (True, {}),
        (True, product("pkg:deb/debian/libcheese1@1:1.2-3?arch=amd64&distro=debian-12")),
        (True, product("pkg:deb/debian/libcheese1@1%3A1.2-3")),
        (True, product("pkg:deb/debian/cheese@1:1.2-3?arch=source")),
        (True, product("x", identifiers={"purl": BINARY})),
        (True, product("pkg:generic/web@1")),
        (True, product("pkg:generic/web@1", **PARTS)),
        (True, product("x", hashes={"sha-256": DIGEST}, **PARTS)),
        (True, {"status": "fixed", "justification": ""}),
        (True, {"vulnerability": {"name": "MADE-UP", "aliases": ["CVE-2099-0001"]}}),
        (False, product("pkg:deb/debian/libcheese1@1:1.2-4")),
        (False, product("pkg:deb/debian/libcheese1?arch=arm64")),
        (False, product("pkg:deb/ubuntu/libcheese1")),
        (False, product("pkg:deb/debian/libcheese")),
        (False, product("pkg:generic/db@1")),
        (False, product("pkg:generic/web@2")),
        (False, product("pkg:generic/web@1", hashes={"sha-256": "cd" * 32})),
        (False, product("pkg:generic/web@1", subcomponents=[{"@id": "pkg:deb/debian/bread"}])),
        (False, product("")),
        (False, {"products": []}),
        (False, {"vulnerability": {"name": "CVE-2099-9999"}}),
        (False, {"justification": ""}),
        (False, {"justification": "trust me"}),
        (False, {"status": "affected"}),
        (False, {"status": "under_investigation"}),
        (False, {"timestamp": "2025-11-01T00:00:00Z"}),
        (False, {"timestamp": "2027-11-01T00:00:00Z"}),
    ],
)
def test_what_dismisses(does: bool, changed: dict[str, Any], tmp_path: Path) -> None:
    assert dismissed(document(tmp_path / "x.json", **changed)) == (["CVE-2099-0001"] if does else [])


def test_of_two_statements_the_later_counts(tmp_path: Path) -> None:
    path = document(tmp_path / "x.json")
    whole = json.loads(path.read_text())
    later = {**whole["statements"][0], "status": "affected", "timestamp": "2026-11-02T00:00:00Z"}
    whole["statements"].insert(0, later)
    path.write_text(json.dumps(whole))
    assert dismissed(path) == []


def test_only_what_a_trusted_key_signed_is_read(tmp_path: Path) -> None:
    signer, path = key.new(), document(tmp_path / "x.json")
    with pytest.raises(Problem, match="is not signed"):
        vex.read(path, keys=[signer])
    path.with_name("x.json.minisig").write_text(signer.sign(path.read_bytes(), comment=""))
    assert [one.by for one in vex.read(path, keys=[key.new(), signer])] == [signer.id]
    with pytest.raises(Problem, match="none of the keys"):
        vex.read(path, keys=[key.new()])
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(Problem, match="none of the keys"):
        vex.read(path, keys=[signer])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"status": "fine"}, "is none of"),
        ({"timestamp": "yesterday"}, "x.json"),
        ({"timestamp": "2026-11-01"}, "no time zone"),
        ({"products": {}}, "should be a list"),
        ({"vulnerability": "CVE-2099-0001"}, "should be an object"),
        ({"vulnerability": {}}, "is no text"),
    ],
)
def test_a_malformed_document_is_refused(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=words):
        dismissed(document(tmp_path / "x.json", **changed))
