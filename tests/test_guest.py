"""A guest's words are bounded and escaped, and its answers are awaited for a while only."""

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Thread

import pytest

from imagekit import http
from imagekit.console import HEAD, TAIL, Console, escape
from imagekit.errors import GuestProblem, MachineProblem, Problem, RigProblem
from imagekit.guest import Finished, Guest
from imagekit.http import MAX_BODY, Http


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain\ttext\n", "plain\ttext\n"),
        (b"line\r\nline\n", "line\nline\n"),
        (b"over\rwritten", "over\\x0dwritten"),
        (b"\x1b[31mred\x1b]52;c;AAAA\x07", "\\x1b[31mred\\x1b]52;c;AAAA\\x07"),
        ("\u202etxt.exe \u2028next \x9b1m".encode(), "\\x202etxt.exe \\x2028next \\x9b1m"),
        (b"\xff\xfe \xc3\xa9", "\\xff\\xfe \xe9"),
        (b"\0\x7f", "\\x00\\x7f"),
    ],
)
def test_what_a_guest_says_cannot_steer_a_terminal(data: bytes, shown: str) -> None:
    assert escape(data) == shown


def test_a_console_keeps_its_first_and_last_bytes() -> None:
    console = Console()
    console.feed(b"first\n")
    for number in range(100):
        console.feed(b"%06d " % number * 10000)
    console.feed(b"\nlast")
    assert console.total == 6 + 100 * 70000 + 5
    assert len(console.head) == HEAD
    assert TAIL <= len(console.tail) <= 2 * TAIL
    text = console.text
    assert text.startswith("first\n000000 ")
    assert text.endswith("000099 \nlast")
    assert f"[... {console.total - HEAD - len(console.tail)} bytes not kept ...]" in text


def test_a_small_console_is_whole() -> None:
    console = Console()
    for piece in (b"a" * (HEAD - 1), b"bcd", b"e"):
        console.feed(piece)
    assert console.text == "a" * (HEAD - 1) + "bcde"


@pytest.mark.parametrize(
    ("printed", "end"),
    [
        (b"", "guest| (it printed nothing)"),
        (b"one\r\ntwo\r\n\r\n", "guest| one\nguest| two"),
        (b"===== 1 passed =====\n::error::\x1b[2K\n", "guest| ===== 1 passed =====\nguest| ::error::\\x1b[2K"),
        (b"x" * 5_000_000, f"guest| {'x' * 400}..."),
    ],
)
def test_the_end_of_a_console_is_marked_as_the_guest_s(printed: bytes, end: str) -> None:
    console = Console()
    console.feed(printed)
    assert console.end() == end


def test_the_end_has_so_many_lines() -> None:
    console = Console()
    console.feed(b"".join(b"%d\n" % n for n in range(500_000)))
    assert console.end(2) == "guest| 499998\nguest| 499999"


def test_a_command_that_failed_can_be_checked() -> None:
    assert Finished(("true",), 0, b"out\n", b"").check().text == "out"
    with pytest.raises(GuestProblem, match=r"(?s)ls /x ended with 2\n.*out.*no \\x1b\[1m"):
        Finished(("ls", "/x"), 2, b"out", b"no \x1b[1m").check()


def test_a_machine_problem_is_the_rig_s_and_the_guest_s() -> None:
    assert issubclass(MachineProblem, RigProblem)
    assert issubclass(MachineProblem, GuestProblem)


def test_a_guest_splits_words_and_stops_once_it_is_left() -> None:
    asked: list[object] = []

    def run(argv: tuple[str, ...], **rest: object) -> Finished:
        asked.append((argv, rest))
        return Finished(argv, 0, b"", b"")

    with Guest("x86_64", "fake", run, lambda _: None, lambda: asked.append("stop"), Console(), {}) as guest:
        guest.run("ls '/a b' $HOME", env={"A": "1"}, timeout=5)
    assert asked == [(("ls", "/a b", "$HOME"), {"input": b"", "env": {"A": "1"}, "timeout": 5}), "stop"]


# --- HTTP


Serve = Callable[[bytes | Callable[[socket.socket], None]], Http]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A guest's web server that answers with these bytes, whatever it is asked."""
    ends: list[socket.socket] = []

    def serve(answer: bytes | Callable[[socket.socket], None]) -> Http:
        def connect(_: int) -> socket.socket:
            ours, theirs = socket.socketpair()
            ends.extend((ours, theirs))

            def talk() -> None:
                theirs.recv(65536)
                try:
                    theirs.sendall(answer) if isinstance(answer, bytes) else answer(theirs)
                    theirs.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # the other end had enough

            Thread(target=talk, daemon=True).start()
            return ours

        return Http(connect)

    yield serve
    for end in ends:
        end.close()


def test_an_answer_is_read(serve: Serve) -> None:
    answer = serve(b"HTTP/1.1 404 Not Found\r\nX-A: b\r\nContent-Length: 3\r\n\r\nno\xffmore").get("/")
    assert (answer.status, answer.headers["x-a"], answer.text) == (404, "b", "no\\xff")


def test_a_body_is_bounded(serve: Serve) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(MAX_BODY // 65536 + 10):
            connection.sendall(bytes(65536))

    with pytest.raises(GuestProblem, match=f"the body has more than {MAX_BODY} bytes"):
        serve(answer).get("/")


def trickle(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def silence(connection: socket.socket) -> None:
    connection.recv(1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "GET / on port 80: RemoteDisconnected"),
        (b"SSH-2.0-dropbear\r\n", "GET / on port 80: BadStatusLine SSH-2.0"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "the body ends 4 bytes early"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nshort", "IncompleteRead"),
        (b"\x1b[31m\r\n", "BadStatusLine \\x1b[31m"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200, "got more than 100 headers"),
        (trickle, "no whole answer within 0.3 s"),
        (silence, "no whole answer within 0.3 s"),
    ],
)
def test_an_answer_that_is_none(serve: Serve, answer: bytes, words: str) -> None:
    with pytest.raises(Problem) as caught:
        serve(answer).request("GET", "/", timeout=0.3 if callable(answer) else 60.0)
    assert words in str(caught.value)


def test_a_guest_that_the_host_keeps_waiting_is_waited_for(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    monkeypatch.setattr(http, "LOOK_AGAIN", 0.01)

    def answer(connection: socket.socket) -> None:
        time.sleep(0.3)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    stands = replace(serve(answer), stopwatch=lambda: lambda: 0.0)
    assert stands.request("GET", "/", timeout=0.1).text == "ok"
    with pytest.raises(GuestProblem, match=r"no whole answer within 0\.1 s"):
        serve(answer).request("GET", "/", timeout=0.1)
