"""What `imagekit run` takes until a program has run, against the least that it can take, and other programs' ways.

    python benchmarks/run.py [--rounds 40] [--megabytes 58] [--peers FOLDER] [--only WORD]

As root. The program ends at once, so all time is that of starting it. Rounds go through all rows one after another,
so a busy machine is busy for all of them; shown are the least and the median of wall clock time, and the least of
processor time of all that a row starts. Two tables:

    small    a root of one static program. Floors: a C program that does the system calls and nothing else, and Python
             that starts and does nothing. Peers: bubblewrap, crun, runc, systemd-nspawn, podman.
    large    a root of so many megabytes, out of this machine's /usr: as an EROFS, cached, ephemeral. The floor of the
             last is libdeflate-gunzip, then tar that writes to memory. Peers: tar on gzip by a shell, tar.bz2 by a
             shell (what nix-bundle's programs do), makeself, and where there is Go a program that
             does what bali does (peer_bali.go).

Peers are those of this machine and of FOLDER, where Debian's packages were unpacked (`dpkg -x`), which is laid over
/usr for this process alone; one that is not there, or does not run here, is left out and named. Ends with 1 where a
bound does not hold; bounds are of the least processor time, which does not depend on what else the machine does.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from imagekit import key, signing, toolbox  # noqa: E402
from imagekit.stores.directory import open_store  # noqa: E402

KEY = PROJECT / "fixtures/keys/test.key"
PAYLOAD = "int main(void) { return 0; }\n"
FOLDERS = ("proc", "sys", "dev", "run", "tmp", "etc", "usr")
PRIVATE = """mount --make-rprivate / && mount -t tmpfs none /run && (umount /sys/fs/cgroup/unified 2> /dev/null || :)
peers=$1; shift
for part in usr lib; do
    if [ -d "$peers/$part" ]; then
        place=$(realpath /$part); mount -t overlay -o "lowerdir=$peers/$part:$place" none "$place" || exit
    fi
done
exec "$@" """


class Row(NamedTuple):
    """A way to start the program."""

    name: str
    argv: list[str]
    most: float = 0.0  # times the row that it is compared with, in processor time; 0 for no bound
    than: str = ""


Table = Callable[[Path, int], Iterator[Row]]


class Taken(NamedTuple):
    """Seconds of one start."""

    wall: float
    cpu: float


def main(tables: "dict[str, Table] | None" = None, *, by: str = "cpu") -> int:
    """Measure, print, and compare with the bounds, which are of the least `cpu` or `wall`."""
    tables = tables or {"small": small, "large": large}
    about = sys.modules["__main__"].__doc__
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--megabytes", type=int, default=58)
    options.add_argument("--peers", type=Path)
    options.add_argument("--only", default="", help="small or large")
    asked = options.parse_args()
    if "IN_PRIVATE" not in os.environ:  # nspawn and crun want a /run and groups of their own kind
        unpacked = str(asked.peers.resolve()) if asked.peers else "/nowhere"
        argv = ["unshare", "--mount", "sh", "-c", PRIVATE, "sh", unpacked, sys.executable, *sys.argv]
        os.execvpe(argv[0], argv, {**os.environ, "IN_PRIVATE": "1"})
    with tempfile.TemporaryDirectory(dir="/var/tmp") as scratch:
        place = Path(scratch)
        os.environ["IMAGEKIT_CACHE"] = str(place / "cache")
        rounds = {"small": asked.rounds, "large": max(3, asked.rounds // 4)}
        broken = 0
        try:
            for name, rows in tables.items():
                if asked.only in ("", name):
                    (place / name).mkdir()
                    broken += shown(name, measured(list(rows(place / name, asked.megabytes)), rounds[name]), by)
        finally:
            for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
                if line.split()[4].startswith(scratch):
                    subprocess.run(["umount", "--lazy", line.split()[4]], check=True)
    return 1 if broken else 0


def measured(rows: list[Row], rounds: int) -> list[tuple[Row, list[Taken]]]:
    """Each row once per round; rows that fail are named and left out."""
    taken: list[tuple[Row, list[Taken]]] = [(row, []) for row in rows if works(row)]
    for _ in range(rounds):
        for row, all_ in taken:
            all_.append(start(row.argv))
    return taken


def works(row: Row) -> bool:
    """Whether a row runs the program here at all; said if it does not."""
    if not shutil.which(row.argv[0]):
        print(f"left out: {row.name}: there is no {row.argv[0]}")
        return False
    done = subprocess.run(row.argv, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"left out: {row.name}: ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.returncode == 0


def start(argv: list[str]) -> Taken:
    """Run it once to its end."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, nothing, n) for n in (1, 2)])
    status = os.waitpid(pid, 0)[1]
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    os.close(nothing)
    if status:
        raise SystemExit(f"{argv}: ended with {status}")
    return Taken(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def shown(name: str, taken: list[tuple[Row, list[Taken]]], by: str) -> int:
    """Print a table; how many bounds do not hold."""
    broken = 0
    least = {row.name: min(getattr(one, by) for one in all_) for row, all_ in taken}
    cpu = {row.name: min(one.cpu for one in all_) for row, all_ in taken}
    print(f"\n{name:44} wall ms: least  median   processor ms: least    against")
    for row, all_ in taken:
        walls = [one.wall for one in all_]
        against = ""
        if row.than in least:
            times = least[row.name] / least[row.than]
            broken += bool(row.most and times > row.most)
            bound = f", at most {row.most:g}" + (" BROKEN" if times > row.most else "") if row.most else ""
            against = f"{times:.2f} x {row.than}{bound}"
        print(f"{row.name:44} {min(walls) * 1e3:14.2f} {statistics.median(walls) * 1e3:7.2f} "
              f"{cpu[row.name] * 1e3:21.2f}    {against}")  # fmt: skip
    return broken


# --- a root of one program --------------------------------------------------------------------------------------------


def small(place: Path, _: int) -> Iterator[Row]:
    """A static program, alone."""
    root = place / "root"
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
    (root / "etc/os-release").write_text("ID=small\n")
    compiled(PAYLOAD, root / "payload")
    floor = compiled((PROJECT / "benchmarks/floor_run.c").read_text(), place / "floor")
    image = signed(packed(root, place), place / "image.tar.gz")
    yield Row("C: the system calls alone", [str(floor), str(root), "/payload"])
    bare = "python -I -S, which does nothing"
    yield Row(bare, [sys.executable, "-I", "-S", "-c", "pass"])
    yield Row("python -I (with site), which does nothing", [sys.executable, "-I", "-c", "pass"], than=bare)
    yield Row("imagekit run FOLDER (python -I -S)", ours(place, root, "--insecure", "--", "/payload"), 1.5, bare)
    yield Row("imagekit run IMAGE, cached (python -I -S)", ours(place, image, "--trust", KEY), 1.5, bare)
    script = shutil.which("imagekit", path=str(Path(sys.executable).parent))
    if script:
        yield Row(
            "imagekit run IMAGE, cached (pip's script)", [script, "run", str(image), "--trust", str(KEY)], than=bare
        )
    yield from peers(place, root)


def peers(place: Path, root: Path) -> Iterator[Row]:
    """What others start a program in a folder by."""
    floor = "C: the system calls alone"
    mounts = ["--bind", str(root), "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/run"]
    yield Row("bubblewrap", ["bwrap", *mounts, "/payload"], than=floor)
    yield from (Row(name, [name, "run", "-b", str(bundle(place, root, name)), f"bench-{name}"], than=floor)
                for name in ("crun", "runc") if shutil.which(name))  # fmt: skip
    nspawn = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "-D", str(root), "/payload"]
    yield Row("systemd-nspawn", nspawn, than=floor)
    podman = ["podman", "--runtime=crun", "--cgroup-manager=cgroupfs", "--root",
              str(place / "pods"), "--runroot", str(place / "podsrun"), "run", "--rm", "--cgroups=disabled",
              "--network=host", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1000:1000",
              "--rootfs", str(root), "/payload"]  # fmt: skip
    yield Row("podman --rootfs", podman, than=floor)


def bundle(place: Path, root: Path, runtime: str) -> Path:
    """What an OCI runtime starts: its own template, with this root and program."""
    made = place / f"bundle-{runtime}"
    made.mkdir()
    subprocess.run([runtime, "spec"], cwd=made, check=True)
    spec = json.loads((made / "config.json").read_text())
    spec["root"] = {"path": str(root), "readonly": False}
    spec["process"] |= {"args": ["/payload"], "terminal": False, "rlimits": []}
    spec["mounts"] = [mount for mount in spec["mounts"] if mount["type"] not in ("cgroup", "mqueue")]
    spec["linux"] = {"namespaces": [{"type": "mount"}]}
    spec.pop("hostname", None)
    (made / "config.json").write_text(json.dumps(spec))
    return made


# --- a root of many megabytes -----------------------------------------------------------------------------------------


def large(place: Path, megabytes: int) -> Iterator[Row]:
    """Files of this machine's /usr, and the static program."""
    root = place / "root"
    gathered(root, megabytes << 20)
    compiled(PAYLOAD, root / "payload")
    plain = packed(root, place)
    image, mounted = signed(plain, place / "image.tar.gz"), signed(erofs(plain, place), place / "image.erofs")
    floor = compiled((PROJECT / "benchmarks/floor_run.c").read_text(), place / "floor")
    memory = place / "memory"
    memory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(memory)], check=True)
    yield Row("C: the system calls alone", [str(floor), str(root), "/payload"])
    bare = "python -I -S, which does nothing"
    yield Row(bare, [sys.executable, "-I", "-S", "-c", "pass"])
    yield Row("imagekit run EROFS, in place", ours(place, mounted, "--trust", KEY), 3.0, bare)
    yield Row("imagekit run IMAGE, cached", ours(place, image, "--trust", KEY), 2.0, bare)
    least = "libdeflate, then tar to memory"
    shell = f"cd {memory} && rm -rf x && mkdir x && cd x && "
    yield Row(least, ["sh", "-c", f"{shell} libdeflate-gunzip -c {image} > ../tar && tar -xf ../tar"])
    yield Row("imagekit run IMAGE --ephemeral", ours(place, image, "--trust", KEY, "--ephemeral"), 1.1, least)
    yield from unpackers(place, image, memory, than=least)


def unpackers(place: Path, image: Path, memory: Path, *, than: str) -> Iterator[Row]:
    """What others unpack that image's root by, before they start its program: into memory, without verifying it."""
    root, floor = place / "root", place / "floor"
    run = f"cd {memory} && rm -rf x && mkdir x && cd x && tar -x{{}} && {floor} $PWD /payload"
    yield Row("sh: tar -xzf, floor", ["sh", "-c", run.format(f"zf {image}")], than=than)
    subprocess.run(["tar", "-cjf", str(place / "image.tar.bz2"), "-C", str(root), "."], check=True)
    bz2 = run.format(f"jf {place}/image.tar.bz2")
    yield Row("sh: tar.bz2, floor (as nix-bundle)", ["sh", "-c", bz2], than=than)
    go = shutil.which("go")
    if go:
        (place / "bali").mkdir()
        made = str(place / "peer_bali")
        env = {**os.environ, "GOCACHE": str(place / "go"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
        subprocess.run([go, "build", "-o", made, str(PROJECT / "benchmarks/peer_bali.go")], check=True, env=env)
        yield Row("Go: what bali does", [made, str(image), str(place / "bali"), "/payload"], than=than)
    if shutil.which("makeself"):
        argv = ["makeself", "--quiet", "--gzip", str(root), str(place / "makeself.run"), "bench", "./payload"]
        if subprocess.run(argv, check=False, capture_output=True).returncode == 0:
            yield Row("makeself --gzip", [str(place / "makeself.run"), "--nox11", "--noprogress"], than=than)


def gathered(root: Path, size: int) -> None:
    """Copy files of /usr until they are so large together, in the order of their names."""
    left = size
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for folder, names, files in os.walk("/usr/lib"):
        names.sort()
        for name in sorted(files):
            source = Path(folder, name)
            state = source.lstat()
            if source.is_symlink() or not source.is_file() or state.st_size > left:
                continue
            target = root / source.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
            left -= state.st_size
        if left < 1 << 16:
            return


def packed(root: Path, place: Path) -> Path:
    """The root as a plain tar."""
    made = place / "root.tar"
    subprocess.run(["tar", "--sort=name", "--format=ustar", "-cf", str(made), "-C", str(root), "."], check=True)
    return made


def erofs(plain: Path, place: Path) -> Path:
    """The same as an EROFS."""
    made = place / "root.erofs"
    tools = toolbox.tools("mkfs.erofs", store=open_store(Path("~/.cache/imagekit").expanduser()))
    argv = tools.argv("mkfs.erofs", "--quiet", "-zlz4", "--tar=f", made, plain)
    subprocess.run(argv, check=True, env={**os.environ, **tools.env})
    return made


def signed(plain: Path, out: Path) -> Path:
    about = signing.About("bench", "1", os.uname().machine, ("/payload",))
    signing.sign(plain, out, about=about, key=key.read(KEY))
    return out


def ours(place: Path, image: Path, *options: object) -> list[str]:
    """`imagekit run` by a Python that loads nothing of its own accord."""
    script = place / "fast.py"
    script.write_text(
        f"import sys\nsys.path += {[str(PROJECT), *site_packages()]!r}\n"  # after Python's own, as `site` does it
        "from imagekit.cli import main\nsys.exit(main())\n"
    )
    return [sys.executable, "-I", "-S", str(script), "run", str(image), *map(str, options)]


def site_packages() -> list[str]:
    return [path for path in sys.path if path.endswith("site-packages")]


def compiled(source: str, out: Path) -> Path:
    """A static program out of C, by the compiler that is there."""
    code = out.with_suffix(".c")
    code.write_text(source)
    compiler = (
        ["gcc"]
        if shutil.which("gcc")
        else [sys.executable, "-m", "ziglang", "cc", "-target", f"{os.uname().machine}-linux-musl"]
    )
    subprocess.run([*compiler, "-O2", "-static", "-o", str(out), str(code)], check=True)
    code.unlink()
    return out


if __name__ == "__main__":
    sys.exit(main())
