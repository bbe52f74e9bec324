"""What a wheel says of itself: METADATA (core metadata 2.x), WHEEL, and the entry points that become scripts."""

import configparser
import re
from email.errors import MessageError
from email.parser import BytesHeaderParser
from typing import NamedTuple

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from imagekit.errors import Problem

MAX_REQUIREMENTS, MAX_POINTS, MAX_LINE = 5000, 1000, 4000
SCRIPTS = ("console_scripts", "gui_scripts")
COMMAND = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}\Z", re.ASCII)
POINT = re.compile(r"([A-Za-z_][\w.]*)\s*:\s*([A-Za-z_][\w.]*)\s*(?:\[[^\]]*\])?\Z", re.ASCII)
CLASSIFIERS = {  # the trove classifiers that mean one licence; "BSD License" and most others mean several
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: MIT No Attribution License (MIT-0)": "MIT-0",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
    "License :: OSI Approved :: The Unlicense (Unlicense)": "Unlicense",
    "License :: OSI Approved :: GNU General Public License v2 or later (GPLv2+)": "GPL-2.0-or-later",
    "License :: OSI Approved :: GNU General Public License v3 or later (GPLv3+)": "GPL-3.0-or-later",
    "License :: OSI Approved :: GNU Lesser General Public License v3 or later (LGPLv3+)": "LGPL-3.0-or-later",
}


class About(NamedTuple):
    """What resolving and an SBOM need to know of a project's version."""

    name: str
    version: Version
    requires: tuple[Requirement, ...]
    extras: frozenset[str]
    requires_python: SpecifierSet
    licence: str  # an SPDX expression, "" where none is stated


class EntryPoint(NamedTuple):
    """A command, and the function that it runs."""

    name: str
    module: str
    attribute: str


def read(text: bytes) -> About:
    """The METADATA of a wheel; raises Problem for what cannot be right."""
    fields = headers(text)
    try:
        name, version = _one(fields, "name"), Version(_one(fields, "version"))
        written = fields.get("requires-dist", [])
        if len(written) > MAX_REQUIREMENTS:
            raise Problem(f"its METADATA has {len(written)} requirements")
        requires = tuple(map(Requirement, written))
        requires_python = SpecifierSet(_one(fields, "requires-python", ""))
    except (InvalidVersion, InvalidRequirement, InvalidSpecifier, RecursionError) as error:
        raise Problem(f"its METADATA is malformed: {str(error)[:200]}") from error
    extras = frozenset(fields.get("provides-extra", []))
    return About(name, version, requires, extras, requires_python, _licence(fields))


def headers(text: bytes) -> dict[str, list[str]]:
    """The fields before the first empty line, by name in lower case; raises Problem for what is no such text."""
    try:
        head = text.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
        head.decode()
        message = BytesHeaderParser().parsebytes(head)
    except (UnicodeDecodeError, MessageError, ValueError) as error:
        raise Problem(f"its metadata is malformed: {error}") from error
    fields: dict[str, list[str]] = {}
    for name, value in message.raw_items():
        words = value.encode("ascii", "surrogateescape").decode()
        fields.setdefault(name.lower(), []).append(words.strip())
    return fields


def entry_points(text: bytes) -> list[EntryPoint]:
    """The commands among the entry points, by name; raises Problem for what is no name or no function."""
    parser = configparser.RawConfigParser(delimiters=("=",), default_section="")
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
    try:
        parser.read_string(text.decode())
    except (configparser.Error, UnicodeDecodeError, ValueError) as error:
        raise Problem(f"its entry_points.txt is malformed: {str(error)[:200]}") from error
    written = [item for section in SCRIPTS if parser.has_section(section) for item in parser.items(section)]
    if len(written) > MAX_POINTS:
        raise Problem(f"its entry_points.txt has {len(written)} commands")
    found = {}
    for name, value in written:
        if name in found:
            raise Problem(f"its entry_points.txt has the command {name!r} twice")
        found[name] = _entry_point(name, value)
    return [found[name] for name in sorted(found)]


def _entry_point(name: str, value: str) -> EntryPoint:
    """Both are written into a script: nothing but names of Python may be in them."""
    match = POINT.match(value)
    words = [word for part in (match.groups() if match else ("",)) for word in part.split(".")]
    if not match or not COMMAND.match(name) or not all(word.isidentifier() for word in words):
        raise Problem(f"its entry_points.txt has {ascii(name)[:80]} = {ascii(value)[:80]}, which is no command")
    return EntryPoint(name, match[1], match[2])


def _one(fields: dict[str, list[str]], name: str, default: str | None = None) -> str:
    found = fields.get(name, [] if default is None else [default])
    if len(found) != 1 or len(found[0]) > MAX_LINE:
        raise Problem(f"its METADATA has {len(found)} fields {name.title()}, not one of sensible length")
    return found[0]


def _licence(fields: dict[str, list[str]]) -> str:
    """What License-Expression states (PEP 639), else an older field, as far as that means one licence."""
    for field in ("license-expression", "license"):
        written = (fields.get(field) or [""])[0]
        if 0 < len(written) <= 200:
            try:
                return str(canonicalize_license_expression(written))
            except InvalidLicenseExpression:
                pass
    found = {CLASSIFIERS.get(line, "") for line in fields.get("classifier", []) if line.startswith("License ::")}
    return found.pop() if len(found) == 1 else ""
