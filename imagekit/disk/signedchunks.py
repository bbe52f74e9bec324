"""The payload of a signed image file, piece by piece in order: each verified before its first byte is used.

Reading, hashing and unpacking let other threads run, so two processors are used where there are two.
"""

import os
import threading

from imagekit.disk import signedfile
from imagekit.errors import Problem

TYPE_CHECKING = False  # typing's own takes long to load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from imagekit.disk.signedfile import Signed

AHEAD = 2  # chunks that a thread may be ahead of who takes them


def pieces(handle: int, signed: "Signed", *, threads: int = 0) -> "Iterator[bytes]":
    """The tar, or the file system, uncompressed; raises Problem at the first chunk that is not the one signed.

    threads: 0 for as many as there are processors.
    """

    def make(number: int) -> bytes:
        return signedfile.unpacked(signedfile.chunk(handle, signed, number), signed, number)

    yield from made(make, len(signed.chunks), threads=threads)


def made(make: "Callable[[int], bytes]", count: int, *, threads: int = 0) -> "Iterator[bytes]":
    """What `make` gives for 0, 1, 2, ..., in order, by threads that end with the iteration."""
    threads = min(threads or len(os.sched_getaffinity(0)), count)
    if threads < 2:
        yield from map(make, range(count))
        return
    ready: dict[int, bytes | BaseException] = {}
    state = {"next": 0, "taken": 0}
    changed = threading.Condition()

    def work() -> None:
        while True:
            with changed:
                changed.wait_for(lambda: state["next"] < min(state["taken"] + AHEAD * threads, count) or _is_over())
                if _is_over():
                    return
                number = state["next"]
                state["next"] += 1
            try:
                done: bytes | BaseException = make(number)
            except BaseException as error:  # raised where the pieces are taken
                done = error
            with changed:
                ready[number] = done
                changed.notify_all()

    def _is_over() -> bool:
        return state["next"] >= count

    running = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for one in running:
        one.start()
    try:
        for number in range(count):
            with changed:
                changed.wait_for(lambda number=number: number in ready)  # type: ignore[misc]
                done = ready.pop(number)
                state["taken"] = number + 1
                changed.notify_all()
            if isinstance(done, BaseException):
                raise done
            yield done
    finally:
        with changed:
            state["next"] = count
            changed.notify_all()
        for one in running:
            one.join()


def check(handle: int, signed: "Signed") -> None:
    """Verify every byte, and what is said of the whole: its sha256, and the CRC-32 that gzip programs look at."""
    import zlib
    from hashlib import sha256

    total, crc = sha256(), 0
    for piece in pieces(handle, signed):
        total.update(piece)
        crc = zlib.crc32(piece, crc)
    if total.hexdigest() != signed.said.content:
        raise Problem("its payload has not the sha256 that its manifest names: whoever signed it made a mistake")
    if signed.said.payload == "erofs":
        return
    last = signedfile.chunk(handle, signed, len(signed.chunks) - 1)
    if last[-8:-4] != crc.to_bytes(4, "little"):
        raise Problem("its CRC-32 is wrong: gzip would refuse it")
