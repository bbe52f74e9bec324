"""The catalogue of a depot: a file of its index, written with every publication, so that a search fetches it alone."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256

from imagekit import catalogue
from imagekit.artifact import Artifact
from imagekit.catalogue import Catalogue, Known
from imagekit.depot import head, index
from imagekit.depot.index import Held, Target
from imagekit.errors import Problem
from imagekit.site import Missing, Site

PATH = "search/catalogue"
Listing = Callable[[bytes], Sequence[str]]  # a package's digest -> its files


def nothing(digest: bytes) -> Sequence[str]:
    """No files: for a publisher who does not know those of packages."""
    _ = digest
    return ()


def read(site: Site, targets: Mapping[str, Target]) -> Catalogue:
    """The catalogue that an index names, which was verified; raises Problem where there is none."""
    target = targets.get(PATH)
    if target is None:
        raise Problem(f"{site.place} has no catalogue", "it gets one with the next publication")
    if target.size > catalogue.LARGEST:
        raise Problem(f"the catalogue of {site.place} has {target.size} bytes, which is more than one can have")
    try:
        data = site.read(head.stored_at(PATH, target.sha256), target.size)
    except Missing:
        raise Problem(f"{site.place} lacks the catalogue that its index names", "try again") from None
    if len(data) != target.size or sha256(data).hexdigest() != target.sha256:
        raise Problem(f"the catalogue of {site.place} is not what the index names", "somebody changed it on its way")
    return catalogue.read(data)


def following(
    site: Site, held: Held, artifacts: Mapping[str, Artifact], *, listing: Listing = nothing
) -> tuple[Target, bytes]:
    """The catalogue with these images too, each by what the index calls it; to be called under the site's lock."""
    known = _before(site, held)
    images = {one: packages for one, packages in known.images.items() if one.place not in artifacts}
    paths = dict(known.paths)
    for path, artifact in artifacts.items():
        packages = catalogue.packages(artifact.manifest) if "packages" in artifact.manifest else ()
        images[catalogue.image(artifact.manifest, place=path, mark="", digest=artifact.digest)] = packages
        paths |= _listed((package.digest for package in packages if package.digest not in paths), listing)
    data = catalogue.write(Known(images, paths))
    return Target(sha256(data).hexdigest(), len(data), {}), data


def _before(site: Site, held: Held) -> Known:
    target = held.targets.signed.targets.get(PATH)
    if target is None:
        return Known({}, {})
    return read(site, {PATH: Target(target.hashes["sha256"], target.length, index.custom(target))}).known()


def _listed(digests: Iterable[bytes], listing: Listing) -> dict[bytes, Sequence[str]]:
    found = {digest: listing(digest) for digest in digests if digest != catalogue.UNKNOWN}
    return {digest: files for digest, files in found.items() if files}
