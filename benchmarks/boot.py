"""How long the web image takes to its first HTTP 200, against the same kernel with a static init that answers the same.

    python benchmarks/boot.py [--arch x86_64 --arch aarch64] [--rounds 9]

Both boot on the same machine with the same flags, in turn; the guest's network is asked every few milliseconds.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zstandard
from pairs import Ratio, alternate

from imagekit import build, definition, key, toolbox
from imagekit.arch import ARCHES
from imagekit.disk import cpio
from imagekit.stores.directory import open_store
from imagekit.tree import Entry, Tree, directory, file

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
WEB = PROJECT / "images" / "web.py"
TARGETS = {"x86_64": "x86_64-linux-musl", "aarch64": "aarch64-linux-musl"}
CONSOLES = {"x86_64": "ttyS0", "aarch64": "ttyAMA0,115200"}
PATIENCE = 120  # seconds until a boot counts as hung


def floor_initrd(tree: Tree, arch: str, scratch: Path) -> bytes:
    """An initrd with the image's own modules and nothing else but the static init."""
    program = scratch / f"floor-{arch}"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", TARGETS[arch], "-Os", "-static", "-s"]
    subprocess.run([*compiler, "-o", str(program), str(HERE / "floor_init.c")], check=True)
    order = tree.read("/etc/imagekit/modules")
    entries: dict[str, Entry] = {path: tree[path] for path in order.decode().split()}
    entries |= {"/init": file(program.read_bytes(), mode=0o755), "/modules": file(order), "/dev": directory()}
    return zstandard.ZstdCompressor(level=-1).compress(cpio.archive(Tree(entries).complete().items()))


def seconds_to_page(argv: list[str], port: int) -> float:
    """Wall seconds from QEMU's start to the first HTTP 200."""
    started = time.perf_counter()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        while time.perf_counter() - started < PATIENCE:
            if process.poll() is not None:
                raise SystemExit(f"QEMU ended with {process.returncode}: {process.stdout.read()!r}")  # type: ignore[union-attr]
            if _answers(port):
                return time.perf_counter() - started
            time.sleep(0.005)
        raise SystemExit(f"no answer within {PATIENCE} s")
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    """QEMU accepts a forwarded connection before the guest listens, so ask with a short patience and connect again."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def measure(arch: str, rounds: int, scratch: Path) -> Ratio:
    """Build, write both initrds, and boot them in turn."""
    store, image, lock = open_store(), definition.load(WEB), build.read_lock(WEB)
    signer = key.read(PROJECT / "fixtures" / "keys" / "test.key")
    made = build.artifact(
        image, folder=WEB.parent, lock=lock, arch=arch, format="kernel_initrd", key=signer, store=store
    )
    tree = build.tree(image, folder=WEB.parent, lock=lock, arch=arch, store=store)
    files = {part.role: made.path.parent / part.file for part in made.parts}
    floor = scratch / f"floor-{arch}.initrd"
    floor.write_bytes(floor_initrd(tree, arch, scratch))
    qemu = toolbox.tools(f"qemu-system-{ARCHES[arch].qemu}", store=store, say=print)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def boot(initrd: Path) -> float:
        from imagekit.targets import _qemu_command as command

        forward = f",hostfwd=tcp:127.0.0.1:{port}-:80"
        words = f"{files['cmdline'].read_text().strip()} console={CONSOLES[arch]}"
        flags = command.Command(command.BOARDS[arch], str(files["kernel"]), str(initrd), words, 256, "tcg", forward)
        return seconds_to_page(qemu.argv(f"qemu-system-{ARCHES[arch].qemu}", *flags.arguments), port)

    what = f"{arch}: boot to the first HTTP 200, against a static init"
    return alternate(what, lambda: boot(files["initrd"]), lambda: boot(floor), rounds=rounds, limit=1.3)


def main() -> int:
    """Measure, print, and end with 1 when a ratio is over its limit."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--arch", action="append", choices=sorted(ARCHES))
    asked.add_argument("--rounds", type=int, default=9)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ratios = [measure(arch, options.rounds, Path(name)) for arch in options.arch or sorted(ARCHES)]
    print("\n".join(ratio.line() for ratio in ratios))
    return int(any(ratio.median > ratio.limit for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
