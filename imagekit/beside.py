"""Beside: what another processor does meanwhile.

Reading, hashing and writing a large chunk let go of Python's lock, so that two of them cost the longer one, not both.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
Buffer = bytes | memoryview

SMALL = 1 << 16  # bytes of a chunk that is not joined with others
LARGE = ENOUGH = 1 << 18  # bytes of a chunk that is worth telling another thread of; of joined ones together
AHEAD = 4  # chunks that may wait, which bounds the memory
LOOK = 1.0  # seconds after which a wait looks whether Ctrl-C was pressed in the moment before it fell asleep


class Sum:
    """A sha256 that is fed chunk by chunk; its value is asked for once, at the end."""

    def __init__(self) -> None:
        self._total = sha256()
        self._chunks: Any = None
        self._thread: Any = None

    def update(self, chunk: Buffer) -> None:
        """Take in a chunk, which nobody may change afterwards."""
        if self._thread is None and len(chunk) < LARGE:
            self._total.update(chunk)
            return
        if self._thread is None:
            self._start()
        self._chunks.put(chunk)

    def hexdigest(self) -> str:
        """The digest of all chunks, in order."""
        self.end()
        return str(self._total.hexdigest())

    def end(self) -> None:
        """Wait for what is still being hashed; nothing can be fed after it."""
        if self._thread is not None:
            self._chunks.put(None)
            self._thread.join()
            self._thread = None

    def _start(self) -> None:
        from queue import Queue  # here: what writes nothing large has no use for either
        from threading import Thread

        self._chunks = Queue(AHEAD)
        self._thread = Thread(target=self._hash, name="sha256", daemon=True)
        self._thread.start()

    def _hash(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._total.update(chunk)


def gathered(chunks: Iterable[Buffer]) -> Iterator[Buffer]:
    """The same bytes in fewer chunks: what is small comes joined, and what is not comes as it is.

    Each chunk costs its hash and its writing a call, and between two threads a turn.
    """
    few, size = list[Buffer](), 0
    for chunk in chunks:
        if len(chunk) < SMALL:
            few.append(chunk)
            size += len(chunk)
        if few and (size >= ENOUGH or len(chunk) >= SMALL):
            yield b"".join(few)
            few, size = [], 0
        if len(chunk) >= SMALL:
            yield chunk
    if few:
        yield b"".join(few)


@contextmanager
def summed() -> Iterator[Sum]:
    """A Sum whose thread has ended when the block has, however it ends."""
    found = Sum()
    try:
        yield found
    finally:
        found.end()


def started(make: Callable[[], T]) -> Callable[[], T]:
    """Begin a call in a thread; what it gives back waits for the result, or raises what the call did."""
    from threading import Thread

    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(make())
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run, name="beside", daemon=True)
    thread.start()

    def result() -> T:
        thread.join()
        if failed:
            raise failed[0]
        return done[0]

    return result


def until_one_fails(futures: "Collection[Future[T]]") -> "set[Future[T]]":
    """Wait for all futures, or for the first that failed; which are done by then.

    Not in one sleep: CPython does not notice a signal that comes between its last look and a sleep on a lock, so that
    Ctrl-C would be heard only when the wait is over.
    """
    from concurrent.futures import FIRST_EXCEPTION, wait

    while True:
        done, waiting = wait(futures, timeout=LOOK, return_when=FIRST_EXCEPTION)
        if not waiting or any(future.cancelled() or future.exception() for future in done):
            return done
