"""Publications and pulls that are killed at every step: no reader ever sees a broken index, and the next try is right.

    python benchmarks/depot_kills.py [--kills 100] [--readers 3]

A publisher, or somebody who pulls, is killed by SIGKILL right before its n-th change to a file system, where n goes
through all of them: the first kill is before the first, the last before the last. Meanwhile readers with a memory read
without pause, from the directory and from a real `imagekit serve`; after each kill one without a memory does, and what
was killed is done again. A version is published, then replaced under its own name, and so on.
"""

import argparse
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from depot_rig import IMAGE_KEY, Depot, Reader, made, noise  # noqa: E402

from imagekit import artifact, site  # noqa: E402
from imagekit.artifact import Artifact  # noqa: E402

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link")
KERNEL, BEFORE, AFTER = noise(1, 200_000), noise(2, 150_000), noise(3, 150_000)


def forked(work: Callable[[], object]) -> int:
    """A process of its own that does this and ends: 0, or 1 for an error, which it prints."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """How a process ended: its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counted(work: Callable[[], object], at: int, told: Path | None = None) -> int:
    """Do this in a process that is killed before its change number `at`; how many there were goes to `told`."""

    def inside() -> None:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in CHANGES:
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        if told:
            told.write_text(str(count))

    return ended(forked(inside))


def changes(work: Callable[[], object], scratch: Path) -> int:
    """How many changes to a file system this makes; it is done."""
    told = scratch / "count"
    if code := counted(work, 0, told):
        raise SystemExit(f"it failed with {code} although nobody killed it")
    return int(told.read_text()) - 1  # the last one was telling


class Kills:
    """A depot, its server, and what has been published."""

    def __init__(self, scratch: Path, address: str) -> None:
        self.scratch, self.depot = scratch, Depot(scratch)
        self.places = (str(self.depot.place), address)
        self.number, self.bad, self.reads = 0, 0, 0
        self.publish(self.next())

    def next(self) -> Artifact:
        """The next image: a new version, then other bytes for it, and so on."""
        self.number += 1
        initrd = BEFORE + noise(self.number + 10, 60_000) + AFTER
        folder = self.scratch / "made" / str(self.number)
        return made(folder, version=str(self.number // 2), parts={"kernel": KERNEL, "initrd": initrd})

    def publish(self, made: Artifact) -> None:
        """Publish, over whatever was there."""
        self.depot.publish(made, replace=True)

    def reader(self, place: int, name: str) -> Reader:
        """A reader of the directory (0) or of the server (1); its memory has that name."""
        return Reader(site.at(self.places[place]), self.scratch / "readers" / name)

    def check(self, reader: Reader, made: Artifact | None = None) -> None:
        """Read the newest image as anybody does, and compare it with what was published."""
        reader.trusts(self.depot.root)
        pulled = reader.pull().artifact
        pulled.verify(IMAGE_KEY)
        if made and pulled.digest != made.digest:
            raise SystemExit(f"{pulled.path} is not what was published last")
        self.reads += 1

    def judged(self, what: str, check: Callable[[], object]) -> None:
        """Count what is broken, and say so."""
        try:
            check()
        except (Exception, SystemExit) as error:
            self.bad += 1
            print(f"{what}: {type(error).__name__}: {error}", flush=True)

    def kill_publisher(self, at: int) -> int:
        """Kill one publication, read, and publish again; how the killed one ended."""
        made = self.next()
        code = counted(lambda: self.publish(made), at)
        fresh = self.reader(self.number % 2, f"after-{self.number}")
        self.judged(f"a reader after kill {at} of a publication", lambda: self.check(fresh))
        self.judged("publishing again", lambda: self.publish(made))
        self.judged("reading what was published again", lambda: self.check(fresh, made))
        return code

    def kill_puller(self, at: int) -> int:
        """Publish, kill one pull, look at what it left, and pull again; how the killed one ended."""
        made = self.next()
        self.publish(made)
        one = self.reader(self.number % 2, f"puller-{self.number % 2}")
        code = counted(lambda: self.check(one, made), at)
        self.judged(f"what kill {at} of a pull left", lambda: look_through(one))
        self.judged("pulling again", lambda: self.check(one, made))
        self.judged("what the pull after it left", lambda: tidy(one))
        return code


def look_through(reader: Reader) -> None:
    """Every artifact that has its signature is whole, and every object of the cache is what its name says."""
    for signature in reader.out.glob("*.minisig"):
        artifact.load(signature.with_suffix("")).verify(IMAGE_KEY)
    for path in (reader.folder / "store/objects").rglob("*"):
        if path.is_file() and sha256(path.read_bytes()).hexdigest() != path.name:
            raise SystemExit(f"{path} is not what its name says")


def tidy(reader: Reader) -> None:
    """Nothing of the killed pull is left in the folder."""
    if left := [path.name for path in reader.out.iterdir() if path.name.startswith(".")]:
        raise SystemExit(f"{', '.join(left)} is left")


def read_on(kills: Kills, number: int, over: Path) -> None:
    """Read until it is over, always with the same memory; tell how often, and how often it was broken."""
    reader, broken = kills.reader(number % 2, f"always-{number}"), 0
    kills.reads, parent = 0, os.getppid()
    while not over.exists() and os.getppid() == parent:
        before = kills.bad
        kills.judged(f"reader {number}", lambda: kills.check(reader))
        broken += kills.bad - before
    over.with_name(f"over-{number}").write_text(f"{kills.reads} {broken}")


@contextmanager
def reading(kills: Kills, count: int) -> Iterator[None]:
    """So many readers beside the block; what they saw is added to what the block did."""
    over = kills.scratch / "over"
    pids = [forked(lambda number=number: read_on(kills, number, over)) for number in range(count)]  # type: ignore[misc]
    try:
        yield
    finally:
        over.touch()
        codes = [ended(pid) for pid in pids]
        for number, code in enumerate(codes):
            reads, broken = map(int, over.with_name(f"over-{number}").read_text().split()) if code == 0 else (0, 1)
            kills.reads, kills.bad = kills.reads + reads, kills.bad + broken + (reads == 0)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of `imagekit serve` for a folder."""
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "imagekit.cli", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=PROJECT) as process:
        assert process.stdout
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def moments(count: int, of: int) -> list[int]:
    """So many numbers from 1 to `of`, evenly: each at least once if there are enough."""
    return [1 + number * (of - 1) // max(1, count - 1) for number in range(count)]


def killed(one: Callable[[int], int], at: int) -> int:
    """Kill one at this change, or at an earlier one if it came to its end with fewer changes: blobs differ."""
    while (code := one(at)) == 0 and at > 1:
        at -= 1
    return code


def kill(count: int, readers: int) -> int:
    """Kill so many publications and so many pulls; how much was broken."""
    with TemporaryDirectory(prefix="kills-") as name, serving(Path(name) / "depot") as address:
        kills = Kills(Path(name), address)
        of_publisher = changes(lambda: kills.publish(kills.next()), kills.scratch)
        kills.number += 1  # that was in the other process
        of_puller = min(_of_a_pull(kills, place) for place in (0, 1))
        with reading(kills, readers):
            published = [killed(kills.kill_publisher, at) for at in moments(count, of_publisher)]
            pulled = [killed(kills.kill_puller, at) for at in moments(count, of_puller)]
        for what, codes, of in (("publications", published, of_publisher), ("pulls", pulled, of_puller)):
            died = codes.count(-signal.SIGKILL)
            print(f"{died} of {count} {what} killed, at {len(set(moments(count, of)))} of their {of} changes")
            kills.bad += count - died
        print(f"{kills.reads} reads while and after, {kills.bad} broken", flush=True)
        return kills.bad


def _of_a_pull(kills: Kills, place: int) -> int:
    """The changes of a pull by somebody who has pulled before: the fewest that one makes."""
    one = kills.reader(place, f"puller-{place}")
    kills.check(one)
    kills.publish(made := kills.next())
    return changes(lambda: kills.check(one, made), kills.scratch)


def main() -> int:
    """Kill, print, and end with 1 if anything was broken."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--kills", type=int, default=100, metavar="N", help="of publications, and of pulls as many")
    asked.add_argument("--readers", type=int, default=3, metavar="N", help="at the same time")
    options = asked.parse_args()
    return int(bool(kill(options.kills, options.readers)))


if __name__ == "__main__":
    sys.exit(main())
