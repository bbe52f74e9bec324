"""`imagekit serve`: files below a folder and nothing else, whole or in part, to as many clients as may be."""

import http.client
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from time import monotonic, sleep

import depot_rig
import pytest

from imagekit.depot.server import Limits

DATA = bytes(range(256)) * 1000
HANG = 120  # seconds: who is not cut stays for ever
HASTY = Limits(clients=4, idle=1, request=1, start=1, slowest=1e9, requests=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "blobs").mkdir(parents=True)
    (root / "blobs" / "a").write_bytes(DATA)
    (root / "empty").write_bytes(b"")
    (root / ".drafts").mkdir()
    (root / ".drafts" / "half").write_bytes(b"half")
    (tmp_path / "secret").write_bytes(b"secret")
    return root


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    with depot_rig.served(folder) as address:
        yield address


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, http.client.HTTPMessage]:
    with closing(http.client.HTTPConnection(address.removeprefix("http://"), timeout=HANG)) as connection:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read(), answer.headers


def test_a_file_is_served_with_its_tag(address: str) -> None:
    status, body, headers = ask(address, "/blobs/a")
    assert (status, body, headers["Accept-Ranges"]) == (200, DATA, "bytes")
    assert "immutable" in headers["Cache-Control"]
    again = ask(address, "/blobs/a", If_None_Match=f'"other", W/{headers["ETag"]}')
    assert (again[0], again[1]) == (304, b"")
    assert ask(address, "/empty")[:2] == (200, b"")


def test_head_says_the_same_without_the_bytes(address: str) -> None:
    status, body, headers = ask(address, "/blobs/a", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(DATA)))


RANGES = (
    ("bytes=0-0", 206, DATA[:1]),
    ("bytes=100-299", 206, DATA[100:300]),
    ("bytes=255000-", 206, DATA[255000:]),
    ("bytes=-10", 206, DATA[-10:]),
    ("bytes=-999999999", 206, DATA),
    ("bytes=255999-999999999999999999", 206, DATA[-1:]),
    ("bytes=256000-", 416, b""),
    ("bytes=-0", 416, b""),
    ("bytes=5-2", 200, DATA),
    ("bytes=0-1,5-6", 200, DATA),
    ("bytes=a-b", 200, DATA),
    ("bytes=-", 200, DATA),
    ("bytes=99999999999999999999-", 200, DATA),
    ("lines=1-2", 200, DATA),
)


@pytest.mark.parametrize(("asked", "status", "body"), RANGES)
def test_a_range_is_served(address: str, asked: str, status: int, body: bytes) -> None:
    got = ask(address, "/blobs/a", Range=asked)
    assert got[:2] == (status, body)
    if status == 416:
        assert got[2]["Content-Range"] == "bytes */256000"


def test_a_range_of_what_was_replaced_is_all_of_the_new(address: str) -> None:
    assert ask(address, "/blobs/a", Range="bytes=0-1", If_Range='"old"')[:2] == (200, DATA)


OUTSIDE = (
    *("/../secret", "/blobs/../../secret", "/%2e%2e/secret", "/blobs/%2e%2e/%2e%2e/secret", "/..%2fsecret", "//secret"),
    *("/.drafts/half", "/%2edrafts/half", "/link", "/dirlink/secret", "/blobs", "/blobs/", "/", "", "/pipe", "/a%00b"),
    *("/blobs\\a", "/blobs/a/", "/blobs//a", "/%ff", "/nothing", "/" + "a/" * 20 + "b", "/" + "a" * 300, "secret"),
)


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_else_is_served(address: str, folder: Path, path: str) -> None:
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "dirlink").symlink_to(folder.parent)
    os.mkfifo(folder / "pipe")
    status, body, _ = ask(address, path)
    assert (status, b"secret" in body) in ((404, False), (400, False))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "CONNECT", "PROPFIND"])
def test_nothing_can_be_written(address: str, method: str) -> None:
    assert ask(address, "/blobs/a", method)[0] == 501


MALFORMED = (
    b"\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /blobs/a HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\x1b[2J\r\n\r\n",
    b"GET /blobs/a HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /blobs/b HTTP/1.1\r\n\r\n",
    b"GET /blobs/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
)


@pytest.mark.parametrize("said", MALFORMED)
def test_what_is_no_request_is_refused(folder: Path, said: bytes) -> None:
    with depot_rig.served(folder, limits=HASTY) as address, raw(address) as client:
        client.sendall(said)
        assert received(client).partition(b"\r\n")[0].split(b" ")[1:2] in ([], [b"400"], [b"414"], [b"431"], [b"505"])


def raw(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), timeout=HANG)
    return client


def received(client: socket.socket) -> bytes:
    got = b""
    try:
        while piece := client.recv(1 << 16):
            got += piece
    except ConnectionResetError:
        pass
    return got


SLOW = (b"", b"GET /blo", b"GET /blobs/a HTTP/1.1\r\nHost:")


@pytest.mark.parametrize("said", SLOW)
def test_a_client_that_does_not_finish_its_request_is_cut(folder: Path, said: bytes) -> None:
    with depot_rig.served(folder, limits=HASTY) as address, raw(address) as client:
        client.sendall(said)
        client.settimeout(HANG)
        received(client)


def test_a_client_that_drips_its_request_is_cut(folder: Path) -> None:
    with depot_rig.served(folder, limits=HASTY) as address, raw(address) as client:
        client.settimeout(0.05)
        started = monotonic()
        while not dripped(client):
            assert monotonic() - started < HANG


def dripped(client: socket.socket) -> bool:
    """Send one byte more; whether we were cut."""
    try:
        client.sendall(b"G")
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def test_a_client_that_takes_no_bytes_is_cut_and_disturbs_nobody(folder: Path) -> None:
    with open(folder / "large", "wb") as file:
        file.truncate(256 << 20)
    with depot_rig.served(folder, limits=HASTY) as address, raw(address) as client:
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        assert ask(address, "/empty")[0] == 200
        sleep(3)
        assert len(received(client)) < 256 << 20


def test_one_client_more_than_may_be_is_turned_away_and_the_rest_are_served(folder: Path) -> None:
    limits = Limits(clients=4, idle=20)
    with depot_rig.served(folder, limits=limits) as address:
        waiting = [raw(address) for _ in range(4)]
        until = monotonic() + HANG
        while monotonic() < until:
            with raw(address) as one_more:
                if received(one_more) == b"":
                    break
        for client in waiting:
            client.sendall(b"GET /empty HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert received(client).startswith(b"HTTP/1.1 200 OK")
            client.close()


def test_a_connection_has_so_many_requests(folder: Path) -> None:
    with depot_rig.served(folder, limits=Limits(requests=3)) as address, raw(address) as client:
        client.sendall(b"GET /empty HTTP/1.1\r\n\r\n" * 5)
        assert received(client).count(b"200 OK") == 3


def test_many_at_once_get_their_bytes(address: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert all(got[1] == DATA for got in pool.map(lambda _: ask(address, "/blobs/a"), range(100)))


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is the other client")
def test_curl_resumes_a_download(address: str, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.write_bytes(DATA[:1000])
    subprocess.run(["curl", "-sS", "-f", "-C", "-", "-o", half, f"{address}/blobs/a"], check=True)
    assert half.read_bytes() == DATA
