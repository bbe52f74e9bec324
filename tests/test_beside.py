"""What another processor does meanwhile: the same digest, and errors where the result is asked for."""

import threading
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
