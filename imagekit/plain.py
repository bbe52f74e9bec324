"""Plain: the file of a plain package, NAME_VERSION_ARCH.ikp: signed metadata first, then its tree as a canonical tar.

    skippable frame (RFC 8878, 3.1.2)   "imagekit package 1", metadata as JSON, minisign's signature over both
    zstd frame, zstd frame, ...         the tar (POSIX.1-2017), a MiB in each

zstd and GNU tar pass over the first and read the rest. The metadata names every frame by size and sha256. So
the order of reading is: signature, by a key that the caller trusts; then frame by frame its digest, then zstd, then
tar. No byte reaches a parser that the signer did not sign, and of one package there is one file: what another writer
would have written otherwise is refused.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from imagekit import kept, label
from imagekit import key as keyring
from imagekit.disk import frames, tar, untar
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.label import MAGIC, Label
from imagekit.package import Package
from imagekit.store import Store
from imagekit.tree import Entry, Tree

if TYPE_CHECKING:
    from hashlib import _Hash as Sum

SUFFIX = ".ikp"
MAX_HEAD = 4 << 20  # bytes; 200 KB of them are the list of the largest package's frames
MAX_MEMBERS = 200_000
FREE, MAX_RATIO = 64 << 20, 1000  # unpacked bytes from which on a package may not be more than so many times its file


class Asked(NamedTuple):
    """What a package must be; "" where anything will do."""

    name: str = ""
    version: str = ""
    architectures: tuple[str, ...] = ()
    sha256: str = ""  # of its file


class Taken(NamedTuple):
    """What a file held, as the columns that a store keeps, and who signed it."""

    columns: kept.Columns
    label: Label
    head: bytes  # with the signature, to be verified again by other keys
    sha256: str  # of the file
    by: Key


def write(
    package: Package, *, key: Key, sources: Sequence[tuple[str, str]] = (), setuid: Sequence[str] = ()
) -> Iterator[bytes]:
    """The file of a package; raises Problem for a tree that it cannot hold.

    sources: what it was made from, as (URL or path, sha256); setuid: the files that may be setuid or setgid.
    """
    rows = _rows(package.tree, setuid)
    size = 0

    def members() -> Iterator[bytes]:
        nonlocal size
        for chunk in _chunks(package.tree, rows):
            size += len(chunk)
            yield chunk

    body = list(frames.packed(members()))
    made = Label(
        package.name, package.version, package.architecture, package.digest, package.origin, package.licence,
        package.notes, tuple(sources), tuple(setuid), size, frames.version(),
        tuple((len(frame), sha256(frame).hexdigest()) for frame in body),
    )  # fmt: skip
    label.check(made)
    _check_ratio(made, sum(map(len, body)))
    yield frames.skippable(head(made, key))
    yield from body


def head(made: Label, key: Key) -> bytes:
    """What the first frame holds."""
    text = MAGIC + label.text(made)
    return text + b"\n" + key.sign(text, comment=_comment(made)).encode()


def verified(held: bytes, keys: Sequence[Key]) -> tuple[Label, Key]:
    """The metadata that stands in a head, if one of the keys signed it, and that key."""
    if not held.startswith(MAGIC):
        raise Problem("it is no plain package", "`imagekit package build` makes them")
    text, _, signature = held[len(MAGIC) :].partition(b"\n")
    try:
        written = signature.decode("ascii")
    except UnicodeDecodeError:
        raise Problem("its signature is no text") from None
    by = keyring.signer(keys, MAGIC + text, written)
    made = label.read(text)
    if written != _canonical(written, by, made):
        raise Problem("its signature is not written as imagekit writes it")
    return made, by


def read_head(path: Path, keys: Sequence[Key]) -> tuple[Label, Key]:
    """The metadata of a file and who signed it; nothing else of the file is looked at, but for its size."""
    with kept.told(path.name), _opened(path) as file:
        return _head(file, path.name, keys)[:2]


def take(path: Path, keys: Sequence[Key], *, store: Store, asked: Asked = Asked()) -> Taken:  # noqa: B008 - frozen
    """Read a package, its files' bytes into the store; raises Problem unless a trusted key signed just what was asked.

    The file is read once: what was verified is what is used.
    """
    with kept.told(path.name), _opened(path) as file:
        made, by, held = _head(file, path.name, keys)
        whole = sha256(frames.skippable(held))
        check_asked(made, asked)
        rows: dict[str, kept.Row] = {}
        stream = untar.Stream(_checked_frames(file, made, whole))
        blob = store.write(_contents(stream, made, rows))
        if asked.sha256 and whole.hexdigest() != asked.sha256:
            raise Problem(
                f"it is a right {made.name} {made.version}, and not the file that is pinned: the two were swapped",
                "write the lock again with `imagekit lock`, if that is what you want",
            )
        columns = _columns(made, blob, rows)
        if kept.package(columns, store).tree.digest != made.digest:
            raise Problem("its tree is not the one that its metadata names")
    return Taken(columns, made, held, whole.hexdigest(), by)


def read(path: Path, keys: Sequence[Key], *, store: Store, asked: Asked = Asked()) -> Package:  # noqa: B008 - frozen
    """The package in a file, its bytes in the store."""
    return kept.package(take(path, keys, store=store, asked=asked).columns, store)


def file_name(made: Label | Package) -> str:
    """What the file of a package is called."""
    return f"{made.name}_{made.version}_{made.architecture}{SUFFIX}"


def check_asked(made: Label, asked: Asked) -> None:
    """Raise Problem for another package than the one that was asked for, however right its signature is."""
    if asked.name and made.name != asked.name:
        raise Problem(f"it holds the package {made.name!r}; {asked.name!r} was asked for")
    if asked.version and made.version != asked.version:
        raise Problem(f"it holds {made.name} {made.version}; version {asked.version} was asked for")
    if asked.architectures and made.architecture not in asked.architectures:
        raise Problem(f"it holds {made.name} for {made.architecture}; {' or '.join(asked.architectures)} was asked for")


# --- the file -------------------------------------------------------------------------------------------------------


def _opened(path: Path) -> BinaryIO:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo would be waited for
    except OSError as error:
        raise Problem(f"it cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Problem("it is no file")
    return os.fdopen(handle, "rb")


def _head(file: BinaryIO, name: str, keys: Sequence[Key]) -> tuple[Label, Key, bytes]:
    """The verified metadata, if the file is as large as it says, and called as it should be."""
    size = frames.skippable_size(file.read(frames.SKIPPABLE_HEAD))
    if not 0 < size <= MAX_HEAD:
        raise Problem("it is no plain package", "`imagekit package build` makes them")
    held = _exactly(file, size)
    made, by = verified(held, keys)
    whole = frames.SKIPPABLE_HEAD + size + sum(packed for packed, _ in made.frames)
    there = os.fstat(file.fileno()).st_size
    if there != whole:
        what = "it is cut short" if there < whole else "something follows its end that nobody signed"
        raise Problem(f"{what}: it has {there} bytes, not {whole}")
    if name.endswith(SUFFIX) and name != file_name(made):
        raise Problem(
            f"it holds {made.name} {made.version} for {made.architecture}: swapped with another package, or renamed",
            f"the name of that one's file is {file_name(made)}",
        )
    _check_ratio(made, whole)
    return made, by, held


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (piece := file.read(size - len(data))):
        data += piece
    if len(data) < size:
        raise Problem("it is cut short")
    return bytes(data)


def _checked_frames(file: BinaryIO, made: Label, whole: "Sum") -> Iterator[bytes]:
    left = made.size
    for packed, digest in made.frames:
        data = _exactly(file, packed)
        if sha256(data).hexdigest() != digest:
            raise Problem("its bytes are not the ones that were signed")
        whole.update(data)
        yield frames.unpacked(data, min(left, frames.STEP), packer=made.zstd)
        left -= frames.STEP


def _check_ratio(made: Label, packed: int) -> None:
    if made.size > FREE and made.size > packed * MAX_RATIO:
        raise Problem(f"it unpacks to {made.size} bytes, more than {MAX_RATIO} times its size: refused as a bomb")


def _comment(made: Label) -> str:
    return f"imagekit package {made.name} {made.version} {made.architecture}"


def _canonical(written: str, by: Key, made: Label) -> str:
    """A signature's text as `Key.sign` writes it, with the numbers of this one."""
    lines = written.splitlines()
    first = f"untrusted comment: signature by imagekit key {by.id}"
    return f"{first}\n{lines[1]}\ntrusted comment: {_comment(made)}\n{lines[3]}\n"


# --- the tree -------------------------------------------------------------------------------------------------------


def _rows(tree: Tree, setuid: Sequence[str]) -> dict[str, kept.Row]:
    """The tree's entries as rows, in the archive's order, if all of them may be in a package."""
    rows: dict[str, kept.Row] = {}
    for path in sorted(tree, key=lambda path: _place(path, tree[path])):
        label.check_entry(path, tree[path], setuid)
        _add(path, tree[path], tree[path].sha256, 0, rows)
    kept.check_parents(rows)
    return rows


def _chunks(tree: Tree, rows: Mapping[str, kept.Row]) -> Iterator[bytes]:
    yield from tar.chunks((path, tree[path]) for path in rows)
    yield tar.END


def _contents(stream: untar.Stream, made: Label, rows: dict[str, kept.Row]) -> Iterator[bytes]:
    """The bytes of every file, one after another, while `rows` fills with where each lies."""
    offset, last = 0, None
    for found in untar.heads(stream):
        path, entry = found.path, found.entry
        label.check_entry(path, entry, made.setuid)
        if found.raw != tar.head(path, entry):
            raise Problem(f"the header of {path} is not written as imagekit writes it")
        if last is not None and not last < _place(path, entry):
            raise Problem(f"{path} comes twice" if path in rows else f"{path} is not where it belongs in the archive")
        last = _place(path, entry)
        if len(rows) >= MAX_MEMBERS:
            raise Problem(f"it has more than {MAX_MEMBERS} members")
        digest = sha256()
        for piece in untar.body(stream, entry.size):
            digest.update(piece)
            yield piece
        _add(path, entry, digest.hexdigest() if entry.kind == "file" else "", offset, rows)
        offset += entry.size
    kept.check_parents(rows)  # here, so that the store drops the draft of a package that is refused


def _place(path: str, entry: Entry) -> tuple[bool, list[str]]:
    """Where a member stands in the archive: parents first and hard links last, as disk/tar.py has them."""
    return entry.kind == "hardlink", path.split("/")


def _add(path: str, entry: Entry, digest: str, offset: int, rows: dict[str, kept.Row]) -> None:
    if entry.kind == "hardlink":
        of = rows.get(entry.target)
        if of is None or of[0] != "file":
            raise Problem(f"the hard link {path} names {entry.target}, which is no file before it")
        if of[1:4] != (entry.mode, entry.uid, entry.gid) or path.split("/") < entry.target.split("/"):
            raise Problem(f"the hard link {path} is not what {entry.target} is, or should be the file itself")
    if path in rows:
        raise Problem(f"{path} comes twice")
    rows[path] = (entry.kind, entry.mode, entry.uid, entry.gid, entry.size, digest, entry.target, offset)


def _columns(made: Label, blob: str, rows: dict[str, kept.Row]) -> kept.Columns:
    about: kept.Columns = {"object": blob, "notes": list(made.notes), "digest": made.digest, "licence": made.licence}
    about |= {"name": made.name, "version": made.version, "architecture": made.architecture}
    about |= {"source": made.origin.source, "source_version": made.origin.version}
    return about | kept.columns(kept.finish(rows))
