"""Vulnerabilities: what feeds say of an artifact's packages; the feeds are files that you fetched."""

from collections.abc import Sequence
from pathlib import Path

from imagekit.artifact import Artifact
from imagekit.key import Key

Paths = Sequence[Path | str]


def no_known_vulnerabilities(
    artifact: Artifact,
    *,
    data: Paths,
    max_severity: str = "high",
    vex: Paths = (),
    keys: Sequence[Key] = (),
    days: int = 30,
    unrated: str = "high",
    without: Sequence[str] = (),
    allow_unknown: bool = False,
    allow_stale: bool = False,
) -> None:
    """Fail with a list of what is vulnerable, cannot be judged or is stale.

    As in `no_known_vulnerabilities(artifact, data=["tracker.json"], vex=["web.openvex.json"], keys=[key])`.

    keys: whose OpenVEX documents are believed. without: statuses that do not count, as "ignored". unrated: what counts
    as if it was rated so. Data that does not say from when it is, as the Debian tracker's, is stale unless that is
    allowed.
    """
    from datetime import UTC, datetime  # every definition imports this module, also where nothing is tested

    from imagekit import feeds, vulnerability
    from imagekit import vex as openvex
    from imagekit.advisory import STATUSES

    found = feeds.read([Path(path) for path in data], vulnerability.wanted([artifact.manifest]))
    report = vulnerability.judge(artifact.manifest, found, digest=artifact.digest)
    said = [one for path in vex for one in openvex.read(Path(path), keys=keys)]
    now = datetime.now(UTC)
    report = openvex.dismissed(report, said, artifact.manifest, today=now)
    statuses = [status for status in STATUSES if status not in without]
    bad = vulnerability.counted(report, max_severity=max_severity, unrated=unrated, statuses=statuses)
    lines = [vulnerability.line(one) for one in bad]
    lines += [f"unknown: {name}: {why}" for name, why in report.unknown.items() if not allow_unknown]
    lines += [f"stale: {line}" for line in vulnerability.stale(found.dates, today=now, days=days) if not allow_stale]
    assert not lines, f"{report.image}, {report.judged} packages judged:\n" + "\n".join(lines)
