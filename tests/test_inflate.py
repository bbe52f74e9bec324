"""inflate.py by both of its engines; the threads of `each` and `checked` end, whatever happens."""

import _thread
import gzip
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256

import pytest
from isal import isal_zlib

from imagekit.disk import gzip as ours
from imagekit.disk import inflate
from imagekit.errors import Problem

DATA = b"".join(b"%d bottles" % number for number in range(50_000))
PACKED = ours.segment([DATA]).data


@pytest.fixture(params=[zlib, isal_zlib], ids=["zlib", "isal"], autouse=True)
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflate, "decompressobj", request.param.decompressobj)
    monkeypatch.setattr(inflate, "error", request.param.error)


def test_a_chunk_comes_back() -> None:
    assert inflate.inflate(PACKED, len(DATA)) == DATA


BAD = {
    "shorter than its row": (PACKED, len(DATA) + 1),
    "longer than its row": (PACKED, len(DATA) - 1),
    "a bomb": (ours.segment([bytes(1 << 26)]).data, 1000),
    "cut": (PACKED[:-5], len(DATA)),
    "without its flush": (PACKED[:-4], len(DATA)),
    "ended by a last block": (PACKED + b"\x03\0", len(DATA)),
    "something after its end": (PACKED + b"\x03\0" + inflate.FLUSHED, len(DATA)),
    "no deflate": (b"\xff" * 100 + inflate.FLUSHED, len(DATA)),
    "empty": (b"", 1),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_chunks(what: str) -> None:
    packed, size = BAD[what]
    with pytest.raises(Problem, match="chunk"):
        inflate.inflate(packed, size)


@pytest.mark.parametrize("piece", [1, 100, 1 << 20])
def test_gzip_files_of_many_members(piece: int) -> None:
    packed = gzip.compress(DATA[:2000]) + gzip.compress(b"") + gzip.compress(DATA[2000:9000])
    pieces = (packed[at : at + piece] for at in range(0, len(packed), piece))
    assert b"".join(inflate.plain(pieces)) == DATA[:9000]


@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_what_is_not_compressed_is_left_as_it_is(piece: int) -> None:
    assert b"".join(inflate.plain(DATA[at : at + piece] for at in range(0, 3000, piece))) == DATA[: max(3000, piece)]


BAD_GZIP = {
    "cut": gzip.compress(DATA)[:-1],
    "wrong sum": gzip.compress(DATA)[:-8] + bytes(8),
    "zeros after it": gzip.compress(DATA) + bytes(512),
    "text after it": gzip.compress(DATA) + b"hello, world, this is more",
    "nothing in it": b"\x1f\x8b" + bytes(30),
}


@pytest.mark.parametrize("what", BAD_GZIP)
def test_bad_gzip_files(what: str) -> None:
    with pytest.raises(Problem, match=r"gunzipped|cut short"):
        b"".join(inflate.plain(iter([BAD_GZIP[what]])))


def test_a_bomb_is_never_whole_in_memory() -> None:
    bomb = gzip.compress(bytes(1 << 26), 9)
    assert max(map(len, inflate.plain(iter([bomb])))) <= inflate.PIECE


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
def test_pieces_come_in_their_order(threads: int) -> None:
    before = _thread._count()
    assert list(inflate.each(5, lambda number: b"%d" % number, threads=threads)) == [b"0", b"1", b"2", b"3", b"4"]
    _wait_for_threads(before)


def test_nothing_is_made_far_ahead_of_its_use() -> None:
    made: list[int] = []

    def make(number: int) -> bytes:
        made.append(number)
        return b"x"

    pieces = inflate.each(1000, make)
    next(pieces)
    assert isinstance(pieces, Iterator)
    pieces.close()
    assert len(made) <= 2 * (inflate.AHEAD + 1) + 2


def test_a_failure_is_raised_in_its_place_and_ends_all() -> None:
    before = _thread._count()

    def make(number: int) -> bytes:
        if number == 3:
            raise Problem("the third")
        return b"x"

    pieces = inflate.each(100, make)
    assert [next(pieces) for _ in range(3)] == [b"x"] * 3
    with pytest.raises(Problem, match="the third"):
        next(pieces)
    _wait_for_threads(before)


@pytest.mark.parametrize("allowed", [0, 1])
def test_works_where_no_thread_can_be_started(allowed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before, left = _thread._count(), [True] * allowed

    def start(work: Callable[..., None], words: tuple[object, ...]) -> int:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        return _thread.start_new_thread(work, words)

    monkeypatch.setattr(inflate, "start_new_thread", start)
    pieces = [b"%d" % number for number in range(9)]
    assert list(inflate.each(9, pieces.__getitem__, threads=3)) == pieces
    assert list(inflate.ahead(iter(pieces))) == pieces
    assert list(inflate.checked(iter(pieces), sha256(b"".join(pieces)).hexdigest())) == pieces
    with pytest.raises(Problem, match="sha256"):
        list(inflate.checked(iter(pieces), ""))
    _wait_for_threads(before)


def test_ahead() -> None:
    before = _thread._count()
    assert list(inflate.ahead(iter([b"a", b"b"]))) == [b"a", b"b"]
    _wait_for_threads(before)


def test_checked() -> None:
    pieces = [DATA[at : at + 1000] for at in range(0, len(DATA), 1000)]
    assert b"".join(inflate.checked(iter([b"", *pieces]), sha256(DATA).hexdigest())) == DATA
    with pytest.raises(Problem, match="sha256"):
        list(inflate.checked(iter(pieces), sha256(b"other").hexdigest()))


def test_checked_says_what_went_wrong_before() -> None:
    def cut() -> Iterator[bytes]:
        yield b"x"
        raise Problem("cut")

    with pytest.raises(Problem, match="cut"):
        list(inflate.checked(cut(), ""))


def _wait_for_threads(count: int) -> None:
    """The threads say that they are done a moment before they are gone."""
    while _thread._count() > count:
        time.sleep(0.001)


def test_the_engine_is_isal_where_it_is_installed() -> None:
    code = "from imagekit.disk import inflate; print(inflate.decompressobj.__module__)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"isal.isal_zlib\n"
