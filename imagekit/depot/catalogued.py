"""The catalogue of a depot: a file of its index, written with every publication, so that a search fetches it alone.

It is kept as records in blobs (records.py), of which those move that changed.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256

from imagekit import catalogue
from imagekit.artifact import Artifact
from imagekit.catalogue import Catalogue, Known
from imagekit.depot import chunks, head, index, records
from imagekit.depot.blobs import Blobs
from imagekit.depot.head import File
from imagekit.depot.index import Held, Target
from imagekit.errors import Problem
from imagekit.site import Blob, Missing, Site
from imagekit.store import Store

PATH = "search/catalogue"
KIND, VERSION = "imagekit-catalogue", 2
MADE = "depot-catalogue"  # the notes that remember what was made of records, by their sha256
Listing = Callable[[bytes], Sequence[str]]  # a package's digest -> its files


def nothing(digest: bytes) -> Sequence[str]:
    """No files: for a publisher who does not know those of packages."""
    _ = digest
    return ()


def read(site: Site, targets: Mapping[str, Target], *, store: Store) -> Catalogue:
    """The catalogue that an index names, which was verified; raises Problem where there is none."""
    if PATH not in targets:
        raise Problem(f"{site.place} has no catalogue", "it gets one with the next publication")
    text = _text(site, targets[PATH])
    if _is_old(text):
        return catalogue.read(text)
    file = head.read_file(KIND, VERSION, text)
    try:
        return catalogue.read(store.read((store.recall(MADE, file.sha256) or b"").decode()))
    except (KeyError, Problem):  # it is not here yet, or rotted
        data = catalogue.write(records.read(_records(site, file, store)))
        store.remember(MADE, file.sha256, store.write([data]).encode())
        return catalogue.read(data)


def following(
    site: Site,
    held: Held,
    artifacts: Mapping[str, Artifact],
    *,
    store: Store,
    keep: Callable[[Blob, bytes], object],
    listing: Listing = nothing,
) -> tuple[Target, bytes]:
    """The catalogue with these images too, each by what the index calls it; to be called under the site's lock.

    keep: is given its blobs, which are to be at the site before the target is.
    """
    known = _before(site, held, store)
    images = {one: packages for one, packages in known.images.items() if one.place not in artifacts}
    paths = dict(known.paths)
    for path, artifact in artifacts.items():
        packages = catalogue.packages(artifact.manifest) if "packages" in artifact.manifest else ()
        images[catalogue.image(artifact.manifest, place=path, mark="", digest=artifact.digest)] = packages
        paths |= _listed((package.digest for package in packages if package.digest not in paths), listing)
    whole = list(records.pieces(Known(images, paths)))

    def kept(blob: Blob, data: bytes) -> None:
        if not store.has(blob.digest):  # the next publication begins with it
            store.write([data])
        keep(blob, data)

    total = sha256(b"".join(whole)).hexdigest()
    file = File("catalogue", sum(map(len, whole)), total, chunks.listed_as(whole, kept))
    text = head.write_file(KIND, VERSION, file)
    return Target(sha256(text).hexdigest(), len(text), {}), text


def _before(site: Site, held: Held, store: Store) -> Known:
    target = held.targets.signed.targets.get(PATH)
    if target is None:
        return Known({}, {})
    text = _text(site, Target(target.hashes["sha256"], target.length, index.custom(target)))
    if _is_old(text):
        return catalogue.read(text).known()
    return records.read(_records(site, head.read_file(KIND, VERSION, text), store))


def _is_old(text: bytes) -> bool:
    """Whether a depot still has the catalogue in one piece, as every depot had it first."""
    return text.startswith(catalogue.MAGIC)


def _text(site: Site, target: Target) -> bytes:
    """What the index names, verified by it."""
    if target.size > catalogue.LARGEST:
        raise Problem(f"the catalogue of {site.place} has {target.size} bytes, which is more than one can have")
    try:
        data = site.read(head.stored_at(PATH, target.sha256), target.size)
    except Missing:
        raise Problem(f"{site.place} lacks the catalogue that its index names", "try again") from None
    if len(data) != target.size or sha256(data).hexdigest() != target.sha256:
        raise Problem(f"the catalogue of {site.place} is not what the index names", "somebody changed it on its way")
    return data


def _records(site: Site, file: File, store: Store) -> bytes:
    """The records of a catalogue, verified."""
    if file.size > records.LARGEST:
        raise Problem(f"the catalogue of {site.place} has {file.size} bytes, which is more than one can have")
    blobs = Blobs(site, store, size=file.size)
    data = b"".join(blobs.contents(chunks.walk(file.listing, file.size, blobs.contents)))
    if sha256(data).hexdigest() != file.sha256:
        raise Problem(f"the catalogue of {site.place} has the sha256 {sha256(data).hexdigest()}, not {file.sha256}")
    return data


def _listed(digests: Iterable[bytes], listing: Listing) -> dict[bytes, Sequence[str]]:
    found = {digest: listing(digest) for digest in digests if digest != catalogue.UNKNOWN}
    return {digest: files for digest, files in found.items() if files}
