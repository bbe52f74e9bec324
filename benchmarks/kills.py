"""Test runs that are killed at random moments: afterwards nothing runs, no lock is held, nothing is mounted or left.

    python benchmarks/kills.py --kills 200 [--seed N]

Each run boots, restores and enters real machines, with and without -n 2; pytest gets SIGINT, SIGTERM or SIGKILL, or a
worker of xdist gets SIGKILL. In between a run that nobody kills must be green. The seed is printed and repeats a run.
"""

import argparse
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from imagekit import inuse
from imagekit.stores.directory import open_store

PROJECT = Path(__file__).resolve().parent.parent
LONGEST, GONE = 9.0, 20.0  # seconds until a kill at most, and for the kernel to bury what was killed
STALE = [("failures",), ("disks",), ("rebuilt",), ("drafts",), ("roots",)]  # of the cache: what no run begins with
BETWEEN = 25  # kills between two runs that nobody kills
TESTS = """

def test_guest(guest): assert guest.run("true").code == 0
def test_fresh(fresh): assert fresh.run("true").code == 0
def test_again(fresh): fresh.power.cut()
def test_boot(boot): boot(memory=300)
def test_tar(artifact): assert artifact.size
"""


class Rig:
    """A project of its own, with a cache that nobody else uses, and a name by which its processes are found."""

    def __init__(self, scratch: Path) -> None:
        self.cache, self.tmp, self.home = (scratch / name for name in ("cache", "tmp", "project"))
        for folder in (self.tmp, self.home):
            folder.mkdir()
        _link(Path(open_store().location), self.cache)
        shell = PROJECT / "images/shell.py"
        (self.home / "shell.py").write_text(shell.read_text().partition("\ndef test_")[0] + TESTS)
        shutil.copy(shell.with_suffix(".lock"), self.home)
        self.files = self._listed()

    def start(self, *options: str) -> "subprocess.Popen[bytes]":
        """pytest, in a session of its own."""
        env = {**os.environ, "TMPDIR": str(self.tmp), "IMAGEKIT_CACHE": str(self.cache), "PYTHONDONTWRITEBYTECODE": "1",
               "IMAGEKIT_KEY": str(PROJECT / "fixtures/keys/test.key")}  # fmt: skip
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--arch",
            "aarch64",
            *options,
            "shell.py",
        ]
        return subprocess.Popen(argv, cwd=self.home, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip

    def living(self) -> Iterator[int]:
        """Every process of a run: all that it starts, QEMU too, has its TMPDIR."""
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdecimal() and f"TMPDIR={self.tmp}".encode() in (entry / "environ").read_bytes():
                    yield int(entry.name)

    def workers(self) -> list[int]:
        """The workers of xdist."""
        return [pid for pid in self.living() if _has(pid, b"PYTEST_XDIST_WORKER=") and _is_python(pid)]

    def left(self) -> list[str]:
        """What a run that has ended left behind, in words."""
        until = time.monotonic() + GONE
        while (pids := list(self.living())) and time.monotonic() < until:
            time.sleep(0.05)
        found = [f"process {pid} lives: {_words(pid)}" for pid in pids]
        found += [f"{lock} is held" for lock in self.cache.rglob("*.lock") if not _is_free(lock)]
        found += ["a mount was left"] if str(self.tmp.parent) in Path("/proc/self/mountinfo").read_text() else []
        found += [f"{path} was left" for path in self.tmp.iterdir() if not path.name.startswith("pytest-of-")]
        found += [f"{path} was left" for path in (self.cache / "disks").glob("*")]
        return found + (["the project's folder changed"] if self._listed() != self.files else [])

    def _listed(self) -> list[str]:
        return sorted(str(path) for path in self.home.rglob("*"))


def _link(cache: Path, into: Path) -> None:
    """The cache by links, for what it holds is never changed; without locks, and what others remove meanwhile."""
    for folder, folders, names in os.walk(cache):
        place = into / Path(folder).relative_to(cache)
        if place.parts[len(into.parts) : len(into.parts) + 1] in STALE:
            continue
        place.mkdir(mode=0o700)
        for name in (*names, *(name for name in folders if Path(folder, name).is_symlink())):
            with suppress(FileNotFoundError):
                if name != inuse.NAME and not name.endswith(".lock"):
                    os.link(f"{folder}/{name}", place / name, follow_symlinks=False)


def _has(pid: int, variable: bytes) -> bool:
    with suppress(OSError):
        return variable in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def _is_python(pid: int) -> bool:
    return b"execnet" in _words(pid).encode() or "-c" in _words(pid).split()


def _words(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return "(gone)"


def _is_free(lock: Path) -> bool:
    with open(lock, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def kill_one(rig: Rig, choices: random.Random) -> tuple[str, list[str]]:
    """One run that is killed: (how, what was left)."""
    options = choices.choice([(), ("-n", "2")])
    how = choices.choice(["SIGINT", "SIGTERM", "SIGKILL", *(["worker"] * bool(options))])
    process = rig.start(*options)
    assert process.stdout
    try:
        time.sleep(choices.uniform(0.05, LONGEST))
        with suppress(ProcessLookupError):
            if how != "worker":
                process.send_signal(signal.Signals[how])
            elif workers := rig.workers():
                os.kill(choices.choice(workers), signal.SIGKILL)
        process.communicate(timeout=180)
    finally:
        if process.poll() is None:
            process.kill()
    return f"{how}{' -n 2' if options else ''}", rig.left()


def kills(count: int, seed: int) -> int:
    """Kill so many runs; the number of those that left something, or that were not green when nobody killed them."""
    choices, ends, bad = random.Random(seed), Counter[str](), 0
    with tempfile.TemporaryDirectory(dir=Path(open_store().location).parent) as name:
        rig = Rig(Path(name))
        for number in range(count):
            how, left = kill_one(rig, choices)
            ends[how] += 1
            bad += bool(left)
            if left:
                print(f"kill {number} by {how}: {'; '.join(left)}", flush=True)
            if number % BETWEEN == BETWEEN - 1 or number == count - 1:
                said, _ = (process := rig.start("-n", "2")).communicate(timeout=300)
                bad += bool(process.returncode or rig.left())
                print(f"{number + 1} kills, {bad} bad; a whole run ended with {process.returncode}", flush=True)
                if process.returncode:
                    print(said.decode(errors="replace")[-3000:], flush=True)
    print(f"{count} runs killed, {bad} left something or broke the next: {dict(ends)}", flush=True)
    return bad


def main() -> int:
    """Kill, print, and end with 1 when anything was left."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--kills", type=int, default=200, metavar="N")
    asked.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options = asked.parse_args()
    print(f"seed {options.seed}", flush=True)
    return int(bool(kills(options.kills, options.seed)))


if __name__ == "__main__":
    sys.exit(main())
