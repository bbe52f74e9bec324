"""The verbs search and vulns, as they are typed."""

import json
from pathlib import Path
from typing import Any

import pytest

from imagekit import artifact, cli, key
from imagekit.checks import vulnerabilities

MADE_UP = Path(__file__).parent.parent / "fixtures/advisories"
TRACKER = str(MADE_UP / "made-up-tracker.json")


def row(name: str, version: str) -> dict[str, Any]:
    return {"name": name, "version": version, "architecture": "amd64", "sha256": "11" * 32, "size": 1,
            "source": "debian", "origin": ["cheese", version], "licence": "MIT"}  # fmt: skip


@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A signed artifact without parts, a cache of its own, and the key that is trusted."""
    signer = key.new()
    key.save(signer, tmp_path / "own.key")
    monkeypatch.setenv("IMAGEKIT_KEY", str(tmp_path / "own.key"))
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    manifest = {"name": "web", "version": "1", "arch": "x86_64", "format": "tar", "kind": "root", "suite": "bookworm",
                "parts": [], "packages": [row("libcheese1", "1:1.2-3")]}  # fmt: skip
    text = artifact.canonical(manifest)
    path = tmp_path / "out/web.manifest.json"
    path.write_bytes(text)
    path.with_name(path.name + ".minisig").write_text(signer.sign(text, comment="made up"))
    return path


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["search", "cheese<1:1.2-4"], 0, "libcheese1 1:1.2-3"),
        (["search", "cheese>=1:1.2-4"], 1, ""),
        (["search", "cheese", "--in", "out", "--json"], 0, '"name": "libcheese1"'),
        (["vulns", "--all", "--data", TRACKER], 1, "CVE-2099-0001 high: libcheese1"),
        (["vulns", "out/web.manifest.json", "--data", TRACKER, "--max-severity", "critical"], 0, "CVE-2099-0001"),
        (["vulns", "out/web.manifest.json", "--data", TRACKER, "--json"], 1, '"id": "CVE-2099-0001"'),
    ],
)
def test_what_is_typed(
    signed: Path, words: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert signed.exists()
    assert cli.main(words) == status
    assert said in capsys.readouterr().out


def test_a_signed_document_dismisses_and_sarif_is_written(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vex = signed.parent / "made-up.openvex.json"
    vex.write_bytes((MADE_UP / vex.name).read_bytes())
    words = ["vulns", str(signed), "--data", TRACKER, "--vex", str(vex), "--unrated", "low", "--sarif", "web.sarif"]
    assert cli.main(words) != 0
    assert "is not signed" in capsys.readouterr().err
    assert cli.main([*words, "--unsigned-vex", "--vex-days", "100000"]) == 0
    signer = key.read(Path("own.key"))
    vex.with_name(vex.name + ".minisig").write_text(signer.sign(vex.read_bytes(), comment=""))
    assert cli.main([*words, "--vex-days", "100000"]) == 0
    suppressed = [r for r in json.loads(Path("web.sarif").read_text())["runs"][0]["results"] if "suppressions" in r]
    assert [one["ruleId"] for one in suppressed] == ["CVE-2099-0001"]


def test_an_image_that_nobody_trusted_signed_is_refused(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key.save(key.new(), Path("other.key"))
    assert cli.main(["vulns", str(signed), "--data", TRACKER, "--key", "other.key"]) != 0
    assert "signed by" in capsys.readouterr().err
    assert cli.main(["search", "cheese", "--key", "other.key"]) == 1
    assert "; 1 left out, as --json tells" in capsys.readouterr().err


def test_the_check_takes_a_signed_document(signed: Path) -> None:
    made, trusted = artifact.load(signed), key.read(Path("own.key"))
    vex = signed.parent / "made-up.openvex.json"
    vex.write_bytes((MADE_UP / vex.name).read_bytes().replace(b"2026-11-01", b"2099-01-01"))
    vex.with_name(vex.name + ".minisig").write_text(trusted.sign(vex.read_bytes(), comment=""))
    with pytest.raises(AssertionError, match="CVE-2099-0001"):  # it is from a day that has not come
        vulnerabilities.no_known_vulnerabilities(
            made, data=[TRACKER], vex=[vex], keys=[trusted], unrated="low", allow_stale=True
        )
