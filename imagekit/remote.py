"""Signed images that lie elsewhere come here as verified private copies: from http, https, sftp and scp addresses.

First comes the end of the file, which says what the image is and is signed; then its chunks, each compared with the
signed table before it is kept. So nothing is ever kept, or used, that was not signed; and what a fetch that was cut
left is where the next one goes on.
"""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from fcntl import LOCK_EX, LOCK_NB, flock
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from imagekit import store
from imagekit.disk import signedfile
from imagekit.disk.signedfile import Signed
from imagekit.errors import Problem, RigProblem, unknown
from imagekit.ranged import TRY_LATER, Again, NoRangesError, Web
from imagekit.sftp import Sftp
from imagekit.wire import Patience

PATIENCE = Patience()
IMAGES, DRAFTS = "images", "drafts-of-images"  # folders of the cache
END = 64 << 10  # bytes that are asked for first: the whole trailer of most images
MAX_BYTES = 64 << 30
PIECE = 1 << 20
Say = Callable[[str], None]
_Result = TypeVar("_Result")


class Source(Protocol):
    """A file that is read by ranges."""

    shown: str
    size: int
    until: float  # the moment by which what is asked for must be here

    def tail(self, count: int) -> bytes:
        """The last bytes, at most so many."""

    def pieces(self, start: int, end: int) -> Generator[bytes, None, None]:
        """The bytes from `start` up to `end`; raises Again when they end before."""

    def whole(self, most: int) -> Iterator[bytes]:
        """All of it, which may have so many bytes."""

    def close(self) -> None:
        """Nothing stays open."""


KINDS: dict[str, Callable[..., Source]] = {"http": Web, "https": Web, "sftp": Sftp, "scp": Sftp}


def is_remote(image: str) -> bool:
    """Whether an image is named by an address."""
    return "://" in image


def fetch(url: str, keys: "Iterable[signedfile.Trusted]", *, cache: Path, say: Say) -> Path:
    """A private copy of the image at `url`, signed by one of the keys, every chunk of it verified; raises Problem."""
    if (here := _local(url)) is not None:
        return here
    trusted = list(keys)
    with closing(_opened(url)) as source:
        try:
            return _copied(source, trusted, cache, say)
        except NoRangesError:
            say(f"{source.shown}: the server sends whole files only")
        with _spooled(source, cache, say) as file:
            return _copied(_Here(file, source.shown), trusted, cache, say)


def unverified(url: str, *, cache: Path, say: Say) -> int:
    """The file at `url`, whatever it is: the descriptor of a copy without a name, which ends when that is closed."""
    here = _local(url)
    if here is not None:
        try:
            return os.open(here, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Problem(f"cannot read {here}: {error.strerror}") from error
    with closing(_opened(url)) as source, _spooled(source, cache, say) as file:
        return os.dup(file)


def _local(url: str) -> Path | None:
    """The path that a file: address names."""
    at = urlsplit(url)
    if at.scheme != "file":
        return None
    if at.netloc not in ("", "localhost") or not at.path.startswith("/"):
        raise Problem("file addresses look like file:///PATH")
    return Path(unquote(at.path))


def _opened(url: str) -> Source:
    scheme = urlsplit(url).scheme
    kind = KINDS.get(scheme)
    if kind is None:
        raise unknown("kind of address", scheme, (*KINDS, "file"))
    if not urlsplit(url).hostname:
        raise Problem(f"addresses of images look like {scheme}://HOST/PATH")
    return kind(url, PATIENCE)


def _copied(source: Source, keys: "list[signedfile.Trusted]", cache: Path, say: Say) -> Path:
    """The copy of what is there already, or is fetched now."""
    trailer = _trailer(source)
    signed = signedfile.parse(trailer, keys)
    if source.size != signed.said.body + len(trailer):
        wanted = signed.said.body + len(trailer)
        raise Problem(f"{source.shown} has {source.size} bytes, and {wanted} of them are signed")
    name = sha256(trailer).hexdigest()
    final = _folder(cache, IMAGES) / name
    draft = _folder(cache, DRAFTS) / name
    try:
        with _locked(draft, say) as file:
            if not final.exists():
                _fill(file, source, signed, say)
                os.pwrite(file, trailer, signed.said.body)
                os.fchmod(file, 0o400)
                os.fsync(file)
                draft.replace(final)
            else:
                draft.unlink()
    except OSError as error:
        raise RigProblem(f"cannot keep {source.shown}: {error.strerror}", "make room in the cache") from error
    store.touch(final)
    return final


def _trailer(source: Source) -> bytes:
    end = _patiently(lambda: source.tail(END), source)
    length = signedfile.trailer_length(end[-signedfile.END :])
    return end[-length:] if length <= len(end) else _patiently(lambda: source.tail(length), source)


def _fill(file: int, source: Source, signed: Signed, say: Say) -> None:
    """Bring the chunks that are missing, one after another, each verified before it is written."""
    done, count = _verified(file, signed), len(signed.chunks)
    if 0 < done < count:
        say(f"{source.shown}: going on after {done} of {count} chunks")

    def rest() -> None:
        nonlocal done
        for data in _chunks(source, signed, done):
            _write(file, data, signed.chunks[done][0])
            done += 1
            say(f"fetching {source.shown}: {100 * done // count}%")

    source.until = PATIENCE.deadline(signed.said.body)
    if done < count:
        _patiently(rest, source, lambda: done)


def _chunks(source: Source, signed: Signed, first: int) -> Iterator[bytes]:
    """Chunk after chunk from the first one on, each verified."""
    data, number = bytearray(), first
    with closing(source.pieces(signed.chunks[first][0], signed.said.body)) as pieces:
        for piece in pieces:
            data += piece
            while number < len(signed.chunks) and len(data) >= (packed := signed.chunks[number][1]):
                yield signedfile.checked(bytes(data[:packed]), signed, number)
                del data[:packed]
                number += 1


def _verified(file: int, signed: Signed) -> int:
    """How many chunks of a draft are there and right; what follows them is cut off."""
    for number, (at, packed, _, _) in enumerate(signed.chunks):
        try:
            signedfile.checked(os.pread(file, packed, at), signed, number)
        except Problem:
            os.ftruncate(file, at)
            return number
    os.ftruncate(file, signed.said.body)
    return len(signed.chunks)


class _Here:
    """A file that was fetched whole, which nobody else can reach."""

    def __init__(self, file: int, shown: str) -> None:
        self.shown, self.size, self.until = shown, os.fstat(file).st_size, 0.0
        self._file = file

    def tail(self, count: int) -> bytes:
        return b"".join(self.pieces(max(0, self.size - count), self.size))

    def pieces(self, start: int, end: int) -> Generator[bytes, None, None]:
        for at in range(start, end, PIECE):
            yield os.pread(self._file, min(PIECE, end - at), at)

    def whole(self, most: int) -> Iterator[bytes]:
        return self.pieces(0, min(self.size, most))

    def close(self) -> None:
        pass


@contextmanager
def _spooled(source: Source, cache: Path, say: Say) -> Iterator[int]:
    """All of a file, in one without a name: whatever ends this, nothing of it is left."""
    folder = _folder(cache, DRAFTS)
    try:
        free = os.statvfs(folder)
        most = min(MAX_BYTES, free.f_bavail * free.f_frsize * 9 // 10)
        file = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _patiently(lambda: _spool(file, source, most, say), source)
            yield file
        finally:
            os.close(file)
    except OSError as error:
        raise RigProblem(f"cannot keep {source.shown}: {error.strerror}", "make room in the cache") from error


def _spool(file: int, source: Source, most: int, say: Say) -> None:
    os.ftruncate(file, 0)
    source.until = PATIENCE.deadline(most)
    at = told = 0
    for piece in source.whole(most):
        _write(file, piece, at)
        at += len(piece)
        if at >> 20 != told >> 20:
            told = at
            say(f"fetching {source.shown}: {at >> 20} MiB")


def _write(file: int, data: bytes, at: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, at)
        rest, at = rest[written:], at + written


def _folder(cache: Path, name: str) -> Path:
    folder = cache / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked(draft: Path, say: Say) -> Iterator[int]:
    """A draft, ours alone as long as the block lasts; the kernel frees a lock with its holder."""
    while True:
        file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                flock(file, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                say("another process fetches this image: waiting for it")
                flock(file, LOCK_EX)
            if os.fstat(file).st_nlink and draft.exists():
                yield file
                return
        finally:
            os.close(file)


def _patiently(attempt: Callable[[], _Result], source: Source, progress: Callable[[], int] = lambda: 0) -> _Result:
    """The result of the first attempt that no fault of the moment ended; what brought something is no vain one."""
    tries, seen = 0, progress()
    while True:
        try:
            return attempt()
        except Again as fault:
            reason = str(fault)
        tries = 1 if progress() != seen else tries + 1
        seen = progress()
        if tries >= PATIENCE.tries or monotonic() >= source.until:
            raise RigProblem(f"{source.shown}: {reason} (tried {tries} times)", TRY_LATER)
        sleep(min(PATIENCE.pause * 2 ** (tries - 1), max(0.0, source.until - monotonic())))
