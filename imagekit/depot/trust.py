"""What a reader believes of a depot: python-tuf's updater, over our own bounded transport and strict JSON.

The root that a depot was trusted by, and the newest metadata seen of it, are kept below XDG_STATE_HOME: without them
nobody could tell an old index from the newest one.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, NoReturn
from urllib.parse import unquote, urlsplit

from tuf.api import exceptions
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from imagekit import host, strict
from imagekit.depot import index, roles
from imagekit.depot.index import Target
from imagekit.errors import Problem, RigProblem
from imagekit.site import Missing, Site, checked_path

ROOT, TARGETS = "trusted-root.json", "targets.json"
BASE = "depot:/"
FIRST = "metadata/1.root.json"
LIMITS = UpdaterConfig(
    max_root_rotations=index.ROTATIONS,
    root_max_length=index.LIMITS["root"],
    timestamp_max_length=index.LIMITS["timestamp"],
    snapshot_max_length=index.LIMITS["snapshot"],
    targets_max_length=index.LIMITS["targets"],
)
WORDS = (  # the first that fits; python-tuf's own message follows
    (exceptions.ExpiredMetadataError, "has expired: either nobody keeps it, or somebody shows an old one",
     "who keeps it runs `imagekit depot refresh`"),
    (exceptions.BadVersionNumberError, "was rolled back: newer metadata was seen before",
     "somebody shows an old index, or mixes two"),
    (exceptions.UnsignedMetadataError, "is not signed by enough of its keys", "it may have been changed on its way"),
    (exceptions.LengthOrHashMismatchError, "does not fit together",
     "somebody may mix two; or it changed just now: try again"),
    (exceptions.RepositoryError, "is not what its keys signed", "it may have been changed on its way"),
)  # fmt: skip


class Seen(NamedTuple):
    """An index that was verified, and is no older than any that was seen before."""

    targets: Mapping[str, Target]
    root: bytes  # that its depot was first trusted by
    least: int  # the version of its timestamp


def state(site: Site, home: Path | None = None) -> Path:
    """Where is kept what was seen of a depot."""
    base = home or Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "imagekit" / "depots"
    return base / sha256(site.place.encode()).hexdigest()[:32]


def adopt(site: Site, root: Path | bytes | str, *, home: Path | None = None) -> None:
    """Trust a depot by its first root: a file, its bytes, or "sha256:" and the digest of what the depot itself has.

    Raises Problem where another root was trusted before: nobody changes whom we trust by naming it again.
    """
    data = _root(site, root)
    with _faults(site.place):
        Updater(str(_made(state(site, home))), BASE, fetcher=_Transport(site), config=LIMITS, bootstrap=_checked(data))
    path = state(site, home) / ROOT
    if path.exists() and path.read_bytes() != data:
        raise Problem(f"{site.place} is trusted by another root already", f"if that is over, remove {path.parent}")
    if not path.exists():
        with host.draft(path) as file:
            file.write(data)


def trusted(site: Site, *, home: Path | None = None) -> bytes:
    """The root that a depot is trusted by; raises Problem for one that nobody said is to be trusted."""
    try:
        return (state(site, home) / ROOT).read_bytes()
    except FileNotFoundError:
        raise Problem(
            f"nothing says that {site.place} is to be trusted",
            "get its root.json from who keeps it and name it once: --root FILE, or --root sha256:DIGEST",
        ) from None


def refresh(site: Site, *, home: Path | None = None, targets: bytes = b"") -> Seen:
    """The index as it is now; raises Problem for one that is forged, old, expired or mixed.

    targets: metadata that may be the newest, and is not fetched if it is.
    """
    root, folder = trusted(site, home=home), _made(state(site, home))
    with host.once(folder, "refresh"), _faults(site.place):
        if targets:
            with host.draft(folder / TARGETS) as file:
                file.write(targets)  # believed as far as the newest snapshot names it, like all that lies here
        updater = Updater(str(folder), f"{BASE}metadata/", fetcher=_Transport(site), config=LIMITS, bootstrap=root)
        updater.refresh()
        return Seen(index.listed((folder / TARGETS).read_bytes()), root, newest(site, home=home))


def had(site: Site, *, home: Path | None = None) -> bytes:
    """The targets metadata that was seen last; b"" for none."""
    try:
        return (state(site, home) / TARGETS).read_bytes()
    except FileNotFoundError:
        return b""


def newest(site: Site, *, home: Path | None = None) -> int:
    """The version of the newest timestamp that was seen; 0 for none."""
    try:
        data = (state(site, home) / "timestamp.json").read_bytes()
        version = strict.parse(data, what="the timestamp", limit=LIMITS.timestamp_max_length)["signed"]["version"]
    except (FileNotFoundError, KeyError, TypeError):
        return 0
    return int(version)


class _Transport(FetcherInterface):
    """python-tuf's way to a site: with the limit that each file has, and nothing parsed that is not strict JSON."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def _fetch(self, url: str) -> NoReturn:
        raise NotImplementedError("files are read whole, by download_bytes")

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """A file of metadata, of at most so many bytes."""
        path = checked_path(unquote(urlsplit(url).path).lstrip("/"))
        try:
            data = self._site.read(path, max_length)
        except Missing as missing:
            raise exceptions.DownloadHTTPError(str(missing), 404) from missing
        return _checked(data, what=path)


def _root(site: Site, root: Path | bytes | str) -> bytes:
    if isinstance(root, bytes):
        return root
    if isinstance(root, str) and root.startswith("sha256:"):
        data = site.read(FIRST, index.LIMITS["root"])
        if sha256(data).hexdigest() != root.removeprefix("sha256:"):
            raise Problem(f"the first root of {site.place} is another: sha256:{sha256(data).hexdigest()}")
        return data
    try:
        with open(root, "rb") as file:
            return file.read(index.LIMITS["root"] + 1)
    except OSError as error:
        raise Problem(f"cannot read the root {root}: {error.strerror}", "a file, or sha256:DIGEST") from error


def _checked(data: bytes, *, what: str = "the root") -> bytes:
    roles.check_keys(strict.parse(data, what=what, limit=LIMITS.targets_max_length))
    return data


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise RigProblem(f"cannot keep what is seen of depots in {folder}: {error.strerror}",
                         "XDG_STATE_HOME names another folder") from error  # fmt: skip
    return folder


@contextmanager
def _faults(place: str) -> Iterator[None]:
    elsewhere = "XDG_STATE_HOME names another folder"
    try:
        yield
    except exceptions.DownloadHTTPError as error:
        raise RigProblem(f"{place} is no whole depot: {str(error).splitlines()[0]}", "try again later") from error
    except (exceptions.RepositoryError, exceptions.DownloadError, RecursionError) as error:
        words, hint = next(((w, h) for kind, w, h in WORDS if isinstance(error, kind)), ("cannot be read", ""))
        raise Problem(f"the index of {place} {words}: {ascii(str(error))[1:300]}", hint) from error
    except OSError as error:
        raise RigProblem(f"cannot keep what is seen of depots: {error}", elsewhere) from error
