"""The licence that a package of Debian states, as an SPDX expression.

Source: Debian's machine-readable copyright format 1.0; the expressions of SPDX 2.3, annex D. A file that is not
machine-readable states nothing that a program should guess at.
"""

import re
from typing import NamedTuple

MOST = 4 << 20  # bytes that are looked at
FIELD = re.compile(r"^License:[ \t]*(\S.*)$", re.MULTILINE | re.IGNORECASE)
FORMAT = re.compile(r"\A\s*Format(-Specification)?:\s*\S*copyright-format", re.IGNORECASE)
EITHER, ALL = re.compile(r",?\s+or\s+", re.IGNORECASE), re.compile(r",?\s+and\s+|,\s*", re.IGNORECASE)
NAMES = {  # Debian's short names, where SPDX has others
    "expat": "MIT", "mit": "MIT", "mit/x11": "MIT", "bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause",
    "bsd-4-clause": "BSD-4-Clause", "apache-2": "Apache-2.0", "apache-2.0": "Apache-2.0", "zlib": "Zlib", "isc": "ISC",
    "artistic": "Artistic-1.0", "artistic-2": "Artistic-2.0", "artistic-2.0": "Artistic-2.0", "cc0": "CC0-1.0",
    "cc0-1.0": "CC0-1.0", "openssl": "OpenSSL", "mpl-1.1": "MPL-1.1", "mpl-2.0": "MPL-2.0", "ofl-1.1": "OFL-1.1",
    "psf-2": "PSF-2.0", "python": "Python-2.0", "perl": "Artistic-1.0-Perl OR GPL-1.0-or-later", "curl": "curl",
    "0bsd": "0BSD", "unlicense": "Unlicense", "bsl-1.0": "BSL-1.0", "fsfap": "FSFAP",
}  # fmt: skip
GNU = re.compile(r"(A?GPL|LGPL|GFDL)-?(\d)(?:\.(\d))?(?:\.0)?(\+?)\Z", re.IGNORECASE)


class Stated(NamedTuple):
    """An expression, and whether it must stand in brackets beside others."""

    text: str
    is_choice: bool


def licence(copyright: bytes) -> str:
    """The licences of all parts of a package, joined by AND; "" for a file that is not machine-readable."""
    text = copyright.decode("utf-8", "replace")
    if not FORMAT.match(text):
        return ""
    found = {_stated(line) for line in set(FIELD.findall(text))}  # most stand there many times
    if len(found) == 1:
        return found.pop().text
    return " AND ".join(sorted(f"({one.text})" if one.is_choice else one.text for one in found))


def _stated(line: str) -> Stated:
    choices = []
    for choice in EITHER.split(line.strip()):
        names = [_name(name) for name in ALL.split(choice) if name.strip()]
        choices.append(" AND ".join(sorted(set(names))))
    found = sorted(set(filter(None, choices)))
    return Stated(" OR ".join(found), len(found) > 1 or " OR " in found[0] if found else False)


def _name(written: str) -> str:
    """SPDX's name of a licence, or a reference to one that is written out in the copyright file."""
    name = written.strip()
    gnu = GNU.match(name)
    if gnu:
        later = "-or-later" if gnu[4] else "-only"
        return f"{gnu[1].upper()}-{gnu[2]}.{gnu[3] or '0'}{later}"
    known = NAMES.get(name.lower())
    return known or "LicenseRef-" + re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")
