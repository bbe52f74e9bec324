"""What a format costs when one file has changed: time against writing and hashing its output once, and memory.

python benchmarks/formats.py [--rounds 5] [--format FORMAT ...] [DEFINITION]

A definition that offers many formats is built in a warm cache, each time with another content of one file. Rows are
ratios to a floor of the same run, a Python that writes a file of the size of the output to the same disk and hashes it;
in wall seconds, and in processor seconds, which a busy machine disturbs less.
At the end all formats together, as one command, and the most memory that any build took.
"""

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
KEY = str(PROJECT / "fixtures" / "keys" / "test.key")
FLOOR = """
import hashlib, os, sys
size, out, total = int(sys.argv[1]), sys.argv[2], hashlib.sha256()
block = os.urandom(1 << 20)
with open(out, "wb") as file:
    while size:
        step = min(size, len(block))
        file.write(block[:step])
        total.update(block[:step])
        size -= step
"""
LIMITS = {"raw_efi": 3.0, **dict.fromkeys(("qcow2_efi", "qcow2_bios", "vhd", "vhd_dynamic", "vhdx", "vmdk"), 5.0)}
TOGETHER_SECONDS, MEMORY_FLOOR, MEMORY_RATIO = 30.0, 512 << 20, 1.5


class Ran(NamedTuple):
    """A process as it ended: wall and processor seconds, and the most memory that it or one of its children had."""

    seconds: float
    cpu: float
    peak: int  # bytes


def ran(argv: list[str]) -> Ran:
    """Run a process to its end, in a child of its own, so that the memory is its alone."""
    reader, writer = os.pipe()
    started = time.perf_counter()
    child = os.fork()
    if not child:
        usual = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}  # as for a user
        done = subprocess.run(argv, capture_output=True, check=False, text=True, env=usual)
        seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        told = [seconds, used.ru_utime + used.ru_stime, used.ru_maxrss << 10, done.returncode, done.stderr[-1500:]]
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        seconds, cpu, peak, code, said = json.loads(answer.read())
    os.waitpid(child, 0)
    if code:
        raise SystemExit(f"{' '.join(argv)} ended with {code}\n{said}")
    return Ran(seconds, cpu, peak)


class Bench:
    """A copy of the definition in which one file's content changes."""

    def __init__(self, definition: Path, scratch: Path, *, root: str, pad: int = 0) -> None:
        shutil.copytree(definition.parent, scratch / "images", ignore=shutil.ignore_patterns("__pycache__"))
        self.definition, self.out, self.scratch = scratch / "images" / definition.name, scratch / "out", scratch
        text = self.definition.read_text()
        if pad:
            (scratch / "images" / "pad").write_bytes(os.urandom(pad << 20))
            text = text.replace("import Image,", "import File, Image,").replace(
                'files={"', 'files={"/srv/pad": File("pad"), "', 1)  # fmt: skip
        self._text, self._turn = re.sub(r'Layout\(root="\w+"\)', f'Layout(root="{root}")', text), 0
        self._definitions: set[str] = set()
        if "written in every format" not in self._text:
            raise SystemExit(f"{definition} has no text 'written in every format' to change")

    def build(self, *formats: str) -> Ran:
        """A build after the file has changed."""
        self._turn += 1
        self.definition.write_text(self._text.replace("written in every format", f"written {os.getpid()} {self._turn}"))
        argv = [sys.executable, "-m", "imagekit.cli", "build", str(self.definition), "--arch", "x86_64"]
        argv += ["--key", KEY, "-o", str(self.out), *(word for name in formats for word in ("--format", name))]
        done = ran(argv)
        for path in self.out.glob("*.manifest.json"):
            self._definitions.add(json.loads(path.read_text())["definition"])
        return done

    def forget(self) -> None:
        """Take out of the cache what the builds left there: every turn's artifact is one of its own."""
        sys.path.insert(0, str(PROJECT))
        from imagekit.stores.directory import open_store

        store = open_store()
        for folder in store.folder("artifacts").iterdir():
            for path in folder.glob("*.manifest.json"):
                manifest = json.loads(path.read_text())
                if manifest["definition"] in self._definitions:
                    shutil.rmtree(folder)
                    for part in manifest["parts"]:
                        kept = store.path(part["sha256"])
                        if part["role"] != "kernel" and kept.exists() and kept.stat().st_nlink == 1:
                            kept.unlink()

    def size(self, format: str) -> int:
        """Bytes of all parts of what was written last."""
        [manifest] = self.out.glob(f"*_x86_64.{format}.manifest.json")
        return sum(part["size"] for part in json.loads(manifest.read_text())["parts"])

    def floor(self, size: int) -> Ran:
        """A bare Python that writes and hashes so much."""
        return ran([sys.executable, "-c", FLOOR, str(size), str(self.scratch / "floor")])


def offered(definition: Path) -> list[str]:
    """The formats that the definition offers for x86_64."""
    ask = ("import sys; from pathlib import Path; from imagekit import definition, plugs;"
           "image = definition.load(Path(sys.argv[1]));"
           "print(*(f for f in image.formats if 'x86_64' in plugs.load('formats', f).arches))")  # fmt: skip
    told = subprocess.run([sys.executable, "-c", ask, str(definition)], capture_output=True, text=True, check=True)
    return told.stdout.split()


def row(bench: Bench, name: str, rounds: int) -> tuple[str, bool]:
    """A line for a format, and whether it is within its limits."""
    bench.build(name)
    size = bench.size(name)
    pairs = [(bench.build(name), bench.floor(size)) for _ in range(rounds)]
    wall, cpu = (statistics.median(getattr(a, of) / getattr(b, of) for a, b in pairs) for of in ("seconds", "cpu"))
    own, floor = (statistics.median(pair[n].seconds for pair in pairs) * 1000 for n in (0, 1))
    memory, limit = max(built.peak for built, _ in pairs), LIMITS.get(name)
    verdict = f" (of {limit:g}, {'within' if wall <= limit else 'OVER'})" if limit else ""
    line = (
        f"{name}: {wall:.2f}{verdict}, by processor time {cpu:.2f}; median {own:.0f} ms against {floor:.0f} ms; "
        f"{size / 1e6:.1f} MB, peak memory {memory / 1e6:.0f} MB"
    )
    return line, wall <= (limit or wall) and memory <= max(MEMORY_RATIO * size, MEMORY_FLOOR)


def together(bench: Bench, formats: list[str], rounds: int) -> tuple[str, bool]:
    """All formats in one command."""
    runs = [bench.build(*formats) for _ in range(rounds)]
    seconds, peak = statistics.median(run.seconds for run in runs), max(run.peak for run in runs)
    sizes = [bench.size(name) for name in formats]
    limit = max(MEMORY_RATIO * max(sizes), MEMORY_FLOOR)
    floor = statistics.median(bench.floor(sum(sizes)).seconds for _ in range(rounds))
    line = (
        f"{len(formats)} formats together: {seconds:.1f} s (of {TOGETHER_SECONDS:g}) on {os.cpu_count()} processors, "
        f"{seconds / floor:.1f} of the floor, {sum(sizes) / 1e6:.0f} MB; "
        f"peak {peak / 1e6:.0f} MB (of {limit / 1e6:.0f})"
    )
    return line, seconds <= TOGETHER_SECONDS and peak <= limit


def main() -> int:
    """Measure, print, and end with 1 when something is over its limit."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("definition", type=Path, nargs="?", default=PROJECT / "images" / "formats.py")
    asked.add_argument("--rounds", type=int, default=5)
    asked.add_argument("--format", action="append", default=[])
    asked.add_argument("--root", default="initrd", help="of disks; on one of its own, a tool writes all of it again")
    asked.add_argument(
        "--pad", type=int, default=0, metavar="MIB", help="put a file of so many random MiB into the image"
    )
    options = asked.parse_args()
    formats, good = options.format or offered(options.definition), True
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options.definition.resolve(), Path(name), root=options.root, pad=options.pad)
        try:
            bench.build(*formats)
            for line, is_within in (row(bench, format, options.rounds) for format in formats):
                print(line, flush=True)
                good &= is_within
            line, is_within = together(bench, formats, options.rounds)
            print(line)
        finally:
            bench.forget()
    return int(not (good and is_within))


if __name__ == "__main__":
    sys.exit(main())
