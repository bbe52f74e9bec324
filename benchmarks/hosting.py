"""What the publication and the pull of a changed image move, every byte counted, against the bytes that changed.

    python benchmarks/hosting.py [--packages 100] [--others 50]

An image of `directory:` packages of a megabyte each (bytes that no compressor shortens, so that what changed is as
large in the artifact as in the package) is built as a .tar.gz by `imagekit build`, published and pulled; then a
package is replaced, or a file of one, and all that is done again. The depot holds other images too, whose index moves
with each publication. Of a publication all that is read from the depot and written to it counts; of a pull all that
goes through a TCP connection to a real `imagekit serve`, requests and headers included. Ends with 1 if a replaced
package moves more than 1.2 times its bytes.
"""

import argparse
import os
import random
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

PROJECT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]

from depot_rig import IMAGE_KEY, ONLINE, Depot, Reader, made, served  # noqa: E402

from imagekit import artifact, cli, site  # noqa: E402
from imagekit import key as keys  # noqa: E402
from imagekit.artifact import Artifact  # noqa: E402
from imagekit.depot import publishing  # noqa: E402
from imagekit.site import Site  # noqa: E402

MOST = 1.2  # times the bytes that changed
FILES = (4_000, 46_000, 150_000, 800_000)  # of each package, bytes
CHANGES = (("a package", range(len(FILES))), *((f"a file of {size:,}", [n]) for n, size in enumerate(FILES)))
DEFINITION = """from imagekit import Image

image = Image(name="big", version="{version}", formats=("tar",), arches=("x86_64",), packages=({packages},))
"""


class Big:
    """The image, and the folder that it is built in."""

    def __init__(self, folder: Path, packages: int) -> None:
        self.folder, self.packages, self.version = folder, packages, 0
        self.chance = random.Random(1)
        for number in range(packages):
            self.change(number)

    def change(self, number: int, files: Sequence[int] = range(len(FILES))) -> int:
        """Other bytes in these files of a package; how many."""
        place = self.folder / f"p{number}"
        place.mkdir(exist_ok=True)
        for file in files:
            (place / f"file{file}").write_bytes(self.chance.randbytes(FILES[file]))
        return sum(FILES[file] for file in files)

    def build(self) -> Artifact:
        """Lock and build the next version."""
        self.version += 1
        packages = ", ".join(f'"directory:p{n} prefix=/opt/p{n}"' for n in range(self.packages))
        definition, out = self.folder / "big.py", self.folder / "out"
        definition.write_text(DEFINITION.format(version=self.version, packages=packages))
        for words in (["lock", str(definition)], ["build", str(definition), "-o", str(out)]):
            if cli.main(words):
                raise SystemExit(f"imagekit {' '.join(words)} failed")
        return artifact.load(out / f"big_{self.version}_x86_64.tar.manifest.json")


class Count:
    """Bytes that moved."""

    def __init__(self) -> None:
        self.bytes = 0

    def of(self, other: Site) -> Site:
        """That site, counted: what is read from it and written to it."""

        def read(path: str, limit: int) -> bytes:
            data = other.read(path, limit)
            self.bytes += len(data)
            return data

        def write(files: Sequence[tuple[str, bytes]]) -> None:
            self.bytes += sum(len(data) for _, data in files)
            other.write(files)

        return replace(other, read=read, write=write)


@contextmanager
def relayed(address: str, count: Count) -> Iterator[str]:
    """An address that leads to another, and counts all that passes in both directions."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        Thread(target=_accept, args=(server, (host, int(port)), count), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _accept(server: socket.socket, to: tuple[str, int], count: Count) -> None:
    with suppress(OSError):  # closed at the end
        while True:
            near, far = server.accept()[0], socket.create_connection(to)
            for one, other in ((near, far), (far, near)):
                Thread(target=_pass, args=(one, other, count), daemon=True).start()


def _pass(one: socket.socket, other: socket.socket, count: Count) -> None:
    with suppress(OSError):
        while data := one.recv(1 << 16):
            count.bytes += len(data)
            other.sendall(data)
    with suppress(OSError):
        other.shutdown(socket.SHUT_WR)


def others(depot: Depot, count: int, folder: Path) -> None:
    """So many small images, published at once."""
    if count:
        depot.publish(*(made(folder, name=f"other{n}", parts={"kernel": bytes(9)}) for n in range(count)))


def measure(big: Big, depot: Depot, reader: Reader, pulled: Count) -> tuple[int, int, int]:
    """Build, publish and pull: bytes of the publication, of the pull, and of the image."""
    artifact, published = big.build(), Count()
    place = published.of(depot.site)
    publishing.publish([artifact], place, key=IMAGE_KEY, keys=ONLINE, home=depot.keeper, store=depot.store)
    before = pulled.bytes
    got = reader.pull("big").artifact
    if got.digest != artifact.digest:
        raise SystemExit("another image was pulled than was published")
    return published.bytes, pulled.bytes - before, artifact.size


def main() -> int:
    """Measure, print, and say whether a replaced package moves no more than it may."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--packages", type=int, default=100, metavar="N", help="of a megabyte each (default: 100)")
    asked.add_argument("--others", type=int, default=50, metavar="N", help="other images in the depot (default: 50)")
    options = asked.parse_args()
    with TemporaryDirectory(prefix="hosting-") as name, served_depot(Path(name)) as (depot, address):
        os.environ |= {"IMAGEKIT_CACHE": f"{name}/cache", "IMAGEKIT_KEY": f"{name}/image.key"}
        keys.save(IMAGE_KEY, Path(name) / "image.key")
        big, count = Big(Path(name), options.packages), Count()
        others(depot, options.others, Path(name) / "others")
        with relayed(address, count) as relay:
            reader = Reader(site.at(relay), Path(name) / "reader").trusts(depot.root)
            first = measure(big, depot, reader, count)
            print(f"an image of {first[2]:,} bytes: publication {first[0]:,}, pull {first[1]:,}")
            kept = True
            for what, files in CHANGES:
                changed = big.change(options.packages // 2, files)
                moved = measure(big, depot, reader, count)[:2]
                shares = [size / changed for size in moved]
                print(f"{what}: {changed:,} bytes changed: publication {moved[0]:,} ({shares[0]:.2f}), "
                      f"pull {moved[1]:,} ({shares[1]:.2f})")  # fmt: skip
                kept &= len(files) == 1 or max(shares) < MOST
    return int(not kept)


@contextmanager
def served_depot(folder: Path) -> Iterator[tuple[Depot, str]]:
    """An empty depot and the address of its server."""
    depot = Depot(folder)
    with served(depot.place) as address:
        yield depot, address


if __name__ == "__main__":
    sys.exit(main())
