"""Where Debian's packages come from: the address of a mirror, which this project never contains.

The first that is given counts: an option, a variable, the project's pyproject.toml, the host's own apt sources.
A lock holds paths relative to an archive ("debian", "debian-security"), so that it works behind every mirror.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imagekit import options
from imagekit.errors import Problem, RigProblem

VARIABLE = "IMAGEKIT_MIRROR"
KEYRING_VARIABLE = "IMAGEKIT_KEYRING"
MAIN, SECURITY = "debian", "debian-security"
SHIPPED = Path(__file__).parent / "keyrings" / "debian-archive-keyring.gpg"
HOST_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SUITES = (  # by which an entry of apt's sources is known to be Debian's, and not a derivative's or a vendor's
    *("oldoldstable", "oldstable", "stable", "testing", "unstable", "sid"),
    *("buster", "bullseye", "bookworm", "trixie", "forky", "duke"),
)
WAYS = (
    'give one of: the option --mirror URL; the variable IMAGEKIT_MIRROR; `mirror = "URL"` under [tool.imagekit] in '
    "pyproject.toml; an entry for Debian in the host's apt sources. The URL is that of the folder with dists/ and pool/"
)


@dataclass(frozen=True)
class Mirror:
    """The address of each archive, and who named it."""

    main: str
    security: str
    origin: str  # "option", "IMAGEKIT_MIRROR", or the path of a file

    def address(self, archive: str) -> str:
        """The address that paths of an archive are relative to; raises Problem for an archive that is not Debian's."""
        addresses = {MAIN: self.main, SECURITY: self.security}
        if archive not in addresses:
            raise Problem(
                f"the lock names the archive {archive!r}", f"known: {', '.join(addresses)}; write the lock again"
            )
        return addresses[archive]


class Entry(NamedTuple):
    """One source of apt: an address with a suite."""

    address: str
    suite: str
    components: tuple[str, ...]
    signed_by: str
    file: str


def find(option: str = "", *, start: Path | None = None, apt: Path = Path("/etc/apt")) -> Mirror:
    """The mirror to use; raises RigProblem that names the four ways to give one when there is none."""
    written, origin = options.origin("mirror", option or None, folder=start)
    return _given(written, origin) if written else _of_apt(apt)


def keyring(option: str = "", *, start: Path | None = None) -> Path:
    """The key ring that archives are verified against: the one shipped here, "host" for the host's, or a file."""
    named = options.lookup("keyring", option or None, folder=start)
    if named is not None and not isinstance(named, str):
        raise Problem(f"keyring is {named!r}, not a path", 'write keyring = "host", or the path of a file')
    return HOST_KEYRING if named == "host" else Path(named) if named else SHIPPED


def entries(apt: Path) -> Iterator[Entry]:
    """Every enabled binary source below a folder like /etc/apt, in apt's order (sources.list(5))."""
    for path in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        read = {".list": _one_line, ".sources": _deb822}.get(path.suffix)
        if read and path.is_file() and os.access(path, os.R_OK):
            yield from read(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _given(written: object, origin: str) -> Mirror:
    """A mirror in the words of a user: one address, or two where the security archive lies elsewhere."""
    words = written.split() if isinstance(written, str) else []
    if len(words) not in (1, 2) or not all(map(_is_address, words)):
        raise Problem(
            f"mirror (from {origin}) is {written!r}, which is no mirror", "give http://HOST/PATH or https://HOST/PATH"
        )
    main, *security = (word.rstrip("/") for word in words)
    return Mirror(main, security[0] if security else f"{main}-security", origin)


def _of_apt(apt: Path) -> Mirror:
    debian = sorted((entry for entry in entries(apt) if _likeness(entry)), key=_likeness, reverse=True)
    main = next((entry for entry in debian if not _is_security(entry.suite)), None)
    if main is None:
        raise RigProblem("no Debian mirror is known", WAYS)
    security = next((entry.address for entry in debian if _is_security(entry.suite)), f"{main.address}-security")
    return Mirror(main.address, security, main.file)


def _likeness(entry: Entry) -> int:
    """How surely an entry is Debian's own archive, 0 for not at all; in the end the signature decides."""
    stem = entry.suite.split("-")[0].split("/")[0]
    if stem not in SUITES or "main" not in entry.components or not _is_address(entry.address):
        return 0
    if entry.signed_by:
        return 3 if "debian-archive" in entry.signed_by else 0
    return 2 if entry.address.endswith(("/debian", "/debian-security")) else 1


def _is_security(suite: str) -> bool:
    return suite.endswith(("-security", "/updates"))


def _is_address(word: str) -> bool:
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(word)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
    except ValueError:
        return False


def _one_line(text: str, file: str) -> Iterator[Entry]:
    for line in text.splitlines():
        kind, _, rest = " ".join(line.partition("#")[0].split()).partition(" ")
        options = ""
        if rest.startswith("["):
            options, _, rest = rest[1:].partition("]")
        words = rest.split()
        if kind == "deb" and len(words) >= 2:
            signed_by = next((word[10:] for word in options.split() if word.startswith("signed-by=")), "")
            yield Entry(words[0].rstrip("/"), words[1], tuple(words[2:]), signed_by, file)


def _deb822(text: str, file: str) -> Iterator[Entry]:
    for stanza in _stanzas(text):
        if "deb" not in stanza.get("types", "").split() or stanza.get("enabled", "yes") in ("no", "false"):
            continue
        components, signed_by = tuple(stanza.get("components", "").split()), stanza.get("signed-by", "")
        for address in stanza.get("uris", "").split():
            for suite in stanza.get("suites", "").split():
                yield Entry(address.rstrip("/"), suite, components, signed_by, file)


def _stanzas(text: str) -> Iterator[Mapping[str, str]]:
    stanza: dict[str, str] = {}
    field = ""
    for line in [*text.splitlines(), ""]:
        if not line.strip():
            yield stanza
            stanza, field = {}, ""
        elif line.startswith((" ", "\t")):
            stanza[field] = f"{stanza.get(field, '')}\n{line.strip()}"
        elif not line.startswith("#"):
            field, _, value = line.partition(":")
            field = field.lower()
            stanza[field] = value.strip()
