"""A file on a web server, read by ranges: nothing that the server says is believed, and nothing is endless.

A redirect may lead to another host, since what comes is verified by whoever asked: but never from https to http, never
in a circle, and credentials stay with the host that they were written for.
"""

import http.client
import ssl
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from socket import SHUT_RDWR, socket
from threading import Timer
from time import monotonic
from urllib.parse import SplitResult, urljoin, urlsplit

from imagekit import wire
from imagekit.errors import RigProblem
from imagekit.wire import Patience

PIECE = 1 << 16
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
AGAIN = (429, 500, 502, 503, 504)
TRY_LATER = "try again, or fetch it from elsewhere"


class Again(Exception):
    """A fault of the moment: worth another try."""


class NoRangesError(Exception):
    """The server sends the whole file, whatever part of it was asked for."""


class Web:
    """A file behind an http or https address."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience = url, patience
        self.until = patience.deadline(0)  # the moment by which what is asked for must be here
        self.shown = wire.shown(url).rpartition("/")[2] or wire.shown(url)
        self.size = -1  # bytes of the file, once the server said so

    def close(self) -> None:
        """Nothing stays open."""

    def tail(self, count: int) -> bytes:
        """The last bytes of the file, at most so many; raises NoRangesError where only all of it can be had."""
        with self._answer(f"bytes=-{count}") as response:
            if response.status == HTTPStatus.OK:
                raise NoRangesError
            first, last = self._range(response)
            if last != self.size - 1 or last - first >= count:
                raise RigProblem(f"{self.shown}: the server sends another part than was asked for", TRY_LATER)
            return b"".join(self._pieces(response, last + 1 - first))

    def pieces(self, start: int, end: int) -> Generator[bytes, None, None]:
        """The bytes from `start` up to `end`; raises Again when they end before."""
        with self._answer(f"bytes={start}-{end - 1}") as response:
            if response.status == HTTPStatus.OK:
                raise NoRangesError
            if self._range(response) != (start, end - 1):
                raise RigProblem(f"{self.shown}: the server sends another part than was asked for", TRY_LATER)
            yield from self._pieces(response, end - start)

    def whole(self, most: int) -> Iterator[bytes]:
        """All of the file, which may have so many bytes."""
        with self._answer("") as response:
            length = response.length
            if length is None or length > most:
                said = "no length" if length is None else f"{length} bytes, where at most {most} are expected"
                raise RigProblem(f"{self.shown}: the server announces {said}", TRY_LATER)
            yield from self._pieces(response, length)

    def _range(self, response: http.client.HTTPResponse) -> tuple[int, int]:
        """What part of the file the server says that it sends: `bytes 0-9/10` (RFC 9110, 14.4)."""
        said = response.headers.get("Content-Range", "")
        unit, _, rest = said.partition(" ")
        part, _, size = rest.partition("/")
        numbers = [*part.split("-"), size]
        if (
            unit != "bytes"
            or len(numbers) != 3
            or not all(n.isascii() and n.isdigit() and len(n) < 16 for n in numbers)
        ):
            raise RigProblem(f"{self.shown}: the server sends a part that it does not name: {ascii(said)[:80]}")
        first, last, total = map(int, numbers)
        if not first <= last < total or self.size not in (-1, total):
            raise RigProblem(f"{self.shown}: the file changed on the server, or it says so", TRY_LATER)
        self.size = total
        return first, last

    def _pieces(self, response: http.client.HTTPResponse, size: int) -> Iterator[bytes]:
        got = 0
        while got < size:
            piece = response.read1(min(PIECE, size - got))
            if not piece:
                raise Again(f"the server cut the body, after {got} of {size} bytes")
            got += len(piece)
            yield piece
            if monotonic() >= self.until:
                raise Again(f"the server is too slow, after {got} of {size} bytes")

    @contextmanager
    def _answer(self, part: str) -> Iterator[http.client.HTTPResponse]:
        """The response to a GET, redirects followed; the connection is cut at the deadline, whatever it is doing."""
        url = self.url
        for _ in range(MAX_REDIRECTS + 1):
            with closing(self._asked(url, part)) as asked:
                response = next(asked)
                if response.status not in REDIRECTS:
                    self._check(response)
                    with self._faults():
                        yield response
                    return
                url = self._redirected(url, response.headers.get("Location", ""))
        raise RigProblem(f"{self.shown}: the server redirects more than {MAX_REDIRECTS} times", TRY_LATER)

    def _asked(self, address: str, part: str) -> Generator[http.client.HTTPResponse, None, None]:
        url = urlsplit(address)
        connection = wire.connection(url, proxy := wire.proxy_of(url), self.patience.stall)
        cut = Timer(max(0.0, self.until - monotonic()), _hang_up, [connection])
        cut.daemon = True
        _start(cut)
        try:
            with self._faults():
                headers = wire.headers(url) | ({"Range": part} if part else {})
                connection.request("GET", _target(url, by_proxy=bool(proxy)), headers=headers)
                response = connection.getresponse()
            if monotonic() >= self.until:  # what was cut then looks like the end of the headers
                raise Again("the server is too slow")
            with closing(response):
                yield response
        finally:
            cut.cancel()
            connection.close()

    def _check(self, response: http.client.HTTPResponse) -> None:
        if response.status in AGAIN:
            raise Again(f"the server answers {wire.status(response)}")
        if response.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise RigProblem(f"{self.shown}: the server answers {wire.status(response)}", TRY_LATER)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Every way in which a network fails as Again with its reason in words."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            why = f"the server's certificate is not valid: {error.verify_message}"
            raise RigProblem(f"{self.shown}: {why}", TRY_LATER) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = monotonic() >= self.until
            raise Again(
                "the server is too slow" if late else wire.reason(error, self.patience, who="the server")
            ) from error

    def _redirected(self, url: str, location: str) -> str:
        """Where a redirect leads; raises RigProblem for one that gives up encryption, or leaves the web."""
        old = urlsplit(url)
        try:
            new = urlsplit(urljoin(url, location))
            port = new.port
        except ValueError:
            new, port = old._replace(scheme=""), None
        if not location or not new.hostname or (old.scheme, new.scheme) not in ALLOWED:
            raise RigProblem(f"{self.shown}: the server redirects to {ascii(location)[:200]}", TRY_LATER)
        stays = (old.scheme, old.hostname, old.port) == (new.scheme, new.hostname, port)
        return new._replace(netloc=old.netloc if stays else new.netloc.rpartition("@")[2], fragment="").geturl()


ALLOWED = (("http", "http"), ("http", "https"), ("https", "https"))


def _target(url: SplitResult, *, by_proxy: bool) -> str:
    host = f"http://{url.netloc.rpartition('@')[2]}" if by_proxy and url.scheme == "http" else ""
    return host + (url.path or "/") + (f"?{url.query}" if url.query else "")


def _start(timer: Timer) -> None:
    try:
        timer.start()
    except RuntimeError:
        raise RigProblem("no thread can be started", "raise the limit of processes: ulimit -u, TasksMax=") from None


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """End what another thread is reading: it sees the end of the stream."""
    if connection.sock:
        with suppress(OSError):  # it may not be connected any more
            socket.shutdown(connection.sock, SHUT_RDWR)  # not SSLSocket's, which pulls the state from under the reader
