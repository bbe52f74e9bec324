"""`imagekit run` killed at any moment: what is left.

    python benchmarks/run_kills.py [--kills 200] [--seed 1]

Runs of a signed image, each of another kind (unpacked into an empty cache, found in it, ephemeral, with limits, with
kept changes), are killed by SIGKILL after a random time, some of them when the program runs already. Counted are:
programs that live on, mounts, control groups, files in /var/tmp (TMPDIR) and /dev/shm, which are of this process alone;
and what lies in the cache when the next run has ended, beside the one root. As root. Ends with 1 if anything is left.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

import run_rig  # noqa: E402

MARK = f"38271.{os.getpid()}"  # seconds that the program sleeps: by this it is known
KINDS = {"unpacked": [], "cached": [], "ephemeral": ["--ephemeral"], "limits": ["--pids", "50"], "kept": ["--persist"]}
PRIVATE = """mount --make-rprivate / && mount -t tmpfs none /var/tmp && mount -t tmpfs none /dev/shm && exec "$@" """
LONGEST = 0.4  # seconds until a kill
PATIENCE = 60.0  # seconds in which what waits for the end of others must have ended


def main() -> int:
    """Kill, count, and say."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=1)
    asked = options.parse_args()
    if "IN_PRIVATE" not in os.environ:
        words = ["unshare", "--mount", "sh", "-c", PRIVATE, "sh", sys.executable, __file__, *sys.argv[1:]]
        os.execvpe(words[0], words, {**os.environ, "IN_PRIVATE": "1", "TMPDIR": "/var/tmp"})
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        place = Path(scratch)
        image = run_rig.make_image(place / "image")
        before = traces(place)
        ran = killed(image, place, asked.kills, random.Random(asked.seed))
        deadline = time.monotonic() + PATIENCE
        while (left := traces(place) - before) and time.monotonic() < deadline:
            time.sleep(0.1)
        subprocess.run(argv(image, place, "cached", "true"), check=True, env=environment(place))
        roots = sorted(path.name for path in (place / "cache/roots").iterdir())
    print(f"{asked.kills} kills (seed {asked.seed}), {ran} of them of a program that ran already")
    print(f"left: {len(left)} {sorted(left)[:5]}; in the cache: {len(roots)} root")
    return 1 if left or len(roots) != 1 else 0


def killed(image: Path, place: Path, count: int, dice: random.Random) -> int:
    """Start and kill so many; how many had become the program."""
    ran = 0
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        if kind == "unpacked":
            shutil.rmtree(place / "cache", ignore_errors=True)
        line = argv(image, place, kind, f"echo runs; exec sleep {MARK}")
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(place)) as run:
            time.sleep(dice.random() * LONGEST)
            run.send_signal(signal.SIGKILL)
            ran += run.communicate()[0] == b"runs\n"  # ends with the last who holds the pipe
        if run.returncode != -signal.SIGKILL:
            raise SystemExit(f"{kind}: ended with {run.returncode} before it was killed")
    return ran


def argv(image: Path, place: Path, kind: str, line: str) -> list[str]:
    """A run of a kind."""
    given = [*KINDS[kind], *([place / "kept"] if kind == "kept" else [])]
    return run_rig.words(*given, image, "--", "sh", "-c", line)


def environment(place: Path) -> dict[str, str]:
    return run_rig.environment(place / "cache")


def traces(place: Path) -> set[str]:
    """What a run could leave, by name."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    files = {str(path) for folder in ("/var/tmp", "/dev/shm") for path in Path(folder).iterdir()}
    groups = {folder for folder, names, _ in os.walk("/sys/fs/cgroup") if "/imagekit-" in folder}
    return mounts | groups | {name for name in files if name != str(place)} | programs()


def programs() -> set[str]:
    """Processes of ours that live."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if MARK.encode() in words or any(MARK.encode() in word and b"imagekit" in b" ".join(words) for word in words):
            found.add(str(path.parent))
    return found


if __name__ == "__main__":
    sys.exit(main())
