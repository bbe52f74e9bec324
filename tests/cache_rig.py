"""A cache to test with: a folder that is this process's, and what lies in it."""

import time
from pathlib import Path

from imagekit import inuse


def names(root: Path) -> set[str]:
    """Every file, as a path below the cache."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()} - {inuse.NAME}


def later() -> None:
    """Wait until a change has another ctime than one of now: it has the grain of the kernel's tick."""
    time.sleep(0.02)
