"""Http: a guest's web server, asked through whatever leads to its ports; its answers are hostile and bounded."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from imagekit.console import WIDTH, escape
from imagekit.errors import GuestProblem
from imagekit.patience import Stopwatch, wall_watch

LOOK_AGAIN = 0.25  # seconds between two looks at how much of its time is over
MAX_BODY = 16 << 20  # bytes of an HTTP answer's body that are read


@dataclass(frozen=True)
class Response:
    """An HTTP answer of a guest."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Http:
    """A guest's web server, reached through `connect`."""

    connect: Callable[[int], Any]
    stopwatch: Stopwatch = wall_watch  # how its time passes

    def get(self, path: str, *, port: int = 80, headers: Mapping[str, str] | None = None) -> Response:
        """GET a path; a body over 16 MiB is a GuestProblem."""
        return self.request("GET", path, port=port, headers=headers)

    def request(
        self,
        method: str,
        path: str,
        *,
        port: int = 80,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout: float = 30.0,  # seconds of the guest's own for the whole answer
    ) -> Response:
        """One HTTP/1.1 request on a connection of its own; raises GuestProblem when no whole answer comes in time."""
        from http.client import HTTPConnection, HTTPException

        what = f"{method} {path} on port {port}"
        connection = HTTPConnection("guest", port)
        connection.sock = self.connect(port)
        connection.sock.settimeout(None)
        late = f"{what}: no whole answer within {timeout:g} s"
        try:
            with _cut_off(connection.sock, timeout, self.stopwatch, late):
                connection.request(method, path, body=body or None, headers={"Connection": "close", **(headers or {})})
                with connection.getresponse() as answer:
                    fields = {name.lower(): value for name, value in answer.getheaders()}
                    return Response(answer.status, fields, _whole_body(answer))
        except (HTTPException, OSError) as error:
            raise GuestProblem(f"{what}: {escape(f'{type(error).__name__} {error}'.encode())[:WIDTH]}") from error
        finally:
            connection.close()


def _whole_body(answer: Any) -> bytes:
    """The body, bounded; http.client's read(n) says nothing when the connection ends before the announced length."""
    body: bytes = answer.read(MAX_BODY + 1)
    if len(body) > MAX_BODY:
        raise OSError(f"the body has more than {MAX_BODY} bytes")
    if answer.length:
        raise OSError(f"the body ends {answer.length} bytes early")
    return body


@contextmanager
def _cut_off(connection: Any, seconds: float, stopwatch: Stopwatch, message: str) -> Iterator[None]:
    """Shut a connection down when time is up: a socket's own time-out is for each byte, and bytes can trickle."""
    from socket import SHUT_RDWR
    from threading import Event, Thread

    done, late = Event(), Event()

    def cut() -> None:
        passed = stopwatch()
        while (left := seconds - passed()) > 0:
            if done.wait(min(left, LOOK_AGAIN)):
                return
        late.set()
        with suppress(OSError):
            connection.shutdown(SHUT_RDWR)

    cutter = Thread(target=cut, daemon=True)
    cutter.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise GuestProblem(message) from error
        raise
    finally:
        done.set()
        cutter.join()
    if late.is_set():
        raise GuestProblem(message)
