"""Serve a folder over HTTP: read only, plain files below it and nothing else, and limits to what a client may do.

Requests are parsed by http.server, whose limits hold (a line of 64 KiB, 100 headers); the rest is ours. A path is
opened component by component without following any link, so nothing outside the folder can be named, whatever lies in
it. A client that sends or takes its bytes too slowly is cut, and so is one more than may be there.
RFC 9110: 8.8.3 (ETag), 13.1.2 (If-None-Match), 13.1.5 (If-Range), 14 (ranges).
"""

import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import SHUT_RDWR, socket
from threading import BoundedSemaphore
from time import monotonic
from typing import Any
from urllib.parse import unquote, urlsplit

from imagekit.errors import RigProblem

COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~-]{0,254}\Z")  # no hidden names: drafts and locks are nobody's
DEEPEST = 16
METHODS = ("GET", "HEAD")
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})\Z")  # one range; a list of them is answered with the whole file
FOREVER = "public, max-age=31536000, immutable"
CHANGING = ("timestamp.json",)  # every other file of a depot never changes under its name


@dataclass(frozen=True)
class Limits:
    """What clients may do."""

    clients: int = 64  # at the same time
    idle: float = 15.0  # seconds without a byte either way
    request: float = 10.0  # seconds until a request is whole
    start: float = 30.0  # seconds that an answer may take, before its size counts
    slowest: float = 10_000.0  # bytes a second, by which that grows
    requests: int = 10_000  # on a connection


LIMITS = Limits()


class Server(ThreadingHTTPServer):
    """Serves a folder until it is closed; `port` says where, if 0 was asked for."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, root: Path, *, host: str = "127.0.0.1", port: int = 0, limits: Limits = LIMITS,
        log: Callable[[str], object] = lambda _: None
    ) -> None:  # fmt: skip
        self.limits, self.log = limits, log
        self.until = dict[socket, float]()  # when each connection is cut
        self._free = BoundedSemaphore(limits.clients)
        try:
            self.root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise RigProblem(f"cannot serve {root}: {error.strerror}", "name a folder") from error
        try:
            super().__init__((host, port), _Answer)
        except OSError as error:
            os.close(self.root)
            raise RigProblem(f"cannot listen on {host} port {port}: {error.strerror}", "--port 0 takes any") from error

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    def server_close(self) -> None:
        """Stop listening."""
        super().server_close()
        with suppress(OSError):
            os.close(self.root)

    def server_bind(self) -> None:
        """Listen, without asking a name server what we are called."""
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "imagekit", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a client a thread, if there are not too many."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a client until it goes."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.until.pop(request, None)
            self._free.release()

    def service_actions(self) -> None:
        """Cut the connections whose time is over; called between any two that are accepted, and often."""
        now = monotonic()
        for connection, until in list(self.until.items()):
            if until < now:
                self.until.pop(connection, None)
                with suppress(OSError):
                    connection.shutdown(SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or was cut, is nobody's error."""
        _ = request
        self.log(f"{client_address[0]} was cut")


class _Answer(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # of a request that names none: HTTP/0.9 has no way to say "no"
    server: Server
    connection: socket

    def setup(self) -> None:
        self._left = self.server.limits.requests
        self.request.settimeout(self.server.limits.idle)
        super().setup()

    def handle_one_request(self) -> None:
        """A request and its answer, within the time for each."""
        self._left -= 1
        self._allow(self.server.limits.idle + self.server.limits.request)  # idle first, then the request itself
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True
        if self._left <= 0:
            self.close_connection = True

    def version_string(self) -> str:
        """What the server calls itself."""
        return "imagekit"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An answer of a few words that hold nothing of what the client sent."""
        _ = message, explain
        words = f"{int(code)} {HTTPStatus(code).phrase}\n".encode()
        self.close_connection = True
        self.send_response(code, HTTPStatus(code).phrase)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(words)))
        self.send_header("Connection", "close")
        if code in (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.METHOD_NOT_ALLOWED):
            self.send_header("Allow", ", ".join(METHODS))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(words)

    def log_message(self, format: str, *args: Any) -> None:
        """One line for each answer, without anything that a terminal would obey."""
        self.server.log(f"{self.client_address[0]} {ascii(format % args)[1:-1]}")

    def _allow(self, seconds: float) -> None:
        """Let the connection live so long from now on."""
        self.server.until[self.connection] = monotonic() + seconds

    def _answer(self) -> None:
        """Answer with a file, or a part of it; to HEAD as to GET, without the body."""
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            return self.send_error(HTTPStatus.BAD_REQUEST)  # a body that nobody reads would be taken for a request
        path = _path(self.path)
        handle = _opened(self.server.root, path) if path else None
        if handle is None:
            return self.send_error(HTTPStatus.NOT_FOUND)
        try:
            self._send(handle, path or [])
        finally:
            os.close(handle)
        return None

    def _send(self, handle: int, path: list[str]) -> None:
        found = os.fstat(handle)
        tag = f'"{found.st_size:x}-{found.st_mtime_ns:x}-{found.st_ino:x}"'
        if _names(self.headers.get("If-None-Match", ""), tag):
            return self._head(HTTPStatus.NOT_MODIFIED, path, tag)
        first, end, status = 0, found.st_size, HTTPStatus.OK
        wanted = _range(self.headers.get("Range", ""), found.st_size)
        if wanted and self.headers.get("If-Range", tag) == tag:
            if wanted[0] >= wanted[1]:
                return self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, path, tag,
                                  length=0, range=f"bytes */{found.st_size}")  # fmt: skip
            (first, end), status = wanted, HTTPStatus.PARTIAL_CONTENT
        range = f"bytes {first}-{end - 1}/{found.st_size}" if status == HTTPStatus.PARTIAL_CONTENT else ""
        self._head(status, path, tag, length=end - first, range=range)
        if self.command != "HEAD":
            limits = self.server.limits
            self._allow(limits.start + (end - first) / limits.slowest)
            self._body(handle, first, end)
        return None

    def _head(self, status: HTTPStatus, path: list[str], tag: str, *, length: int = -1, range: str = "") -> None:
        self.send_response(status)
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-cache" if path[-1] in CHANGING else FOREVER)
        if length >= 0:
            self.send_header("Content-Length", str(length))
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Accept-Ranges", "bytes")
        if range:
            self.send_header("Content-Range", range)
        self.end_headers()

    def _body(self, handle: int, first: int, end: int) -> None:
        """The bytes from the file to the socket, without passing through here; a client that takes none is cut."""
        self.wfile.flush()
        with open(handle, "rb", closefd=False) as file:
            if first < end and self.connection.sendfile(file, first, end - first) < end - first:
                self.close_connection = True  # the file was cut while it was sent: the client must see that


for _method in METHODS:
    setattr(_Answer, f"do_{_method}", _Answer._answer)  # what http.server looks for; 501 for any other


def serve(server: Server) -> None:
    """Answer until this is interrupted."""
    try:
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()


def _path(target: str) -> list[str] | None:
    """The components of what was asked for; None for anything that is not plainly a file below the folder."""
    try:
        path = unquote(urlsplit(target).path, errors="strict")
    except ValueError:
        return None
    first, *components = path.split("/")
    if first or not components or len(components) > DEEPEST:
        return None
    return components if all(map(COMPONENT.match, components)) else None


def _opened(root: int, path: list[str]) -> int | None:
    """A regular file below the folder, without a link on the way to it."""
    here = os.dup(root)
    try:
        for name in path[:-1]:
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
        handle = os.open(path[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    except OSError:
        return None
    finally:
        os.close(here)
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    return None


def _names(header: str, tag: str) -> bool:
    """Whether If-None-Match names this tag; it compares weakly (RFC 9110, 8.8.3.2)."""
    return header.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in header.split(","))


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First and end of the one range asked for, empty where there is no such; None for the whole file."""
    found = RANGE.match(header.replace(" ", ""))
    if not found or found.group(0) == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return (max(size - int(last), 0), size) if int(last) else (size, size)
    if last and int(last) < int(first):
        return None  # not a range at all (RFC 9110, 14.1.1)
    return int(first), min(int(last) + 1 if last else size, size)
