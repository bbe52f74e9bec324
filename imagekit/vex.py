"""OpenVEX: why a vulnerability does not count, said by somebody who is trusted.

https://github.com/openvex/spec/blob/main/OPENVEX-SPEC.md, 0.2.0. A statement counts for the product that it names and
no other, if it is signed, justified and not too old; of two on the same, the later one.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from imagekit import sbom, strict
from imagekit.advisory import listing, mapping, text
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.vulnerability import Finding, Report

LARGEST = 1 << 24  # bytes
DAYS = 180  # after which a statement is to be made again
CONTEXT = "https://openvex.dev/ns"
STATUSES = ("not_affected", "affected", "fixed", "under_investigation")
JUSTIFICATIONS = (
    "component_not_present", "vulnerable_code_not_present", "vulnerable_code_not_in_execute_path",
    "vulnerable_code_cannot_be_controlled_by_adversary", "inline_mitigations_already_exist",
)  # fmt: skip


class Statement(NamedTuple):
    """What a document says of some products."""

    names: frozenset[str]  # of the vulnerability
    products: tuple[tuple[str, str, tuple[str, ...]], ...]  # (identifier, sha256, identifiers of parts)
    status: str
    justification: str
    date: datetime
    by: str


def read(path: Path, *, keys: Sequence[Key], is_unsigned_fine: bool = False) -> list[Statement]:
    """The statements of a document that one of the keys signed: the signature lies beside it as .minisig."""
    data = _bytes(path)
    by = "nobody who signed" if is_unsigned_fine else _signer(path, data, keys).id
    document = strict.parse(data, what=str(path), limit=LARGEST)
    if not text(document.get("@context", ""), f"@context of {path}").startswith(CONTEXT):
        raise Problem(f"{path} is no OpenVEX document", f"its @context begins with {CONTEXT}")
    found = [_statement(mapping(one, f"a statement of {path}"), document, by, str(path))
             for one in listing(document.get("statements"), f"statements of {path}")]  # fmt: skip
    return sorted(found, key=lambda one: one.date)  # "the last one counts" (spec, "Updating statements")


def dismissed(
    report: Report, statements: Sequence[Statement], manifest: Mapping[str, Any], *, today: datetime, days: int = DAYS
) -> Report:
    """The report with those findings dismissed that the statements speak of."""
    return report._replace(
        findings=tuple(one._replace(dismissed=_why(one, report, statements, manifest, today, days))
                       for one in report.findings)
    )  # fmt: skip


def _why(
    finding: Finding, report: Report, statements: Sequence[Statement], manifest: Mapping[str, Any], today: datetime,
    days: int,
) -> str:  # fmt: skip
    said = [one for one in statements if finding.id in one.names and _speaks_of(one, finding, report, manifest)]
    if not said:
        return ""
    last = max(said, key=lambda one: one.date)
    is_timely = today - timedelta(days=days) <= last.date <= today
    does_dismiss = last.status == "fixed" or (last.status == "not_affected" and last.justification in JUSTIFICATIONS)
    return f"{last.justification or last.status}, says {last.by}" if is_timely and does_dismiss else ""


def _speaks_of(statement: Statement, finding: Finding, report: Report, manifest: Mapping[str, Any]) -> bool:
    package = finding.package
    source = package.origin or package.name
    own = [sbom.purl({**package._asdict(), "name": name, "version": version, "architecture": arch}, manifest)
           for name, version, arch in ((package.name, package.version, package.architecture),
                                       (source, finding.version, "source"))]  # fmt: skip
    image = f"pkg:generic/{manifest['name']}@{manifest.get('version', '')}"
    for name, digest, parts in statement.products:
        if any(_is_meant(name, one) for one in own):
            return True
        is_image = digest == report.digest if digest else _is_meant(name, image)
        if is_image and (not parts or any(_is_meant(part, one) for part in parts for one in own)):
            return True
    return False


def _is_meant(said: str, own: str) -> bool:
    """Whether a package URL means another: without a version it means all; each qualifier that it has must fit."""
    (path, version, qualifiers), (own_path, own_version, own_qualifiers) = _purl(said), _purl(own)
    return path == own_path and version in ("", own_version) and qualifiers <= own_qualifiers


def _purl(name: str) -> tuple[str, str, frozenset[str]]:
    path, _, qualifiers = name.partition("#")[0].partition("?")
    head, at, version = path.rpartition("@")
    path, version = (head, version) if at and head.count("/") else (path, "")
    return unquote(path), unquote(version), frozenset(unquote(one) for one in qualifiers.split("&") if one)


def _statement(one: Mapping[str, Any], document: Mapping[str, Any], by: str, what: str) -> Statement:
    vulnerability = mapping(one.get("vulnerability"), f"vulnerability of {what}")
    names = [vulnerability.get("name"), *listing(vulnerability.get("aliases"), f"aliases of {what}")]
    status = one.get("status")
    if status not in STATUSES:
        raise Problem(f"{what}: status {ascii(status)[:40]} is none of {', '.join(STATUSES)}")
    products = tuple(_product(mapping(p, f"a product of {what}"), what)
                     for p in listing(one.get("products"), f"products of {what}"))  # fmt: skip
    date = one.get("last_updated") or one.get("timestamp") or document.get("last_updated") or document.get("timestamp")
    justification = text(one.get("justification", ""), f"justification of {what}")
    return Statement(frozenset(text(name, f"name of {what}") for name in names), products, status, justification,
                     _date(date, what), by)  # fmt: skip


def _product(product: Mapping[str, Any], what: str) -> tuple[str, str, tuple[str, ...]]:
    parts = listing(product.get("subcomponents"), f"subcomponents of {what}")
    hashes = mapping(product.get("hashes", {}), f"hashes of {what}")
    return (_name(product, what), text(hashes.get("sha-256", ""), f"hashes of {what}"),
            tuple(_name(mapping(part, f"a subcomponent of {what}"), what) for part in parts))  # fmt: skip


def _name(of: Mapping[str, Any], what: str) -> str:
    identifiers = mapping(of.get("identifiers", {}), f"identifiers of {what}")
    return text(identifiers.get("purl", of.get("@id", "")), f"a product of {what}", limit=1000)


def _date(value: object, what: str) -> datetime:
    try:
        date = datetime.fromisoformat(text(value, f"timestamp of {what}"))
    except ValueError as error:
        raise Problem(f"{what}: {error}") from error
    if date.tzinfo is None:
        raise Problem(f"{what}: the timestamp {value} has no time zone")
    return date


def _bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error


def _signer(path: Path, data: bytes, keys: Sequence[Key]) -> Key:
    beside = path.with_name(path.name + ".minisig")
    try:
        with open(beside, encoding="utf-8") as file:
            signature = file.read(1 << 16)
    except (OSError, UnicodeDecodeError):
        hint = "sign it, or allow it with --unsigned-vex"
        raise Problem(f"{path} is not signed: there is no {beside.name} beside it", hint) from None
    why = ""
    for key in keys:
        try:
            key.verify(data, signature)
            return key
        except Problem as problem:
            why = problem.message
    raise Problem(f"{path} is signed by none of the keys that are trusted: {why}", "name the signer's with --key")
