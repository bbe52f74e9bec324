"""Say which packages of images are vulnerable, by feeds that you fetched; exit status 1 when any is that counts."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from imagekit import artifact, feeds, holdings, host, sarif, usage, vex, vulnerability
from imagekit.advisory import LEVELS, STATUSES
from imagekit.artifact import Artifact
from imagekit.errors import Problem
from imagekit.usage import Verb
from imagekit.verbs import _asked
from imagekit.vulnerability import Report


def run(asked: Namespace) -> int:
    """Each image by itself; what cannot be judged counts too, unless that is allowed."""
    keys = _asked.keys(asked.key)
    images = [artifact.load(path) for path in _paths(asked)]
    for one in images:
        one.signer(keys)
    manifests = [one.manifest for one in images]
    data = feeds.read(asked.data, vulnerability.wanted(manifests))
    reports = [vulnerability.judge(one.manifest, data, digest=one.digest) for one in images]
    said = [one for path in asked.vex for one in vex.read(path, keys=keys, is_unsigned_fine=asked.unsigned_vex)]
    now = datetime.now(UTC)
    reports = [vex.dismissed(report, said, manifest, today=now, days=asked.vex_days)
               for report, manifest in zip(reports, manifests, strict=True)]  # fmt: skip
    stale = vulnerability.stale(data.dates, today=now, days=asked.days)
    _show(asked, images, reports, stale)
    bad = [one for report in reports for one in vulnerability.counted(report, max_severity=asked.max_severity,
           unrated=asked.unrated, statuses=[s for s in STATUSES if s not in asked.without])]  # fmt: skip
    is_unsure = any(report.unknown for report in reports) and not asked.allow_unknown
    return 1 if bad or is_unsure else 0


def _paths(asked: Namespace) -> list[Path]:
    if asked.all and not asked.path:
        store = _asked.store()
        folders = [store.folder("artifacts"), *([Path("out")] if Path("out").is_dir() else [])]
        return holdings.find(folders)
    if asked.all or not asked.path:
        raise Problem("name artifacts, or --all for those of the cache and of out/")
    return list(asked.path)


def _show(asked: Namespace, images: Sequence[Artifact], reports: Sequence[Report], stale: Sequence[str]) -> None:
    if asked.sarif:
        with host.draft(asked.sarif) as file:
            file.write(sarif.write([(str(one.path), report) for one, report in zip(images, reports, strict=True)]))
    if asked.json:
        print(json.dumps({"images": [vulnerability.told(report) for report in reports], "stale": stale}, indent=1))
        return
    for report in reports:
        judged = f"{report.judged} packages judged, {len(report.unknown)} unknown"
        _asked.show(f"{report.image}: {len(report.findings)} found, {judged}")
        for finding in report.findings:
            _asked.show(f"  {vulnerability.line(finding)}")
        for name, why in report.unknown.items():
            _asked.show(f"  unknown: {name}: {why}")
    for line in stale:
        _asked.note(f"stale: {line}")


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", nargs="*", type=Path, metavar="ARTIFACT", help="manifests, or any part of an artifact")
    verb.add_argument("--all", action="store_true", help="every artifact of the cache and of out/")
    verb.add_argument("--data", nargs="+", type=Path, required=True, metavar="FILE", help=feeds.HOW)
    verb.add_argument("--max-severity", choices=LEVELS, default="high", help="from which on it counts (default: high)")
    verb.add_argument("--unrated", choices=LEVELS, default=vulnerability.UNRATED,
                      help=f"what an unrated one counts as (default: {vulnerability.UNRATED})")  # fmt: skip
    verb.add_argument("--without", choices=STATUSES, action="append", default=[],
                      help="a status that does not count (repeatable)")  # fmt: skip
    verb.add_argument("--allow-unknown", action="store_true", help="let packages that cannot be judged not count")
    verb.add_argument("--vex", type=Path, action="append", default=[], metavar="FILE",
                      help="OpenVEX document that dismisses, with its signature beside it (repeatable)")  # fmt: skip
    verb.add_argument("--unsigned-vex", action="store_true", help="believe OpenVEX documents that nobody signed")
    verb.add_argument("--vex-days", type=int, default=vex.DAYS, metavar="N",
                      help=f"how old a statement may be (default: {vex.DAYS})")  # fmt: skip
    verb.add_argument("--days", type=int, default=vulnerability.DAYS, metavar="N",
                      help=f"from which age on data is told to be stale (default: {vulnerability.DAYS})")  # fmt: skip
    verb.add_argument("--json", action="store_true", help="as JSON")
    verb.add_argument("--sarif", type=Path, metavar="FILE", help="write SARIF 2.1.0 too")
    usage.key_option(verb, "key that must have signed manifests and OpenVEX documents", action="append")


VERB = Verb(
    run,
    define,
    (
        "vulns out/web_1_x86_64.img --data tracker.json",
        "vulns --all --data tracker.json osv-debian.zip --vex web.openvex.json --sarif web.sarif",
    ),
)
