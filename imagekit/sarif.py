"""What is vulnerable as SARIF 2.1.0, which forges and editors show.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html; security-severity is GitHub's property of a rule.
"""

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import imagekit
from imagekit import vulnerability
from imagekit.vulnerability import Finding, Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {"critical": "error", "high": "error", "medium": "warning", "low": "note", "none": "note", "": "warning"}
NOTICE = "unknown-package"  # the rule of what could not be judged


def write(reports: Sequence[tuple[str, Report]]) -> bytes:
    """Reports, each with the path of its manifest, as one log: the same bytes for the same reports."""
    rules = {one.id: _rule(one) for _, report in reports for one in report.findings}
    if any(report.unknown for _, report in reports):
        rules[NOTICE] = {"id": NOTICE, "shortDescription": {"text": "A package that could not be judged"}}
    names = sorted(rules)
    results = [_result(one, place, names) for place, report in reports for one in report.findings]
    results += [_unknown(name, why, place, names) for place, report in reports for name, why in report.unknown.items()]
    driver = {"name": "imagekit", "version": imagekit.__version__, "rules": [rules[name] for name in names]}
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return (json.dumps(log, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()


def _rule(finding: Finding) -> dict[str, Any]:
    rule: dict[str, Any] = {"id": finding.id, "shortDescription": {"text": finding.summary or finding.id}}
    if finding.score is not None:
        rule["properties"] = {"security-severity": str(finding.score)}
    return rule


def _result(finding: Finding, place: str, names: Sequence[str]) -> dict[str, Any]:
    result = {
        **_located(finding.id, place, names, f"{finding.package.name} {finding.version}"),
        "level": LEVELS[finding.severity],
        "message": {"text": vulnerability.line(finding)},
    }
    if finding.dismissed:
        suppression = {"kind": "external", "status": "accepted", "justification": finding.dismissed}
        result["suppressions"] = [suppression]  # 3.35: by a file beside the code
    return result


def _unknown(name: str, why: str, place: str, names: Sequence[str]) -> dict[str, Any]:
    return {**_located(NOTICE, place, names, name), "level": "warning", "message": {"text": f"{name}: {why}"}}


def _located(rule: str, place: str, names: Sequence[str], what: str) -> dict[str, Any]:
    """Where and what: a number that stays the same from one run to the next (3.27.17)."""
    from urllib.parse import quote

    place = quote(place)
    return {
        "ruleId": rule,
        "ruleIndex": names.index(rule),
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": place}}}],
        "partialFingerprints": {"imagekit/v1": sha256(f"{rule} {place} {what}".encode()).hexdigest()},
    }
