"""An archive's signed metadata: what a suite of Debian says of itself, believed only as far as it is signed.

Everything is read from the bytes that the verifier returns, never from those that were received: text around a
signed message, or headers inside it, is not signed. The freshness of a suite without Valid-Until (bookworm has none)
is held by memory: a date before the last one seen is a replay.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from imagekit.errors import Problem, RigProblem
from imagekit.mirror import VARIABLE, Mirror
from imagekit.package import Archive
from imagekit.sources import _index
from imagekit.store import Store

if TYPE_CHECKING:
    from imagekit.download import Line

MAIN_COMPONENT, FIRMWARE_COMPONENT = "main", "non-free-firmware"

SEEN = "debian-seen"  # the notes that remember the newest date of each suite
MAX_RELEASE = 8 << 20
CLOCK_SKEW = timedelta(days=1)
_BEGIN, _SIGNATURE, _END = (f"-----{words}-----".encode() for words in (
    "BEGIN PGP SIGNED MESSAGE", "BEGIN PGP SIGNATURE", "END PGP SIGNATURE",
))  # fmt: skip
_LISTED = re.compile(r" ([0-9a-f]{64}) +([0-9]+) ([!-~]+)")


class Release(NamedTuple):
    """What a suite's signed metadata says."""

    archive: Archive
    has_by_hash: bool
    files: dict[str, tuple[str, int]]  # path below dists/SUITE/ -> sha256, size


def fetch_release(line: "Line", place: Mirror, archive: str, suite: str, *, keyring: Path, store: Store) -> Release:
    """The release of a suite as the mirror has it now, verified."""
    from imagekit import download

    try:
        data = download.text(line, f"{place.address(archive)}/dists/{suite}/InRelease", MAX_RELEASE)
    except download.Missing as missing:
        raise RigProblem(
            f"the mirror has no suite {suite!r} in its archive {archive!r}",
            f"{missing.message}; the mirror is the one of {place.origin}; "
            f"{VARIABLE}='URL URL-OF-SECURITY' names a security archive that lies elsewhere",
        ) from missing
    return read_release(data, archive=archive, suite=suite, keyring=keyring, store=store, now=datetime.now(UTC))


def fetch_index(
    line: "Line", place: Mirror, release: Release, arch: str, *, store: Store, component: str = MAIN_COMPONENT
) -> _index.Index:
    """The packages of a suite for one of Debian's architectures, from the store if its metadata was read before."""
    from imagekit import download

    archive, path = release.archive, f"{component}/binary-{arch}/Packages.xz"
    if path not in release.files:
        raise Problem(f"{archive.suite} has no packages for {arch} (no {path} in its metadata)")
    digest, size = release.files[path]
    known = _index.load(digest, archive.name, store)
    if known:
        return known
    if release.has_by_hash:
        path = f"{path.rpartition('/')[0]}/by-hash/SHA256/{digest}"
    url = f"{place.address(archive.name)}/dists/{archive.suite}/{path}"
    return _index.make(download.text(line, url, size, digest), archive.name, store)


def read_release(data: bytes, *, archive: str, suite: str, keyring: Path, store: Store, now: datetime) -> Release:
    """The release in these bytes of an InRelease; raises RigProblem unless it is signed, fresh and of this suite."""
    try:
        signed, fingerprint = _verified(data, keyring, now)
        fields, files = _parsed(signed)
        _check_suite(fields, suite)
        date = _check_dates(fields, now)
        _check_replay(f"{archive}-{suite}", date, store)
    except RigProblem as problem:
        raise RigProblem(f"{archive}, suite {suite}: {problem.message}", problem.hint) from problem
    made = Archive(archive, suite, sha256(data).hexdigest(), f"{date:%Y-%m-%dT%H:%M:%SZ}", fingerprint)
    return Release(made, fields.get("Acquire-By-Hash") == "yes", files)


def _verified(data: bytes, keyring: Path, now: datetime) -> tuple[str, str]:
    """The signed text and the fingerprint of the key that signed it; nothing unsigned is passed over."""
    _check_frame(data)
    import pysequoia

    # The verifier asks whether a key was valid when it signed; one that has expired since may have been stolen.
    certs = [cert for cert in _certs(keyring) if not cert.expiration or cert.expiration > now]
    try:
        verified = pysequoia.verify(bytes=data, store=lambda _: certs)
        text = (verified.bytes or b"").decode()
    except (RuntimeError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise RigProblem(
            f"its metadata is not signed by a key of {keyring.name}: {reason}",
            "the mirror is not Debian's, or something changed it on the way; IMAGEKIT_KEYRING names another key ring",
        ) from error
    signers = {signature.certificate for signature in verified.valid_sigs}
    # The last in the ring is the newest key; a suite is signed by several.
    return text, next(cert.fingerprint for cert in reversed(certs) if cert.fingerprint in signers)


def _certs(keyring: Path) -> Sequence[Any]:
    import pysequoia

    try:
        return pysequoia.Cert.split_bytes(keyring.read_bytes())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise RigProblem(f"cannot read the key ring {keyring}: {reason}") from error


def _check_frame(data: bytes) -> None:
    """Raise unless this is one clear-signed message and nothing else: the verifier passes over what is around it."""
    lines = data.split(b"\n")
    frame = [line for line in lines if line.startswith(b"-----")]
    if frame != [_BEGIN, _SIGNATURE, _END] or (lines[0], lines[-2:]) != (_BEGIN, [_END, b""]):
        raise RigProblem(
            "its metadata is not one signed message and nothing else",
            "the mirror, or something before it, adds to what it serves",
        )
    headers = lines[1 : lines.index(b"")] if b"" in lines else lines
    if not all(re.fullmatch(rb"Hash: [A-Z0-9, ]+", header) for header in headers):
        raise RigProblem("its signed message has headers that are not signed")


def _parsed(text: str) -> tuple[dict[str, str], dict[str, tuple[str, int]]]:
    """The fields, and the files of the SHA256 list; weaker lists are not looked at."""
    fields: dict[str, str] = {}
    files: dict[str, tuple[str, int]] = {}
    field = ""
    for line in text.split("\n"):
        if line and not line.startswith(" "):
            field, _, value = line.partition(":")
            if field in fields:
                raise RigProblem(f"its metadata has the field {field!r} twice")
            fields[field] = value.strip()
        elif line and field == "SHA256":
            path, listed = _listed(line)
            if files.setdefault(path, listed) != listed:
                raise RigProblem(f"its metadata lists {path} twice")
    return fields, files


def _listed(line: str) -> tuple[str, tuple[str, int]]:
    match = _LISTED.fullmatch(line)
    if not match or match[3].startswith("/") or ".." in match[3].split("/") or len(match[2]) > 12:
        raise RigProblem(f"its metadata has the malformed line {ascii(line)[:200]}")
    return match[3], (match[1], int(match[2]))


def _check_suite(fields: dict[str, str], suite: str) -> None:
    names = [fields[name] for name in ("Codename", "Suite") if fields.get(name)]
    if suite not in names:
        raise RigProblem(
            f"the mirror serves the metadata of {' or '.join(map(ascii, names)) or 'no suite'} in its place",
            "the mirror is mistaken, or replays; name another",
        )


def _check_dates(fields: dict[str, str], now: datetime) -> datetime:
    """The date of the metadata; raises when it lies in the future, or when its validity is over."""
    date = _date(fields, "Date")
    clock = f"the clock here says {now:%Y-%m-%d %H:%M} UTC"
    if date > now + CLOCK_SKEW:
        raise RigProblem(f"its metadata is of {date:%Y-%m-%d %H:%M} UTC, which is in the future", clock)
    if "Valid-Until" in fields and (until := _date(fields, "Valid-Until")) < now:
        raise RigProblem(
            f"its metadata was valid until {until:%Y-%m-%d %H:%M} UTC",
            f"the mirror is no longer brought up to date: name another; or set the clock right: {clock}",
        )
    return date


def _date(fields: dict[str, str], field: str) -> datetime:
    try:
        date = parsedate_to_datetime(fields[field])
    except (KeyError, ValueError) as error:
        raise RigProblem(f"its metadata has the {field} {fields.get(field)!a}") from error
    return date.astimezone(UTC) if date.tzinfo else date.replace(tzinfo=UTC)


def _check_replay(key: str, date: datetime, store: Store) -> None:
    """Raise when a newer date of this suite was seen before; remember this one otherwise."""
    note = store.recall(SEEN, key)
    try:
        seen = datetime.fromisoformat((note or b"").decode()) if note else None
    except ValueError:
        seen = None
    if seen and date < seen:
        raise RigProblem(
            f"its metadata is of {date:%Y-%m-%d %H:%M} UTC, but that of {seen:%Y-%m-%d %H:%M} UTC was seen before",
            f"the mirror is behind, or replays old metadata: name another, or wait; notes/{SEEN}/{key} in the cache "
            f"{store.location} remembers the date",
        )
    if date != seen:
        store.remember(SEEN, key, date.isoformat().encode())
