"""A mirror on a loopback address for tests: serves a folder, and lies, stalls or cuts where it is told to."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import ClassVar


class Answer(BaseHTTPRequestHandler):
    """One request: an answer made for its path, else the file of the folder."""

    protocol_version = "HTTP/1.1"
    mirror: ClassVar["Mirror"]

    def do_GET(self) -> None:
        """Answer."""
        self.mirror.requests.append(self.path)
        with suppress(ConnectionError):
            if made := self.mirror.answers.get(self.path) or self.mirror.answers.get("*"):
                made(self)
            else:
                self.file()

    def file(self) -> None:
        """The file of the folder, or 404."""
        path = self.mirror.folder / self.path.lstrip("/").replace("%2B", "+")
        self.body(path.read_bytes() if path.is_file() else b"no such file", 200 if path.is_file() else 404)

    def body(self, data: bytes, status: int = 200, *, length: int | None = None, **headers: str) -> None:
        """An answer of these bytes; `length` is the Content-Length that it claims."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        if length not in (None, len(data)):
            self.cut()

    def cut(self) -> None:
        """Close the connection."""
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Mirror:
    """A running mirror: what was asked for, and what to answer other than the folder's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: list[str] = []
        self.answers: dict[str, Callable[[Answer], None]] = {}
        self.over = Event()  # an answer that stalls waits for this
        self.address = ""


@contextmanager
def serving(folder: Path) -> Iterator[Mirror]:
    """Serve a folder until the block ends."""
    mirror = Mirror(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (Answer,), {"mirror": mirror}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign] # a reader that hung up is no news
    mirror.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield mirror
    finally:
        mirror.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
