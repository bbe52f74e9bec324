"""What the launcher of a bundle takes until a program has run, against the least that it can take, and others' ways.

    python benchmarks/bundle.py [--rounds 100] [--megabytes 58] [--peers FOLDER] [--only WORD]

As root; how it measures, and what the peers are, is told in run.py. The floor is a C program that does the system calls
that entering a folder takes, and nothing else: it verifies nothing, and what its program writes stays in the folder. It
is linked with musl, as the launcher is: glibc's start would take three times as long.
Bounds are of the least wall clock time: what the kernel does for a mount is not all counted as ours.

    small    a static program alone: from the cache, read-only as the floor's memory file systems leave it, below an
             overlay, and unpacked into memory
    large    a root of so many megabytes: from the cache, mounted as an EROFS, unpacked into memory, and
             unpacked by others
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import run
from run import KEY, PROJECT, Row

from imagekit import bundle, key

FLOOR = "C: the system calls alone"
MEMORY = "env IMAGEKIT_CACHE= bundle, into memory"


def musl(source: str, out: Path) -> Path:
    """A static program out of C, by the compiler that makes the launchers."""
    code = out.with_suffix(".c")
    code.write_text(source)
    target = f"{os.uname().machine}-linux-musl"
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-Os", "-static", "-s"]
    subprocess.run([*zig, "-o", str(out), str(code)], check=True)
    return out


def app(image: Path, name: str, *, read_only: bool = False) -> Path:
    """The bundle of a signed image."""
    made = image.with_name(name)
    bundle.bundle(image, made, keys=[key.read(KEY)], read_only=read_only)
    return made


def in_memory(program: Path) -> list[str]:
    return ["env", "IMAGEKIT_CACHE=", str(program)]


def small(place: Path, _: int) -> Iterator[Row]:
    """A static program, alone."""
    root = place / "root"
    for name in run.FOLDERS:
        (root / name).mkdir(parents=True)
    (root / "etc/os-release").write_text("ID=small\n")
    musl(run.PAYLOAD, root / "payload")
    floor = musl((PROJECT / "benchmarks/floor_run.c").read_text(), place / "floor")
    image = run.signed(run.packed(root, place), place / "image.tar.gz")
    yield Row(FLOOR, [str(floor), str(root), "/payload"])
    yield Row("bundle --read-only, cached", [str(app(image, "fixed", read_only=True))], 1.3, FLOOR)
    yield Row("bundle, cached", [str(app(image, "app"))], 2.0, FLOOR)
    yield Row(MEMORY, in_memory(image.with_name("app")), than=FLOOR)
    yield from run.peers(place, root)


def large(place: Path, megabytes: int) -> Iterator[Row]:
    """Files of this machine's /usr, and the static program."""
    root = place / "root"
    run.gathered(root, megabytes << 20)
    musl(run.PAYLOAD, root / "payload")
    plain = run.packed(root, place)
    image, mounted = (
        run.signed(plain, place / "image.tar.gz"),
        run.signed(run.erofs(plain, place), place / "image.erofs"),
    )
    floor = musl((PROJECT / "benchmarks/floor_run.c").read_text(), place / "floor")
    yield Row(FLOOR, [str(floor), str(root), "/payload"])
    yield Row("bundle, cached", [str(app(image, "app"))], 2.0, FLOOR)
    yield Row("bundle --read-only, cached", [str(app(image, "fixed", read_only=True))], 2.0, FLOOR)
    yield Row("bundle of an EROFS, mounted", [str(app(mounted, "mounted"))], 3.0, FLOOR)
    yield Row(MEMORY, in_memory(image.with_name("app")))
    least = "libdeflate, then tar to memory"
    shell = f"mount -t tmpfs none /mnt && cd /mnt && libdeflate-gunzip -c {image} > tar && mkdir x && tar -xf tar -C x"
    yield Row(least, ["unshare", "-m", "sh", "-c", shell], than=MEMORY)
    memory = place / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(memory)], check=True)
    yield from run.unpackers(place, image, memory, than=MEMORY)


if __name__ == "__main__":
    sys.exit(run.main({"small": small, "large": large}, by="wall"))
