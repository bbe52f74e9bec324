"""A short run of the benchmark that kills publications and pulls at every step; the long one takes some minutes."""

import re
import subprocess
import sys
from pathlib import Path

KILLS = Path(__file__).parent.parent / "benchmarks/depot_kills.py"


def test_no_reader_sees_a_broken_index_and_the_next_try_is_right() -> None:
    words = [sys.executable, KILLS, "--kills", "12", "--readers", "2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    for what in ("publications", "pulls"):
        assert f"12 of 12 {what} killed, at 12 of their" in done.stdout
    reads = re.search(r"(\d+) reads while and after, 0 broken", done.stdout)
    assert reads, done.stdout
    assert int(reads[1]) > 12 * 4  # the readers read too
