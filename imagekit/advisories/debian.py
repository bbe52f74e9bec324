"""The Debian security tracker's data: what is known of every source package in every release.

https://security-tracker.debian.org/tracker/data/json: source -> CVE -> releases -> status, fixed_version, urgency. It
does not say when it was made. https://security-team.debian.org/security_tracker.html tells what the words mean.
"""

from collections.abc import Collection, Mapping
from typing import Any

from imagekit import order
from imagekit.advisory import Advisory, Feed, Subject, Told, mapping, summary, text
from imagekit.errors import Problem

URGENCIES = {"unimportant": "none", "low": "low", "medium": "medium", "high": "high"}  # of others nobody has rated it
STATUSES = ("open", "resolved", "undetermined")
NEVER = "0"  # the version in which a release is "fixed" that was never affected


def knows(document: Mapping[str, Any]) -> bool:
    """Its first entry is a source package's, with issues that name releases."""
    issues = next(iter(document.values()), None)
    issue = next(iter(issues.values()), None) if isinstance(issues, dict) else None
    return isinstance(issue, dict) and "releases" in issue


def read(document: Mapping[str, Any], wanted: Collection[Subject]) -> Told:
    """The advisories of the wanted packages."""
    found, covers, records = list[Advisory](), set[tuple[str, str]](), 0
    for name, issues in document.items():
        for identifier, issue in mapping(issues, f"the tracker's entry of {ascii(name)[:80]}").items():
            records += 1
            what = f"{ascii(name)[:80]}: {ascii(identifier)[:80]}"
            releases = mapping(mapping(issue, what).get("releases"), f"releases of {what}")
            covers |= {("debian", release) for release in releases}
            if ("debian", name) in wanted:
                found += _advisories(name, text(identifier, what), mapping(issue, what), what)
    return Told(found, covers, records, "")


def _advisories(name: str, identifier: str, issue: Mapping[str, Any], what: str) -> list[Advisory]:
    """One for each release that is or was vulnerable."""
    found = []
    for release, said in issue["releases"].items():
        state = mapping(said, f"{release} of {what}")
        status, fixed = state.get("status"), text(state.get("fixed_version", ""), f"fixed_version of {what}")
        if status not in STATUSES:
            raise Problem(f"{what}: status {ascii(status)[:40]} is none of {', '.join(STATUSES)}")
        if status == "resolved" and fixed == NEVER:
            continue
        if status == "open" and state.get("nodsa_reason") == "ignored":
            status = "ignored"
        fixed = fixed if status == "resolved" else ""
        if status == "resolved" and not _is_version(fixed):
            status, fixed = "undetermined", ""  # in which version nobody can tell, so every version may have it
        about = summary(issue.get("description"))
        history = (("introduced", "0"), *([("fixed", fixed)] if fixed else []))
        urgency = text(state.get("urgency", ""), f"urgency of {what}").rstrip("*")
        found.append(Advisory(identifier, ("debian", name), release, (history,), status=status, fixed=fixed,
                              severity=URGENCIES.get(urgency, ""), summary=about))  # fmt: skip
    return found


def _is_version(text: str) -> bool:
    try:
        order.debian(text)
    except Problem:
        return False
    return True


FEED = Feed(knows, read)
