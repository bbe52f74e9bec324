"""Bounded, verified downloads: what a mirror sends enters the store when it is, to the byte, what was asked for.

A mirror is not trusted: it may lie, stall, drip, cut, repeat itself for ever, or point elsewhere. Everything is bounded
by a size, by a deadline over all tries, and by the patience for silence. http and https only; a redirect may not leave
the host and never goes from https to http; no netrc.
"""

import http.client
import ssl
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from hashlib import new, sha256
from http import HTTPStatus
from math import inf
from queue import SimpleQueue
from socket import SHUT_RDWR, socket
from threading import Event, Timer
from time import monotonic
from typing import TypeVar
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from imagekit import wire
from imagekit.beside import until_one_fails
from imagekit.errors import RigProblem
from imagekit.package import Gone
from imagekit.store import Store
from imagekit.wire import Patience

CONNECTIONS = 4  # with more, name resolution was seen to fail
PIECE = 1 << 16
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
AGAIN = (429, 500, 502, 503, 504)
GONE = (404, 410)
TRY_LATER = "try again, or name another mirror"
Beat = Callable[[int], None]  # so many more bytes; fewer, when a try was for nothing
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


PATIENCE = Patience()


class Missing(RigProblem):
    """The mirror has no such file, and nothing says that it ever had."""


class _Again(Exception):
    """A fault of the moment: worth another try."""


class Calls:
    """The connections of one run, so that all of them can be ended at once: by Ctrl-C, or by the first failure."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.patience = patience or PATIENCE
        self.over = Event()
        self._lines: list[Line] = []

    def line(self) -> "Line":
        """A connection for one thread, made when first used."""
        line = Line(self)
        self._lines.append(line)
        return line

    def end(self) -> None:
        """End every transfer now."""
        self.over.set()
        for line in self._lines:
            line.hang_up()

    def close(self) -> None:
        """Close every connection; nobody uses one any more."""
        for line in self._lines:
            line.close()


class Line:
    """A connection to a mirror, kept for the next request to the same host."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._connection: http.client.HTTPConnection | None = None
        self._handle: socket | None = None  # http.client forgets its socket once a response will be the last
        self._to = ("", "")

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        if self._connection:
            self._connection.close()
        self._connection = self._handle = None

    def hang_up(self) -> None:
        """End what this line is doing in another thread: its read sees the end of the stream."""
        handle = self._handle
        if handle is not None:
            with suppress(OSError):  # it may not be connected any more
                socket.shutdown(handle, SHUT_RDWR)  # not SSLSocket's, which pulls the TLS state from under the reader

    @contextmanager
    def get(self, url: str, deadline: float) -> Iterator[http.client.HTTPResponse]:
        """The response to a GET, redirects followed; the connection is cut at the deadline, whatever it is doing."""
        for _ in range(MAX_REDIRECTS):
            connection, target = self._ready(urlsplit(url))
            timer = Timer(max(0.0, deadline - monotonic()), self.hang_up)
            timer.daemon = True
            timer.start()
            try:
                connection.request("GET", target, headers=wire.headers(urlsplit(url)))
                with connection.getresponse() as response:
                    if response.status not in REDIRECTS:
                        yield response
                        return
                    url = _redirected(url, response.headers.get("Location", ""))
            finally:
                timer.cancel()
            self.close()
        raise RigProblem(f"{wire.shown(url)}: the mirror redirects more than {MAX_REDIRECTS} times", TRY_LATER)

    def _ready(self, url: SplitResult) -> tuple[http.client.HTTPConnection, str]:
        """A connection to the host of `url`, or to the proxy before it, and what to ask it for."""
        to, proxy = (url.scheme, url.netloc), wire.proxy_of(url)
        if self._connection is None or self._to != to:
            self.close()
            self._connection, self._to = wire.connection(url, proxy, self.calls.patience.stall), to
        if self._connection.sock is None:
            self._connection.connect()
            self._handle = self._connection.sock
        if self.calls.over.is_set():
            raise _Again("ended")
        absolute = f"http://{url.netloc.rpartition('@')[2]}" if proxy and url.scheme == "http" else ""
        return self._connection, absolute + (url.path or "/")


def each(work: Callable[[Line, _Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """work(line, item) for every item, on a few connections at once; the first failure, or Ctrl-C, ends all of them."""
    calls = Calls()
    lines: SimpleQueue[Line] = SimpleQueue()
    for _ in range(CONNECTIONS):
        lines.put(calls.line())

    def on_a_line(item: _Item) -> _Result:
        line = lines.get()
        try:
            return work(line, item)
        finally:
            lines.put(line)

    pool = ThreadPoolExecutor(CONNECTIONS)
    try:
        futures = [pool.submit(on_a_line, item) for item in items]
        done = until_one_fails(futures)
        failed = next((future for future in futures if future in done and future.exception()), None)
        return [future.result() for future in ([failed] if failed else futures)]
    except BaseException:
        calls.end()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        calls.close()


def fetch(
    line: Line, address: str, path: str, *, size: int, digest: str, store: Store, beat: Beat, until: float = inf
) -> None:
    """Bring the file of this size and sha256 into the store. Raises RigProblem; Gone if the mirror lacks it.

    until: the moment by which all that it is a part of must be here.
    """
    url = f"{address}/{quote(path, safe='/+~')}"
    deadline = min(line.calls.patience.deadline(size), until)

    def attempt() -> None:
        with closing(_pieces(line, url, size, deadline, beat, digest)) as pieces:  # at once, also where a disk is full
            store.write(pieces)

    try:
        _tried(line, path, deadline, attempt)
    except Missing as missing:
        raise Gone(
            f"{path}: the mirror has dropped this file",
            "`imagekit lock` would pin what the mirror holds now; a depot (IMAGEKIT_DEPOT) may still have this one",
        ) from missing


def take(line: Line, url: str, limit: int, *, algorithm: str, digest: str, store: Store) -> str:
    """Bring the bytes at `url`, whose size nobody knows, into the store; their sha256. Raises Missing for none."""
    deadline = line.calls.patience.deadline(limit)

    def attempt() -> str:
        with closing(_pieces(line, url, limit, deadline, lambda _: None)) as pieces:
            return store.write(_compared(pieces, url, algorithm, digest, line.calls.patience))

    return _tried(line, wire.shown(url), deadline, attempt)


def text(line: Line, url: str, limit: int, digest: str = "") -> bytes:
    """The bytes at `url`, at most `limit`; with a sha256 just as many, and just those. Raises Missing for none."""
    deadline = line.calls.patience.deadline(limit)
    read = partial(_pieces, line, url, limit, deadline, lambda _: None, digest)
    return _tried(line, wire.shown(url), deadline, lambda: b"".join(read()))


def _tried(line: Line, what: str, deadline: float, attempt: Callable[[], _Result]) -> _Result:
    """The result of the first attempt that no fault of the moment ended."""
    patience = line.calls.patience
    for number in range(1, patience.tries + 1):
        try:
            return attempt()
        except _Again as fault:
            reason = str(fault)
        if line.calls.over.is_set() or monotonic() >= deadline:
            break
        line.calls.over.wait(min(patience.pause * 2 ** (number - 1), max(0.0, deadline - monotonic())))
    raise RigProblem(f"{what}: {reason} (tried {number} times)", TRY_LATER)


def _pieces(
    line: Line, url: str, limit: int, deadline: float, beat: Beat, digest: str = ""
) -> Generator[bytes, None, None]:
    """The body at `url` in pieces, of at most `limit` bytes; with a digest, of just as many, and just those."""
    got, total = 0, sha256()
    try:
        with _faults(line.calls.patience, url), line.get(url, deadline) as response:
            announced = _announced(response, url, limit, exact=bool(digest))
            while piece := _read(response, announced, got, limit):
                if got + len(piece) > limit:
                    raise RigProblem(f"{wire.shown(url)}: the mirror sends more than {limit} bytes", TRY_LATER)
                got += len(piece)
                beat(len(piece))
                total.update(piece)
                yield piece
                if monotonic() >= deadline:
                    raise _Again
            if got < (limit if digest else announced or 0):
                raise _Again("the mirror cut the body")
        if digest:
            _compare(digest, total.hexdigest(), url, got)
    except BaseException as fault:
        line.close()
        beat(-got)
        if isinstance(fault, _Again):
            why = (
                "the mirror is too slow" if monotonic() >= deadline else "ended" if line.calls.over.is_set() else fault
            )
            raise _Again(f"{why}, after {got} of {limit} bytes" if digest else f"{why}, after {got} bytes") from fault
        raise


def _compared(pieces: Iterator[bytes], url: str, name: str, wanted: str, may: Patience) -> Iterator[bytes]:
    """The same pieces, if they keep coming, and are what the digest says by their end."""
    got, began, total = 0, monotonic(), new(name)
    for piece in pieces:
        got += len(piece)
        total.update(piece)
        if monotonic() - began > may.start + got / may.slowest:
            raise RigProblem(f"{wire.shown(url)}: the mirror is too slow, after {got} bytes", TRY_LATER)
        yield piece
    _compare(wanted, total.hexdigest(), url, got, name)


def _compare(wanted: str, got: str, url: str, size: int, algorithm: str = "sha256") -> None:
    if got != wanted:
        raise RigProblem(
            f"{wire.shown(url)}: the mirror sent {size} bytes with the {algorithm} {got}, not {wanted}",
            f"the mirror or something between changed them; nothing was kept; {TRY_LATER}",
        )


def _read(response: http.client.HTTPResponse, announced: int | None, got: int, limit: int) -> bytes:
    """What is there of the body, waiting for at least a byte; one byte past the limit tells that it goes on."""
    left = limit + 1 - got if announced is None else announced - got
    return response.read1(min(PIECE, left)) if left else b""


def _announced(response: http.client.HTTPResponse, url: str, limit: int, *, exact: bool) -> int | None:
    """The length that the response gives for its body; raises for a response that is not the file asked for."""
    if response.status in AGAIN:
        raise _Again(f"the mirror answers {wire.status(response)}")
    if response.status in GONE:
        raise Missing(f"{wire.shown(url)}: the mirror answers {wire.status(response)}", TRY_LATER)
    if response.status != HTTPStatus.OK:
        raise RigProblem(f"{wire.shown(url)}: the mirror answers {wire.status(response)}", TRY_LATER)
    length: int | None = response.length
    if length is not None and (length > limit or (exact and length != limit)):
        wanted = f"where {limit} are expected" if exact else f"where at most {limit} are"
        raise RigProblem(f"{wire.shown(url)}: the mirror announces {length} bytes {wanted}", TRY_LATER)
    return length


@contextmanager
def _faults(patience: Patience, url: str) -> Iterator[None]:
    """Every way in which a network fails as _Again with its reason in words."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        why = f"the mirror's certificate is not valid: {error.verify_message}"
        raise RigProblem(f"{wire.shown(url)}: {why}", TRY_LATER) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Again(wire.reason(error, patience)) from error


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads; raises RigProblem for one that leaves the host or gives up encryption."""
    old = urlsplit(url)
    try:
        new = urlsplit(urljoin(url, location))
        port = new.port
    except ValueError:
        new, port = old._replace(scheme=""), None
    stays = (old.scheme, old.hostname, old.port) == (new.scheme, new.hostname, port)
    upgraded = (old.scheme, new.scheme, old.hostname, port) == ("http", "https", new.hostname, None)
    if not location or not (stays or upgraded):
        raise RigProblem(
            f"{wire.shown(url)}: the mirror redirects elsewhere: {ascii(location)[:200]}",
            "if you trust that address, name it as the mirror",
        )
    return new._replace(netloc=old.netloc if stays else new.netloc, query="", fragment="").geturl()
