"""What another processor does meanwhile: the same digest, and errors where the result is asked for."""

import signal
import threading
import time
from concurrent.futures import Future
from hashlib import sha256

import pytest

from imagekit import beside


@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (1, 2, 3), (beside.LARGE,), (5, beside.LARGE, 7), (1 << 20,) * 9, (beside.LARGE - 1, 2, 1 << 20)],
)
def test_the_sum_is_that_of_all_chunks_in_order(sizes):
    chunks = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    with beside.summed() as total:
        for chunk in chunks:
            total.update(chunk)
        assert total.hexdigest() == sha256(b"".join(chunks)).hexdigest()
    assert not _named("sha256")


@pytest.mark.parametrize("size", [1, 4000, beside.SMALL - 1, beside.SMALL, 1 << 20])
def test_what_is_small_comes_joined(size):
    chunks = [bytes([n]) * size for n in range(100)]
    found = list(beside.gathered([memoryview(chunks[0]), *chunks[1:], b""]))
    assert b"".join(found) == b"".join(chunks)
    assert all(size >= beside.SMALL or len(one) >= beside.ENOUGH for one in found[:-1])


def test_the_thread_ends_with_a_writer_that_fails():
    with pytest.raises(OSError, match="no room"), beside.summed() as total:  # noqa: PT012 - fed as by a writer
        for _ in range(20):
            total.update(bytes(beside.LARGE))
        raise OSError("no room")
    assert not _named("sha256")


def test_a_result_is_waited_for():
    go = threading.Event()
    result = beside.started(lambda: go.wait(10) and "done")
    go.set()
    assert result() == "done"
    assert result() == "done"


def test_what_fails_beside_is_raised_where_it_is_asked_for():
    result = beside.started(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        result()


def _named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_a_wait_ends_with_all_or_with_the_first_that_fails():
    never: Future[int] = Future()
    fine, failed = Future(), Future()
    fine.set_result(1)
    failed.set_exception(OSError("no room"))
    assert beside.until_one_fails([fine]) == {fine}
    assert beside.until_one_fails([never, failed, fine]) == {failed, fine}


def test_ctrl_c_is_heard_in_a_wait_that_it_did_not_wake():
    told: list[bool] = []

    def interrupt():  # taken by this thread, as when it comes just before the main thread falls asleep
        time.sleep(0.2)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        time.sleep(5 * beside.LOOK)
        told.append(True)
        waited_for.set_result(0)

    waited_for: Future[int] = Future()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            beside.until_one_fails([waited_for])
        assert not told
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
