"""What the pytest plugin costs: collecting the example images, and running a test; against plain pytest.

python benchmarks/plugin.py [--rounds 9]
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from pairs import Ratio, alternate, timed

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
TESTS = 1000
COLLECT_SECONDS, OVERHEAD_MS = 1.0, 5.0  # what was promised
IMAGE = f"""
import pytest
from imagekit import Image

image = Image("toy", formats=("paper",), arches=("x86_64", "aarch64"))

@pytest.mark.parametrize("n", range({TESTS // 2}))
def test(guest, n): assert guest
"""
PLAIN = f"""
import pytest

@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def arch(request): return request.param

@pytest.fixture(scope="module")
def guest(arch): yield arch

@pytest.mark.parametrize("n", range({TESTS // 2}))
def test(guest, n): assert guest
"""


def collecting(scratch: Path, rounds: int) -> Ratio:
    """Collecting images/, against collecting one test without the plugin."""
    (scratch / "test_one.py").write_text("def test(): pass\n")
    return alternate(
        "collecting images/, against pytest's own start",
        lambda: timed([*PYTEST, "--collect-only", "images"], cwd=str(PROJECT)),
        lambda: timed([*PYTEST, "--collect-only", "-p", "no:imagekit", "test_one.py"], cwd=str(scratch)),
        rounds=rounds,
        limit=4,
    )


def running(scratch: Path, rounds: int) -> Ratio:
    """Tests of a toy guest, against as many tests of a fixture of the same kind without the plugin."""
    sys.path.insert(0, str(PROJECT / "tests"))
    import toys

    (scratch / "conftest.py").write_text(toys.CONFTEST)
    (scratch / "image.py").write_text(IMAGE)
    (scratch / "plain").mkdir()
    (scratch / "plain" / "test_plain.py").write_text(PLAIN)
    env = {
        "IMAGEKIT_CACHE": str(scratch / "cache"),
        "IMAGEKIT_KEY": str(PROJECT / "fixtures" / "keys" / "test.key"),
        "OUTSIDE_LOG": str(scratch / "log"),
        "PYTHONPATH": str(toys.OUTSIDE),
    }
    return alternate(
        f"{TESTS} tests of an image, against {TESTS} plain tests",
        lambda: timed([*PYTEST, "image.py"], cwd=str(scratch), env=env),
        lambda: timed([*PYTEST, "-p", "no:imagekit", "--noconftest", "plain"], cwd=str(scratch)),
        rounds=rounds,
        limit=4,
    )


def main() -> int:
    """Measure, print, and end with 1 when a promise is broken."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=9)
    rounds = asked.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        collect, run = collecting(Path(name), rounds), running(Path(name), rounds)
    print(f"{collect.line()}\n{run.line()}")
    seconds = statistics.median(collect.seconds)
    pairs = zip(run.seconds, run.floor_seconds, strict=True)
    overhead = statistics.median((own - floor) * 1000 / TESTS for own, floor in pairs)
    print(f"collecting: {seconds:.2f} s (of {COLLECT_SECONDS:g})")
    print(f"overhead of a test: {overhead:.2f} ms (of {OVERHEAD_MS:g})")
    kept = collect.median <= collect.limit and run.median <= run.limit
    return int(not kept or seconds > COLLECT_SECONDS or overhead > OVERHEAD_MS)


if __name__ == "__main__":
    sys.exit(main())
