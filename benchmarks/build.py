"""How long a build takes: nothing changed, one file changed, and cold; as ratios to a floor in the same run.

python benchmarks/build.py [--rounds 9] [--no-cold]
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from pairs import Ratio, alternate, timed

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
PYTHON = sys.executable
IMAGEKIT = str(Path(PYTHON).with_name("imagekit"))
KEY = str(PROJECT / "fixtures" / "keys" / "test.key")


def command(definition: Path, out: Path) -> list[str]:
    """The build that is measured: one image, one architecture, one format."""
    fixed = ["--arch", "x86_64", "--format", "kernel_initrd", "--key", KEY]
    return [IMAGEKIT, "build", str(definition), *fixed, "-o", str(out)]


def nothing_changed(definition: Path, out: Path, rounds: int) -> Ratio:
    """`imagekit build` when nothing changed, against the start of bare Python."""
    build = command(definition, out)
    timed(build)
    return alternate(
        "nothing changed, against bare Python",
        lambda: timed(build),
        lambda: timed([PYTHON, "-c", "pass"]),
        rounds=rounds,
        limit=4,
    )


def one_file_changed(definition: Path, out: Path, scratch: Path, rounds: int) -> Ratio:
    """One configuration file changed, against reading the parts, compressing the changed one and writing the output."""
    build, page, turn = command(definition, out), definition.parent / "web" / "html" / "index.html", iter(range(10**6))
    parts = floor_parts(out, scratch)

    def changed() -> float:
        page.write_text(f"imagekit {next(turn)}\n")
        return timed(build)

    return alternate(
        "one file changed, against read + compress one part + write",
        changed,
        lambda: timed([PYTHON, str(HERE / "floor_build.py"), str(parts), str(scratch / "floor-out")]),
        rounds=rounds,
        limit=3,
    )


def floor_parts(out: Path, scratch: Path) -> Path:
    """What the floor reads: the compressed initrd less the changed part, that part's bytes, the kernel."""
    parts = scratch / "parts"
    parts.mkdir()
    (kernel,), (initrd,) = out.glob("*.kernel"), out.glob("*.initrd")
    shutil.copyfile(kernel, parts / "kernel")
    shutil.copyfile(initrd, parts / "initrd")
    (parts / "changed").write_bytes(b"user www-data;\n" * 400)  # the image's own files have about 6 kB
    return parts


def cold(definition: Path, scratch: Path) -> str:
    """Everything fetched and converted into an empty cache; and again with the packages at hand, but not converted."""
    full = timed(command(definition, scratch / "cold"), env={"IMAGEKIT_CACHE": str(scratch / "cache")})
    keep = {
        line.split(" ")[6] for line in definition.with_suffix(".lock").read_text().splitlines() if line.count(" ") == 8
    }
    for path in (scratch / "cache").rglob("*"):
        if path.is_file() and path.name not in keep:
            path.unlink()
    local = timed(command(definition, scratch / "cold2"), env={"IMAGEKIT_CACHE": str(scratch / "cache")})
    share = max(0.0, full - local) / full
    return f"cold: {full:.1f} s (of 60), of which network {share:.0%}; with the packages at hand {local:.1f} s"


def main() -> int:
    """Measure, print, and end with 1 when a ratio is over its limit."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=9)
    asked.add_argument("--no-cold", action="store_true", help="leave out the build that fetches everything")
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        shutil.copytree(PROJECT / "images", scratch / "images", ignore=shutil.ignore_patterns("__pycache__"))
        definition = scratch / "images" / "web.py"
        ratios = [
            nothing_changed(definition, scratch / "out", options.rounds),
            one_file_changed(definition, scratch / "out", scratch, options.rounds),
        ]
        print("\n".join(ratio.line() for ratio in ratios))
        if not options.no_cold:
            print(cold(definition, scratch))
    return int(any(ratio.median > ratio.limit for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
