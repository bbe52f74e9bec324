"""Signing: a signed image file from a .tar.gz, a tar or an EROFS; and back to what it was made of.

The file is docs/format.md's. A .tar.gz whose flushes lie close enough together stays as it is, byte by byte, and only
gets a trailer: imagekit's own do. Any other is packed anew; its tar, and so its identity, stays the same.
"""

import os
import stat
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import pack
from typing import BinaryIO, NamedTuple

from imagekit import artifact, host
from imagekit.disk import flushes, gzip, inflate, signedchunks, signedfile, signedtext
from imagekit.disk.signedfile import Signed
from imagekit.errors import Problem
from imagekit.key import Key

STEP = 1 << 20
EROFS = (1024, b"\xe2\xe1\xf5\xe0")  # where its magic stands: Documentation/filesystems/erofs.rst of Linux
USTAR = (257, b"ustar")
TAR_BLOCK = 512
UNKNOWN = "unknown"
SUFFIXES = {"tar.gz": ".tar.gz", "erofs": ".erofs"}


class About(NamedTuple):
    """What a signed image says of itself, beside its bytes."""

    name: str
    version: str
    architecture: str
    arguments: tuple[str, ...] = ()  # of what is run; the first is an absolute path
    environment: tuple[str, ...] = ()  # NAME=VALUE
    user: str = "0:0"
    workdir: str = "/"
    compressor: str = UNKNOWN


class Body(NamedTuple):
    """A payload as it lies in a file."""

    payload: str
    chunks: tuple[tuple[int, int], ...]  # bytes in the file, bytes unpacked
    sha256: str  # of it unpacked
    size: int  # of it unpacked
    compressor: str
    file: str  # sha256 of what was read of the source: all of it, or the body of a signed image


class Known(NamedTuple):
    """What a verified file said of itself, and the sha256 of its bytes: they are read again to be signed."""

    about: About
    file: str = ""  # of a part of an artifact
    content: str = ""  # of a signed image's payload, unpacked


def sign(source: Path, out: Path, *, about: About, key: Key, known: Known | None = None) -> Signed:
    """Write the signed image of a .tar.gz, tar, EROFS or signed image, and give what it says.

    known: what was verified of the source, which must still be so.
    """
    check_place(out)
    with opened(source) as file, host.draft(out, is_large=True) as draft:
        body = _put_body(file, draft, source.name, about.compressor)
        if known and (known.file or body.file, known.content or body.sha256) != (body.file, body.sha256):
            raise Problem(f"{source} was changed since it was verified")
        draft.flush()
        with open(draft.name, "rb") as written:
            table = b"".join(_rows(written, body.chunks))
        text = manifest(about, body, table)
        trailer = signedfile.members(text, table, key.number, signatures(text, key))
        draft.write(trailer)
    return signedfile.parse(trailer, [key])


def signatures(text: bytes, key: Key) -> tuple[bytes, bytes]:
    """Over a manifest, and over that signature and the trusted comment, as minisign has them."""
    first = key.sign_bytes(text)
    return first, key.sign_bytes(first + signedfile.comment(text).encode())


def minisig(signed: Signed) -> str:
    """The signature over the manifest as the text of a .minisig file."""
    first, second = signed.signatures
    number = signedfile.id_of(signed.number)
    return (
        f"untrusted comment: signature by imagekit key {number}\n{_base64(b'Ed' + signed.number + first)}\n"
        f"trusted comment: {signedfile.comment(signed.manifest)}\n{_base64(second)}\n"
    )


def export(signed: Signed, stem: Path) -> tuple[Path, Path]:
    """Write STEM.manifest and STEM.manifest.minisig, which minisign and signify verify."""
    paths = stem.with_name(f"{stem.name}.manifest"), stem.with_name(f"{stem.name}.manifest.minisig")
    for path, data in zip(paths, (signed.manifest, minisig(signed).encode()), strict=True):
        with host.draft(path) as file:
            file.write(data)
    return paths


def strip(source: Path, out: Path) -> Signed:
    """Write what a signed image was made of, without what was added; its signature is not looked at."""
    check_place(out)
    with opened(source) as file:
        found = signedfile.read(file.fileno(), None)
        with host.draft(out, is_large=True) as draft:
            for number in range(len(found.chunks)):
                draft.write(signedfile.chunk(file.fileno(), found, number))
    return found


def plain(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The tar in an open .tar.gz, tar or signed image, of which nobody's signature is looked at. Raises Problem."""
    found = signedfile.read(file.fileno(), None) if has_trailer(_end(file)) else None
    pieces = signedchunks.pieces(file.fileno(), found) if found else _tar(file, lambda _: None)
    first = next(pieces, b"")
    while len(first) < TAR_BLOCK and (more := next(pieces, b"")):
        first += more
    _check_tar(first, name)
    yield first
    yield from pieces


def check_place(path: Path) -> None:
    """Raise Problem where something is that is no file: a draft that replaced /dev/null would be a surprise."""
    if path.exists() and not path.is_file():
        raise Problem(f"{path} is no file", "name another with -o")


def verified(path: Path, keys: Sequence[Key]) -> Signed:
    """What a signed image says, once every byte of it was verified; raises Problem."""
    try:
        with opened(path) as file:
            found = signedfile.read(file.fileno(), keys)
            signedchunks.check(file.fileno(), found)
    except Problem as problem:
        raise Problem(f"{path}: {problem.message}", problem.hint) from problem
    return found


def is_signed(path: Path) -> bool:
    """Whether a file has the end of a signed image, whoever signed it; what cannot be read has none."""
    try:
        with opened(path) as file:
            return has_trailer(_end(file))
    except OSError:
        return False


def has_trailer(end: bytes) -> bool:
    """Whether these last bytes are those of a signed image."""
    try:
        return signedfile.trailer_length(end) > 0
    except Problem:
        return False


def opened(path: Path) -> BinaryIO:
    """A file to be read; raises Problem for what is none, without waiting for a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Problem(f"{path} is no file")
    return os.fdopen(handle, "rb")


def known(path: Path, key: Key, others: Sequence[Key] = ()) -> Known | None:
    """What a file says of itself: an artifact's part that the key signed, or an image that it or one of others did.

    None where it says nothing; raises Problem where it does, and is not right.
    """
    return _known_image(path, [key, *others]) if is_signed(path) else _known_artifact(path, key)


def _known_image(path: Path, keys: Sequence[Key]) -> Known:
    said = verified(path, keys).said
    about = About(
        said.name, said.version, said.architecture,
        tuple(word.decode("utf-8", "surrogateescape") for word in said.arguments),
        tuple(word.decode("utf-8", "surrogateescape") for word in said.environment),
        f"{said.uid}:{said.gid}", said.workdir.decode("utf-8", "surrogateescape"), said.compressor,
    )  # fmt: skip
    return Known(about, content=said.content)


def _known_artifact(path: Path, key: Key) -> Known | None:
    try:
        made = artifact.load(path)
    except Problem:
        return None
    part = next((one for one in made.manifest["parts"] if one["file"] == path.name), None)
    if part is None:
        return None
    made.verify(key)
    start = part.get("start", {})
    about = About(
        made.name, str(made.manifest["version"]), made.arch, tuple(start.get("arguments", ())),
        tuple(sorted(start.get("environment", ()))), start.get("user") or "0:0",
        compressor=part.get("compressor", UNKNOWN),
    )  # fmt: skip
    return Known(about, file=part["sha256"])


# --- the body -------------------------------------------------------------------------------------------------------


def _put_body(file: BinaryIO, draft: BinaryIO, name: str, compressor: str) -> Body:
    """Write the payload: as it is where it can be cut into chunks, else packed anew."""
    size = os.fstat(file.fileno()).st_size
    if has_trailer(_end(file)):
        before = signedfile.read(file.fileno(), None)
        size, compressor = before.said.body, before.said.compressor
    total = sha256()
    for at in range(0, size, STEP):
        piece = file.read(min(STEP, size - at))
        total.update(piece)
        draft.write(piece)
    draft.flush()
    if os.fstat(draft.fileno()).st_size != size or not size:
        raise Problem(f"{name} is empty, or was changed while it was read")
    found = _read_body(draft, name, compressor)
    if found is None:
        again = sha256()
        draft.seek(0)
        draft.truncate()
        for piece in gzip.member(gzip.runs(_tar(file, again.update))):
            draft.write(piece)
        draft.flush()
        if again.digest() != total.digest():
            raise Problem(f"{name} was changed while it was read")
        found = _read_body(draft, name, gzip.VERSION)
    if found is None:
        raise Problem(f"{name} is too large for a signed image")
    return found._replace(file=total.hexdigest())


def _read_body(draft: BinaryIO, name: str, compressor: str) -> Body | None:
    """The chunks of what was written; None where it cannot be cut into any."""
    with open(draft.name, "rb") as copy, mmap(copy.fileno(), 0, access=ACCESS_READ) as body:
        if body[EROFS[0] : EROFS[0] + 4] == EROFS[1]:
            pieces = tuple((min(STEP, len(body) - at),) * 2 for at in range(0, len(body), STEP))
            return Body("erofs", pieces, sha256(body).hexdigest(), len(body), compressor, "")
        found = flushes.cut(body)
    if found is None:
        return None
    _check_tar(found.beginning, name)
    return Body("tar.gz", found.pieces, found.sha256, found.size, compressor, "")


def _check_tar(first: bytes, name: str) -> None:
    if first[USTAR[0] : USTAR[0] + 5] != USTAR[1]:
        raise Problem(f"{name} holds no tar", "what is signed is a .tar.gz, a tar or an EROFS")


def _end(file: BinaryIO) -> bytes:
    size = os.fstat(file.fileno()).st_size
    return os.pread(file.fileno(), signedfile.END, max(size - signedfile.END, 0))


def _tar(file: BinaryIO, see: Callable[[bytes], object]) -> Iterator[bytes]:
    """What is in any gzip file, or a tar as it is; `see` is told every byte of it."""

    def read() -> bytes:
        piece = file.read(STEP)
        see(piece)
        return piece

    file.seek(0)
    yield from inflate.plain(iter(read, b""))
    while read():
        pass


def _rows(written: BinaryIO, chunks: tuple[tuple[int, int], ...]) -> Iterator[bytes]:
    """The table of what lies in a file."""
    for packed, size in chunks:
        yield pack("<II", packed, size) + sha256(written.read(packed)).digest()


def manifest(about: About, body: Body, table: bytes) -> bytes:
    """The text that is signed; raises Problem for what no manifest can say."""

    def line(text: object) -> list[bytes]:
        return [str(text).encode("utf-8", "surrogateescape")]

    return signedtext.text({
        "payload": line(body.payload), "name": line(about.name), "version": line(about.version),
        "architecture": line(about.architecture),
        "argument": [one for word in about.arguments for one in line(word)],
        "environment": [one for word in about.environment for one in line(word)],
        "user": line(about.user), "workdir": line(about.workdir), "compressor": line(body.compressor),
        "content": line(f"sha256:{body.sha256}"), "size": line(body.size),
        "body": line(sum(packed for packed, _ in body.chunks)), "chunks": line(len(body.chunks)),
        "table": line(f"sha256:{sha256(table).hexdigest()}"),
    })  # fmt: skip


def _base64(raw: bytes) -> str:
    return b64encode(raw).decode()
