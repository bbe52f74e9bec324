"""A short run of the benchmark that kills test runs at random moments; the long one takes half an hour."""

import subprocess
import sys
from pathlib import Path

KILLS = Path(__file__).parent.parent / "benchmarks/kills.py"


def test_a_killed_run_leaves_nothing_and_the_next_is_green() -> None:
    done = subprocess.run([sys.executable, KILLS, "--kills", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # the seed stands there
    assert "2 runs killed, 0 left something" in done.stdout
