"""Compressed bytes become plain ones ahead of their use, in threads; the sizes are known or bounded.

Hashing, inflating, reading and writing all let other threads run meanwhile. ISA-L inflates twice as fast as zlib, where
it is installed (`pip install imagekit[fast]`): for reading it is as good, since what comes out is the same.
"""

from _queue import SimpleQueue
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import chain

from imagekit.errors import Problem

try:
    from isal.isal_zlib import decompressobj, error
except ImportError:
    from zlib import decompressobj, error

PIECE = 1 << 20
AHEAD = 2  # pieces that a thread may be ahead of their use
FLUSHED = b"\0\0\xff\xff"  # an empty stored block: how a full flush ends
GZIP = b"\x1f\x8b"


class _Lane:
    """A thread that makes every so many-th piece, at most AHEAD of its use."""

    def __init__(self) -> None:
        self.may: SimpleQueue[bool] = SimpleQueue()
        self.made: SimpleQueue[bytes | BaseException | None] = SimpleQueue()  # None at its end
        self.is_over = False

    def work(self, make: Callable[[int], bytes], numbers: range) -> None:
        try:
            for number in numbers:
                self.may.get()
                if self.is_over:
                    break
                self.made.put(make(number))
        except BaseException as error:  # raised again by who takes it
            self.made.put(error)
        finally:
            self.made.put(None)

    def end(self) -> None:
        self.is_over = True
        self.may.put(True)
        while self.made.get() is not None:
            pass


def each(count: int, make: Callable[[int], bytes], *, threads: int = 2) -> Iterator[bytes]:
    """make(0), make(1) and so on, in this order, made ahead by a few threads; the first failure ends all of them."""
    lanes = _started(min(threads, count), count, make)
    try:
        for number in range(count):
            if not lanes:
                yield make(number)
                continue
            lane = lanes[number % len(lanes)]
            piece = lane.made.get()
            if not isinstance(piece, bytes):
                assert piece
                raise piece
            lane.may.put(True)
            yield piece
    finally:
        for lane in lanes:
            lane.end()


def _started(threads: int, count: int, make: Callable[[int], bytes]) -> list[_Lane]:
    """The lanes; none where threads are not to be had (RLIMIT_NPROC, a control group's pids.max)."""
    lanes: list[_Lane] = []
    try:
        for first in range(threads):
            lane = _Lane()
            for _ in range(AHEAD):
                lane.may.put(True)
            start_new_thread(lane.work, (make, range(first, count, threads)))
            lanes.append(lane)
    except RuntimeError:
        for lane in lanes:
            lane.end()
        return []
    return lanes


def inflate(packed: bytes | memoryview, size: int) -> bytes:
    """Raw deflate that ends by a full flush, of exactly this size; raises Problem for anything else."""
    engine = decompressobj(-15)
    try:
        data: bytes = engine.decompress(packed, size + 1)
    except error as fault:
        raise Problem(f"a chunk cannot be inflated: {fault}") from None
    is_used = not (engine.eof or engine.unconsumed_tail or engine.unused_data) and packed[-4:] == FLUSHED
    if len(data) != size or not is_used:
        raise Problem("a chunk does not inflate to what its row says")
    return data


def gunzip(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The plain bytes of a gzip file of any number of members, at most a MiB at a time. Raises Problem."""
    engine, is_whole = decompressobj(31), False
    for packed in pieces:
        while packed:
            if is_whole:
                engine, is_whole = decompressobj(31), False
            try:
                data = engine.decompress(packed, PIECE)
            except error as fault:
                raise Problem(f"it cannot be gunzipped: {fault}") from None
            is_whole = engine.eof
            packed = engine.unused_data if is_whole else engine.unconsumed_tail
            if data:
                yield data
    if not is_whole:
        raise Problem("the gzip file is cut short")


def plain(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The bytes of a tar or a tar.gz, by how it begins, made ahead in a thread."""
    first = next(pieces, b"")
    while 0 < len(first) < len(GZIP) and (more := next(pieces, b"")):
        first += more
    return gunzip(chain((first,), pieces)) if first.startswith(GZIP) else chain((first,), pieces)


def ahead(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same pieces, taken in a thread, a few ahead of their use."""
    ended = b""
    for piece in each(1 << 62, lambda _: next(pieces, ended), threads=1):
        if not piece:
            break
        yield piece


def checked(pieces: Iterator[bytes], digest: str) -> Iterator[bytes]:
    """The same pieces; raises Problem in the end unless their sha256 is this. A thread hashes them."""
    given: SimpleQueue[bytes] = SimpleQueue()
    done: SimpleQueue[bool] = SimpleQueue()
    total = sha256()

    def work() -> None:
        while piece := given.get():
            total.update(piece)
            done.put(False)
        done.put(True)

    is_alone = _is_alone(work)
    waiting = 0
    try:
        for piece in filter(None, pieces):
            given.put(piece)
            waiting += 1
            if is_alone:
                total.update(given.get())
            yield piece
            if waiting > AHEAD and not is_alone:
                done.get()
                waiting -= 1
    finally:
        given.put(b"")
        while not is_alone and not done.get():
            pass
    if total.hexdigest() != digest:
        raise Problem(f"what was unpacked has the sha256 {total.hexdigest()}, not {digest}")


def _is_alone(work: Callable[[], None]) -> bool:
    """Whether no thread could be started for this work."""
    try:
        start_new_thread(work, ())
    except RuntimeError:
        return True
    return False
