"""The index that wheels come from, by the simple API (PEP 503), whose pages name each file with its sha256.

Which index that is, uv's and pip's own settings say; a lock names files, never where they were. The index is not
trusted for more than what a name stands for: what is taken has the sha256 that was pinned.
"""

import os
import re
import sys
from configparser import Error as ConfigError
from configparser import RawConfigParser
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

from packaging.utils import canonicalize_name

from imagekit import host
from imagekit.download import Line, Missing, text
from imagekit.errors import Problem, RigProblem

SETTINGS = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
OF_PIP = "from pip._internal.models.index import PyPI; print(PyPI.simple_url)"  # what it takes if it is told nothing
MAX_PAGE = 64 << 20  # bytes; the longest project of PyPI has 30 MB
MAX_FILES = 100_000
SHA256 = re.compile(r"sha256=([0-9a-f]{64})\Z")


class File(NamedTuple):
    """A file of a project, as the index tells of it."""

    name: str
    url: str
    sha256: str
    requires_python: str
    is_yanked: bool


def address() -> str:
    """The index: from the environment as uv and pip read it, else from pip: its settings, or its own default."""
    given = next((os.environ[name] for name in SETTINGS if os.environ.get(name)), "") or _configured()
    found = (given or _of_pip()).rstrip("/")
    try:
        is_right = urlsplit(found).scheme in ("http", "https") and bool(urlsplit(found).hostname)
    except ValueError:
        is_right = False
    if not is_right or not found.isprintable():
        raise Problem(f"the index {ascii(found)[:100]} is no address of http or https", f"set {SETTINGS[-1]}")
    return found


def files(line: Line, index: str, project: str) -> list[File]:
    """The files of a project that have a sha256; raises Problem for a project that the index does not have."""
    url = f"{index}/{canonicalize_name(project)}/"
    try:
        page = text(line, url, MAX_PAGE)
    except Missing as missing:
        shown = urlsplit(index)
        raise Problem(
            f"the index has no project {project!r}", f"is it spelt right? {shown.hostname}{shown.path} was asked"
        ) from missing
    parser = _Page()
    parser.feed(page.decode("utf-8", "replace"))
    parser.close()
    base = urljoin(url, parser.base) if parser.base else url
    found = (_file(base, attributes) for attributes in parser.links)
    return [file for file in found if file]


class _Page(HTMLParser):
    """The links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[dict[str, str]] = []
        self.base = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take a link; of what else a page may hold nothing is looked at."""
        attributes = {name: value or "" for name, value in attrs}
        if tag == "base":
            self.base = self.base or attributes.get("href", "")
        elif tag == "a":
            self.links.append(attributes)
            if len(self.links) > MAX_FILES:
                raise Problem(f"a page of the index has more than {MAX_FILES} links")


def _file(base: str, attributes: dict[str, str]) -> File | None:
    """What a link stands for; None for one without a sha256, or that leads to no server."""
    try:
        url = urljoin(base, attributes.get("href", ""))
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return None
    digest = SHA256.match(parts.fragment)
    if not is_address or not digest or not url.isprintable():
        return None
    name = unquote(parts.path.rpartition("/")[2])
    requires = attributes.get("data-requires-python", "")
    return File(name, parts._replace(fragment="").geturl(), digest[1], requires, "data-yanked" in attributes)


def _configured() -> str:
    """index-url of pip's configuration files; the later one counts, as for pip ("Configuration", "Location")."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 - a word, not yet a path
    places = [Path("/etc/pip.conf"), Path("~/.pip/pip.conf").expanduser(), Path(base, "pip", "pip.conf")]
    if named := os.environ.get("PIP_CONFIG_FILE"):
        places.append(Path(named))
    found = ""
    for place in places if named != os.devnull else ():
        parser = RawConfigParser()
        try:
            parser.read_string(place.read_text())
        except FileNotFoundError:
            continue
        except (OSError, ConfigError, UnicodeDecodeError) as error:
            raise Problem(f"{place} cannot be read: {error}".splitlines()[0], "pip would complain of it too") from error
        found = parser.get("global", "index-url", fallback=found)
    return found


@cache
def _of_pip() -> str:
    """The index of a pip on this host, which knows one: this project contains no address of any."""
    for python in (sys.executable, "python3"):
        done = host.run([python, "-c", OF_PIP], ok=None, timeout=60)
        if done.code == 0:
            return done.stdout.decode(errors="replace").strip()
    raise RigProblem("no index of Python packages is known", f"set {SETTINGS[-1]}, or install pip, which knows one")
