"""remote.py against real servers, honest and evil: only what is signed is kept, and a fetch that was cut goes on."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread, Timer

import pytest
import signed_rig
from debian_mirror import Answer, Mirror, serving
from range_rig import part_of, ranges
from signed_rig import KEY, OTHER, SMALL, large, signed

from imagekit import ranged, remote
from imagekit.depot.server import Server, serve
from imagekit.disk import signedchunks, signedfile
from imagekit.errors import Problem, RigProblem
from imagekit.wire import Patience

CALM = Patience(stall=20, start=60, tries=3, pause=0.01)
HASTY = Patience(stall=0.2, start=0.8, slowest=1e9, tries=3, pause=0.01)


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", CALM)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    signed(folder, SMALL, name="small")
    signed(folder, large(), name="large")
    return folder


@pytest.fixture
def mirror(served: Path) -> Iterator[Mirror]:
    with serving(served) as running:
        running.answers["*"] = ranges
        yield running


def fetched(url: str, tmp_path: Path, keys: tuple[object, ...] = (KEY,)) -> Path:
    return remote.fetch(url, keys, cache=tmp_path / "cache", say=lambda _: None)  # type: ignore[arg-type]


def kept(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size]


def assert_only_signed_is_kept(tmp_path: Path, served: Path) -> None:
    """Every draft holds a beginning of an image, chunk by chunk as it was signed."""
    for path in kept(tmp_path):
        assert any(image.read_bytes().startswith(path.read_bytes()) for image in served.iterdir())


@pytest.mark.parametrize("name", ["small", "large"])
def test_a_verified_copy(name: str, mirror: Mirror, tmp_path: Path) -> None:
    copy = fetched(f"{mirror.address}/{name}", tmp_path)
    assert copy.read_bytes() == (mirror.folder / name).read_bytes()
    assert copy.stat().st_mode & 0o777 == 0o400
    assert copy.parent.stat().st_mode & 0o077 == 0
    before = len(mirror.requests)
    assert fetched(f"{mirror.address}/{name}", tmp_path) == copy
    assert len(mirror.requests) == before + 1, "its end says that it is here"


def test_the_end_of_the_file_comes_first(mirror: Mirror, tmp_path: Path) -> None:
    fetched(f"{mirror.address}/large", tmp_path)
    size = (mirror.folder / "large").stat().st_size
    first = int(mirror.requests[0].split()[1].partition("-")[0])
    assert first == size - remote.END
    assert mirror.requests[1].split()[1].startswith("0-")


def test_a_trailer_larger_than_what_is_asked_first(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "END", 200)
    copy = fetched(f"{mirror.address}/large", tmp_path)
    assert copy.read_bytes() == (mirror.folder / "large").read_bytes()


def test_a_server_of_the_standard_library_which_knows_no_ranges(mirror: Mirror, tmp_path: Path) -> None:
    argv = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(mirror.folder), "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout
            port = server.stdout.readline().split()[5]
            copy = fetched(f"http://127.0.0.1:{port}/large", tmp_path)
        finally:
            server.kill()
    assert copy.read_bytes() == (mirror.folder / "large").read_bytes()
    assert kept(tmp_path) == [copy]


def test_depots_own_server(mirror: Mirror, tmp_path: Path) -> None:
    server = Server(mirror.folder)
    thread = Thread(target=serve, args=(server,))
    thread.start()
    try:
        copy = fetched(f"http://127.0.0.1:{server.port}/large", tmp_path)
    finally:
        server.shutdown()
        thread.join()
    assert copy.read_bytes() == (mirror.folder / "large").read_bytes()


def test_what_was_cut_goes_on_where_it_was(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (mirror.folder / "large").stat().st_size
    monkeypatch.setattr(remote, "PATIENCE", Patience(tries=1))
    body = signed_rig.read((mirror.folder / "large").read_bytes()).said.body

    def short(answer: Answer) -> None:
        if "bytes=0-" not in answer.headers["Range"]:
            return ranges(answer)
        return ranges(answer, lambda data: data[: size * 2 // 3], length=body)

    mirror.answers["*"] = short
    with pytest.raises(RigProblem, match="cut the body"):
        fetched(f"{mirror.address}/large", tmp_path)
    (draft,) = kept(tmp_path)
    assert 0 < draft.stat().st_size <= size * 2 // 3
    assert_only_signed_is_kept(tmp_path, mirror.folder)
    mirror.answers["*"] = ranges
    mirror.requests.clear()
    evil = draft.read_bytes()
    draft.write_bytes(evil[:-100] + b"!" + evil[-99:])  # an evil neighbour is found, and the rest is used
    copy = fetched(f"{mirror.address}/large", tmp_path)
    assert copy.read_bytes() == (mirror.folder / "large").read_bytes()
    first = int(mirror.requests[-1].split()[1].partition("-")[0])
    assert 0 < first < len(evil)


def test_faults_of_the_moment_are_tried_again(mirror: Mirror, tmp_path: Path) -> None:
    faults = iter([503, 0, 429, 0, 500])

    def shaky(answer: Answer) -> None:
        status = next(faults, 0)
        if status:
            return answer.body(b"later", status)
        return ranges(answer, lambda data: data[: max(300_000, len(data) // 2)], length=_length(answer))

    mirror.answers["*"] = shaky
    assert fetched(f"{mirror.address}/large", tmp_path).read_bytes() == (mirror.folder / "large").read_bytes()


def _length(answer: Answer) -> int:
    first, last, _ = part_of(answer) or (0, -1, 0)
    return last - first + 1


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


def endless(answer: Answer) -> None:
    answer.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not answer.mirror.over.is_set():
        answer.wfile.write(bytes(100_000))


def endless_part(answer: Answer) -> None:
    first, last, size = part_of(answer) or (0, 0, 0)
    answer.wfile.write(f"HTTP/1.1 206 P\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n".encode())
    while not answer.mirror.over.is_set():
        answer.wfile.write(b"\x1f" * 100_000)


def silent(answer: Answer) -> None:
    answer.mirror.over.wait(600)


def drip(answer: Answer) -> None:
    answer.wfile.write(b"HTTP/1.1 206 P\r\n")
    while not answer.mirror.over.wait(0.05):
        answer.wfile.write(b"X-More: x\r\n")


def redirects(location: str) -> Callable[[Answer], None]:
    return lambda answer: answer.body(b"", 302, Location=location)


EVIL: dict[str, tuple[Callable[[Answer], None], str]] = {
    "another byte": (lambda a: ranges(a, flipped), "signed|is not|malformed|end is missing|forgery"),
    "another byte in the body": (lambda a: ranges(a, flipped if "=0-" in a.headers["Range"] else bytes), "was changed"),
    "another image's body": (
        lambda a: ranges(a, (lambda d: d[: len(d) // 2] * 2) if "=0-" in a.headers["Range"] else bytes),
        "was changed",
    ),
    "a part that is not named": (lambda a: ranges(a, name="bytes */9"), "does not name"),
    "a part with a sign": (lambda a: ranges(a, name="bytes 0--9/10"), "does not name"),
    "a part of another unit": (lambda a: ranges(a, name="lines 0-9/10"), "does not name"),
    "a part past the end": (lambda a: ranges(a, name="bytes 0-10/10"), "changed"),
    "another part": (lambda a: ranges(a, name="bytes 0-9/10000000"), "another part"),
    "a larger end": (lambda a: ranges(a, name="bytes 0-99999999/100000000"), "another part"),
    "a larger file": (lambda a: ranges(a, name=_shifted(a, 1000)), "of them are signed|another part"),
    "not found": (lambda a: a.body(b"", 404), "404"),
    "no part": (lambda a: a.body(b"", 416), "416"),
    "always busy": (lambda a: a.body(b"", 503), "503"),
    "a page": (lambda a: a.body(b"<html>" * 100), "not a signed image|end is missing"),
    "nothing": (lambda a: a.body(b""), "not a signed image|end is missing"),
    "a length that is a lie": (lambda a: a.body(b"x" * 100, length=10**15), "where at most"),
    "a cut": (lambda a: ranges(a, lambda d: d[:50], length=_length(a)), "cut the body"),
    "without end": (endless, "no length"),
    "redirects in a circle": (redirects("/small"), "more than 5 times"),
    "redirect to a file": (redirects("file:///etc/passwd"), "redirects to"),
    "redirect to nowhere": (redirects(""), "redirects to"),
    "redirect to a bad port": (redirects("http://127.0.0.1:99999999/"), "redirects to"),
    "no HTTP": (lambda a: a.wfile.write(b"SSH-2.0-OpenSSH\r\n") and a.cut(), "connection failed"),
}


def _shifted(answer: Answer, more: int) -> str:
    first, last, size = part_of(answer) or (0, 0, 0)
    return f"bytes {first + more}-{last + more}/{size + more}"


@pytest.mark.parametrize("what", EVIL)
def test_evil_servers(what: str, mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers["*"], words = EVIL[what]
    with pytest.raises(Problem, match=words):
        fetched(f"{mirror.address}/large", tmp_path)
    assert_only_signed_is_kept(tmp_path, mirror.folder)
    assert len(mirror.requests) < 20


@pytest.mark.parametrize("answer", [silent, drip, endless_part])
def test_slow_and_endless_servers(
    answer: Callable[[Answer], None], mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PATIENCE", HASTY)
    mirror.answers["*"] = answer
    with pytest.raises(Problem, match=r"silent|too slow|not a signed image|end is missing"):
        fetched(f"{mirror.address}/small", tmp_path)
    assert not kept(tmp_path)


def test_redirects_to_another_host_are_followed_without_the_credentials(mirror: Mirror, tmp_path: Path) -> None:
    said: list[str | None] = []

    def elsewhere(answer: Answer) -> None:
        said.append(answer.headers.get("Authorization"))
        if answer.headers["Host"].startswith("127.0.0.1"):
            return answer.body(b"", 307, Location=f"http://x:y@localhost:{port}{answer.path}?token=a%20b")
        assert answer.path.endswith("?token=a%20b")
        return ranges(answer)

    port = mirror.address.rpartition(":")[2]
    mirror.answers["*"] = elsewhere
    fetched(f"http://me:secret@127.0.0.1:{port}/small", tmp_path)
    assert said[0]
    assert said[1] is None
    assert said[1::2] == [None] * (len(said) // 2)


def test_https_never_becomes_http() -> None:
    web = remote.Web("https://a/x", CALM)
    assert web._redirected("http://a/x", "https://b/y?z") == "https://b/y?z"
    with pytest.raises(RigProblem, match="redirects to"):
        web._redirected("https://a/x", "http://a/x")


def test_where_no_thread_can_be_started(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Timer):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ranged, "Timer", Refused)
    with pytest.raises(RigProblem, match="no thread can be started"):
        fetched(f"{mirror.address}/small", tmp_path)


def test_only_trusted_keys_count(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="not trusted"):
        fetched(f"{mirror.address}/small", tmp_path, (OTHER,))
    assert not kept(tmp_path)


def test_a_file_address_is_the_file(mirror: Mirror, tmp_path: Path) -> None:
    (mirror.folder / "with a blank").write_bytes(b"x")
    assert fetched(f"file://{mirror.folder}/with%20a%20blank", tmp_path) == mirror.folder / "with a blank"
    for bad in (
        "file://host/x",
        "file:x",
        "ftp://a/b",
        "https:///x",
        "sftp://a/",
        "sftp://-oProxyCommand=x/y",
        "scp://u:p@h/x",
    ):
        with pytest.raises(Problem):
            fetched(bad, tmp_path)


def test_two_fetch_it_once(mirror: Mirror, tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [Thread(target=lambda: found.append(fetched(f"{mirror.address}/large", tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert sum(" 0-" in request for request in mirror.requests) == 1
    assert kept(tmp_path) == [found[0]]


def test_unverified_leaves_nothing(mirror: Mirror, tmp_path: Path) -> None:
    (mirror.folder / "plain").write_bytes(b"anything" * 1000)
    handle = remote.unverified(f"{mirror.address}/plain", cache=tmp_path / "cache", say=lambda _: None)
    assert os.pread(handle, 10_000, 0) == b"anything" * 1000
    os.close(handle)
    assert not kept(tmp_path)


def test_a_full_disk(mirror: Mirror, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("mounts a small disk")
    (tmp_path / "cache").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "small", tmp_path / "cache"], check=True)
    try:
        with pytest.raises(RigProblem, match="No space left"):
            fetched(f"{mirror.address}/large", tmp_path)
        assert not list((tmp_path / "cache/images").iterdir())
    finally:
        subprocess.run(["umount", tmp_path / "cache"], check=True)


def test_signedchunks_read_the_copy(mirror: Mirror, tmp_path: Path) -> None:
    with open(fetched(f"{mirror.address}/large", tmp_path), "rb") as file:
        found = signedfile.read(file.fileno(), (KEY,))
        assert b"".join(signedchunks.pieces(file.fileno(), found)) == large()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(RigProblem, match="refused"):
        fetched(f"http://127.0.0.1:{free_port()}/x", tmp_path)
