"""Downloads from a mirror that cannot be trusted."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from debian_mirror import Answer, Mirror, serving

from imagekit import download, inuse
from imagekit.errors import RigProblem
from imagekit.package import Gone
from imagekit.store import Store
from imagekit.stores.directory import open_store

DATA = bytes(range(256)) * 800
DIGEST = sha256(DATA).hexdigest()
CALM = download.Patience(stall=20, start=60, tries=3, pause=0.01)  # so that a busy machine fails no test
STALLED = download.Patience(stall=0.3, start=60, tries=3, pause=0.01)
LATE = download.Patience(stall=20, start=1, slowest=1e9, tries=3, pause=0.01)
HASTY = {
    "silent": STALLED,
    "stall in the middle": STALLED,
    "one byte now and then": LATE,
    "headers now and then": LATE,
}


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    (tmp_path / "mirror/pool").mkdir(parents=True)
    (tmp_path / "mirror/pool/x+1_all.deb").write_bytes(DATA)
    with serving(tmp_path / "mirror") as mirror:
        yield mirror


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


def fetch(
    mirror: Mirror, store: Store, *, beat: download.Beat = lambda _: None, patience: download.Patience = CALM
) -> None:
    with closing(download.Calls(patience).line()) as line:
        download.fetch(line, mirror.address, "pool/x+1_all.deb", size=len(DATA), digest=DIGEST, store=store, beat=beat)


def kept(store: Store) -> list[Path]:
    """Every file of the store, drafts included."""
    return [path for path in Path(store.location).rglob("*") if path.is_file() and path.name != inuse.NAME]


def test_what_was_asked_for_is_kept(mirror: Mirror, store: Store) -> None:
    beats: list[int] = []
    fetch(mirror, store, beat=beats.append)
    assert store.read(DIGEST) == DATA
    assert sum(beats) == len(DATA)


def test_a_connection_is_kept_for_the_next_file(mirror: Mirror) -> None:
    ports = set()
    mirror.answers["*"] = lambda answer: (ports.add(answer.client_address[1]), answer.file())[1]
    with closing(download.Calls(CALM).line()) as line:
        for _ in range(3):
            assert download.text(line, f"{mirror.address}/pool/x+1_all.deb", 1 << 20) == DATA
    assert len(ports) == 1
    assert len(mirror.requests) == 3


def stall(mirror: Mirror, after: int) -> Callable[[Answer], None]:
    def answer(this: Answer) -> None:
        this.send_response(200)
        this.send_header("Content-Length", str(len(DATA)))
        this.end_headers()
        this.wfile.write(DATA[:after])
        mirror.over.wait(20)
        this.cut()

    return answer


def silent(mirror: Mirror) -> Callable[[Answer], None]:
    return lambda _: mirror.over.wait(20) and None


def drip(mirror: Mirror) -> Callable[[Answer], None]:
    def answer(this: Answer) -> None:
        this.send_response(200)
        this.send_header("Content-Length", str(len(DATA)))
        this.end_headers()
        for byte in DATA:
            this.wfile.write(bytes([byte]))
            if mirror.over.wait(0.05):
                return

    return answer


def drip_headers(mirror: Mirror) -> Callable[[Answer], None]:
    def answer(this: Answer) -> None:
        this.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not mirror.over.wait(0.05):
            this.wfile.write(b"x")

    return answer


def endless(mirror: Mirror) -> Callable[[Answer], None]:
    def answer(this: Answer) -> None:
        this.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not mirror.over.is_set():
            this.wfile.write(DATA)

    return answer


def raw(data: bytes) -> Callable[[Mirror], Callable[[Answer], None]]:
    def answer(this: Answer) -> None:
        this.wfile.write(data)
        this.cut()

    return lambda _: answer


def body(data: bytes, status: int = 200, **headers: str) -> Callable[[Mirror], Callable[[Answer], None]]:
    return lambda _: lambda this: this.body(data, status, **headers)


def flipped(data: bytes) -> bytes:
    return data[:500] + bytes([data[500] ^ 1]) + data[501:]


BAD = {  # what the mirror does, the words of the problem, how often it was asked
    "404": (body(b"", 404), "dropped this file", 1),
    "410": (body(b"", 410), "dropped this file", 1),
    "403": (body(b"", 403), "answers 403 Forbidden", 1),
    "200 without a body": (body(b""), "announces 0 bytes where 204800 are expected", 1),
    "206": (body(DATA, 206), "answers 206", 1),
    "500": (body(b"", 500), "answers 500 Internal Server Error.*tried 3 times", 3),
    "503": (body(b"", 503), "answers 503", 3),
    "429": (body(b"", 429), "answers 429", 3),
    "same size, other bytes": (
        body(flipped(DATA)),
        f"with the sha256 {sha256(flipped(DATA)).hexdigest()}, not {DIGEST}",
        1,
    ),
    "one byte more": (body(DATA + b"x"), "announces 204801 bytes where 204800", 1),
    "one byte less": (body(DATA[:-1]), "announces 204799 bytes where 204800", 1),
    "one byte more, unannounced": (raw(b"HTTP/1.0 200 OK\r\n\r\n" + DATA + b"x"), "sends more than 204800 bytes", 1),
    "one byte less, unannounced": (
        raw(b"HTTP/1.0 200 OK\r\n\r\n" + DATA[:-1]),
        "cut the body, after 204799 of 204800",
        3,
    ),
    "cut": (
        lambda _: lambda this: this.body(DATA[:70_000], length=len(DATA)),
        "cut the body, after 70000 of 204800",
        3,
    ),
    "reset before the answer": (raw(b""), "connection failed", 3),
    "endless": (endless, "sends more than 204800 bytes", 1),
    "silent": (silent, "silent for 0.3 s", 3),
    "stall in the middle": (lambda mirror: stall(mirror, 70_000), "silent for 0.3 s, after 70000 of 204800", 3),
    "one byte now and then": (drip, r"too slow, after [0-9]+ of", 1),
    "headers now and then": (drip_headers, "too slow, after 0 of", 1),
    "no HTTP": (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "connection failed", 3),
    "a header without end": (raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000), "connection failed", 3),
    "a thousand headers": (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000), "connection failed", 3),
    "bad chunks": (raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), "cut the body", 3),
    "redirect to another port": (body(b"", 302, Location="http://127.0.0.1:1/x"), "redirects elsewhere", 1),
    "redirect to another host": (body(b"", 301, Location="http://192.0.2.1/x"), "redirects elsewhere", 1),
    "redirect to a file": (body(b"", 302, Location="file:///etc/passwd"), "redirects elsewhere", 1),
    "redirect to nowhere": (body(b"", 302), "redirects elsewhere", 1),
    "redirect to garbage": (body(b"", 302, Location="http://[::1"), "redirects elsewhere", 1),
    "redirect in a circle": (body(b"", 302, Location="/pool/x+1_all.deb"), "redirects more than 5 times", 5),
}


@pytest.mark.parametrize(("does", "words", "asked"), BAD.values(), ids=BAD)
def test_a_bad_mirror_is_named_and_leaves_nothing(
    request: pytest.FixtureRequest,
    mirror: Mirror,
    store: Store,
    does: Callable[[Mirror], Callable[[Answer], None]],
    words: str,
    asked: int,
) -> None:
    mirror.answers["*"] = does(mirror)
    beats: list[int] = []
    with pytest.raises(RigProblem, match=words) as caught:
        fetch(mirror, store, beat=beats.append, patience=HASTY.get(request.node.callspec.id, CALM))
    assert "pool/x+1_all.deb" in caught.value.message
    assert caught.value.hint
    assert isinstance(caught.value, Gone) == ("dropped" in words)
    assert len(mirror.requests) == asked
    assert kept(store) == []
    assert sum(beats) == 0


def test_a_fault_of_the_moment_is_tried_again(mirror: Mirror, store: Store) -> None:
    faults = iter([lambda this: this.body(b"", 503), lambda this: this.body(DATA[:99], length=len(DATA)), Answer.file])
    mirror.answers["*"] = lambda this: next(faults)(this)
    fetch(mirror, store)
    assert store.read(DIGEST) == DATA


def test_a_redirect_on_the_same_host_is_followed(mirror: Mirror, store: Store) -> None:
    mirror.answers["/pool/x+1_all.deb"] = lambda this: this.body(b"", 302, Location="/pool/elsewhere")
    mirror.answers["/pool/elsewhere"] = lambda this: this.body(DATA)
    fetch(mirror, store)
    assert store.has(DIGEST)


def test_chunks_are_read(mirror: Mirror, store: Store) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (DATA[:5], DATA[5:])) + b"0\r\n\r\n"
    mirror.answers["*"] = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)(mirror)
    fetch(mirror, store)
    assert store.has(DIGEST)


def test_no_mirror_at_all(store: Store) -> None:
    with (
        closing(download.Calls(CALM).line()) as line,
        pytest.raises(RigProblem, match=r"connection failed.*tried 3 times"),
    ):
        download.fetch(line, "http://127.0.0.1:1", "x", size=1, digest=DIGEST, store=store, beat=lambda _: None)
    with closing(download.Calls(CALM).line()) as line, pytest.raises(RigProblem, match="name cannot be resolved"):
        download.fetch(line, "http://mirror.invalid", "x", size=1, digest=DIGEST, store=store, beat=lambda _: None)


def test_all_transfers_end_at_once(mirror: Mirror, store: Store) -> None:
    calls = download.Calls(download.Patience(stall=60))

    mirror.answers["*"] = lambda _: (calls.end(), mirror.over.wait(20), None)[2]
    with closing(calls.line()) as line, pytest.raises(RigProblem, match="ended"):
        download.fetch(line, mirror.address, "x", size=9, digest=DIGEST, store=store, beat=lambda _: None)
    with closing(calls.line()) as line, pytest.raises(RigProblem, match="ended"):
        download.fetch(line, mirror.address, "x", size=9, digest=DIGEST, store=store, beat=lambda _: None)
    assert not mirror.over.is_set()
    assert len(mirror.requests) == 1


REDIRECTS = {
    ("http://a/x/y", "z"): "http://a/x/z",
    ("http://a/x", "http://a:80/y"): None,  # another spelling of the port is refused, which is the safe side
    ("http://a/x", "https://a/y"): "https://a/y",
    ("http://a:8080/x", "https://a/y"): "https://a/y",
    ("https://a/x", "http://a/y"): None,
    ("https://a/x", "https://b/y"): None,
    ("https://a/x", "https://a:444/y"): None,
    ("http://u:p@a/x", "/y"): "http://u:p@a/y",
    ("http://u:p@a/x", "http://a.evil/y"): None,
    ("http://a/x", "ftp://a/y"): None,
    ("http://a/x", "gopher:"): None,
}


@pytest.mark.parametrize(("old", "location"), REDIRECTS, ids=" -> ".join)
def test_where_a_redirect_may_lead(old: str, location: str) -> None:
    if expected := REDIRECTS[old, location]:
        assert download._redirected(old, location) == expected
    else:
        with pytest.raises(RigProblem, match="redirects elsewhere"):
            download._redirected(old, location)


def test_credentials_of_the_address_are_sent_and_never_shown(mirror: Mirror) -> None:
    seen: list[str] = []
    mirror.answers["*"] = lambda this: (seen.append(this.headers["Authorization"]), this.body(b"", 403))[1]
    secret = mirror.address.replace("//", "//me:canary%21@")
    with closing(download.Calls(CALM).line()) as line, pytest.raises(RigProblem) as caught:
        download.text(line, f"{secret}/x", 10)
    assert seen == ["Basic bWU6Y2FuYXJ5IQ=="]
    assert "canary" not in str(caught.value)


def test_a_proxy_of_the_environment_is_used(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.answers["*"] = lambda this: this.body(b"through the proxy")
    monkeypatch.setenv("http_proxy", mirror.address)
    monkeypatch.delenv("no_proxy", raising=False)
    with closing(download.Calls(CALM).line()) as line:
        assert download.text(line, "http://mirror.invalid/x", 100) == b"through the proxy"
    assert mirror.requests == ["http://mirror.invalid/x"]


def test_names_are_quoted(mirror: Mirror, store: Store) -> None:
    path = "a b/?c#d\r\nX: y"
    with closing(download.Calls(CALM).line()) as line, pytest.raises(Gone):
        download.fetch(line, mirror.address, path, size=1, digest=DIGEST, store=store, beat=lambda _: None)
    assert mirror.requests == ["/a%20b/%3Fc%23d%0D%0AX%3A%20y"]


def test_the_deadline_grows_with_the_size() -> None:
    patience = download.Patience(start=10, slowest=1000)
    before = time.monotonic()
    deadline = patience.deadline(5000)
    assert before + 15 <= deadline <= time.monotonic() + 15
