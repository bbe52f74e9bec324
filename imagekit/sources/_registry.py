"""Where npm's packages come from: the address of a registry, which this project never contains.

The first that is given counts, as npm has it (npmrc(5)): the variable
npm_config_registry; .npmrc beside the lock, of the user, of the host, a scope's own before the general one; then where
the lock found the package; then what the host's npm takes.
"""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from imagekit import host
from imagekit.errors import Problem, RigProblem

WAYS = (
    "give one of: the variable npm_config_registry; registry=URL in .npmrc beside the lock or of yours; a lock that "
    "says where its packages were found; an npm on this host that knows"
)
SYSTEM = (Path("/etc/npmrc"), Path("/usr/etc/npmrc"))
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def path_of(name: str, version: str, resolved: str) -> str:
    """The path of a package's tarball in a registry, express/-/express-4.19.2.tgz."""
    file = resolved.rpartition("/")[2]
    if is_registrys(name, resolved) and re.fullmatch(r"[A-Za-z0-9._~-]+\.tgz", file):
        return f"{name}/-/{file}"
    return f"{name}/-/{name.rpartition('/')[2]}-{version.partition('+')[0]}.tgz"


def is_registrys(name: str, resolved: str) -> bool:
    """Whether an address, if there is one, is of a registry: any other one knows the package too."""
    return not resolved or resolved.rpartition("/")[0].replace("%2f", "/").endswith(f"/{name}/-")


def address(name: str, resolved: str, folder: Path) -> str:
    """The registry that has a package; `folder`: that of the lock."""
    scope = name.partition("/")[0] if name.startswith("@") else ""
    settings = _settings(str(folder))
    found = settings.get(f"{scope}:registry", "") if scope else ""
    found = found or _variable() or settings.get("registry", "")
    if not found and resolved and is_registrys(name, resolved):
        found = resolved.replace("%2f", "/").rpartition(f"/{name}/-/")[0]
    return _checked(found or _of_npm())


def _checked(found: str) -> str:
    try:
        parts = urlsplit(found)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
    except ValueError:
        is_address = False
    if not is_address:
        raise RigProblem(f"the npm registry is {found!r}, which is no address", WAYS)
    return found.rstrip("/")


def _variable() -> str:
    return next((value for name, value in os.environ.items() if name.lower() == "npm_config_registry" and value), "")


@cache
def _settings(folder: str) -> Mapping[str, str]:
    """What the .npmrc files say of registries; the first that says something of one counts."""
    found: dict[str, str] = {}
    own = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    for file in (Path(folder) / ".npmrc", own, *SYSTEM):
        for key, value in _lines(file):
            found.setdefault(key, value)
    return found


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    try:
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    except OSError as error:
        raise RigProblem(f"cannot read {file}: {error.strerror}") from error
    for line in text.splitlines():
        key, sign, value = (word.strip() for word in line.partition("="))
        if sign and not line.lstrip().startswith((";", "#")) and (key == "registry" or key.endswith(":registry")):
            yield key, _VARIABLE.sub(lambda match: os.environ.get(match[1], ""), value.strip("\"'"))


@cache
def _of_npm() -> str:
    """What the host's npm would ask."""
    try:
        done = host.run(["npm", "config", "get", "registry"], env={"HOME": str(Path.home())}, timeout=60)
    except Problem as problem:
        raise RigProblem(f"no npm registry is known: {problem.message}", WAYS) from problem
    return done.stdout.decode(errors="replace").strip()
