"""An image on its way in: what it is, whether a trusted key signed it, and where its root comes to lie.

Which of these it is, `imagekit run --explain` tells:

    in the cache    unpacked once, by digest, below an overlay in memory
    in memory       unpacked for this run alone, where the cache cannot be used or was not wanted

What is unpacked are the bytes that were verified, copied while they were hashed; the file is not looked at again.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from imagekit import artifact, inuse, key, namespace, options, roots, stamp
from imagekit import asked as typed
from imagekit.asked import Asked, Entry, Tree
from imagekit.disk import folder, rootfs
from imagekit.errors import Problem, RigProblem

COVER = "/sys"  # what a root in memory lies on: nothing that is still to be loaded lies below it
MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp")
RUNS_ON = {"x86_64": ("x86_64",), "aarch64": ("aarch64", "armhf"), "armv7l": ("armhf",), "riscv64": ("riscv64",)}


class Source(NamedTuple):
    """An image that may be run, whatever it came as."""

    name: str
    arch: str
    digest: str  # decides every byte of the root
    entry: Entry
    fill: Callable[[str], None]  # makes `root` in a folder, from verified bytes
    files: tuple[Path, ...]  # what it lies in
    signer: str


class InMemory:
    """A root that is unpacked for this run alone, in a file system in memory that ends with the program."""

    def __init__(self, source: Source, why: Sequence[str]) -> None:
        self.source, self.entry, self.why = source, source.entry, why

    def stage(self, kept: int) -> None:
        """Unpack it and stand in it, in a mount namespace of our own."""
        machine = os.open(COVER, os.O_PATH | os.O_CLOEXEC)
        namespace.mount("tmpfs", COVER, "tmpfs", flags=namespace.MS_NODEV, options="mode=755")
        try:
            self.source.fill(COVER)
        except Problem as problem:
            raise OSError(0, str(problem)) from problem
        sys = f"/proc/self/fd/{machine}"
        if kept >= 0:
            namespace.stage(f"{COVER}/root", kept=kept, sys=sys)
        else:
            namespace.bind(f"{COVER}/root", f"{COVER}/root")
            os.chdir(f"{COVER}/root")
            namespace.dress(sys=sys)


Admitted = Tree | InMemory


def admit(asked: Asked) -> Admitted:
    """Find out what an image is, verify it, and have its root; raises Problem when it may not run."""
    started = time.time_ns()
    path = Path(asked.image)
    keys = None if asked.insecure else trusted(asked)
    if keys is None:
        namespace.say(f"WARNING: {path.name} is run without its signature being looked at (--insecure)")
    if not path.is_file():
        raise Problem(f"there is no image {path}", "name a signed file, an artifact's manifest, or a definition")
    source = _artifact(path, keys)
    check_machine(source)
    found = _placed(source, ephemeral=asked.ephemeral)
    if keys is not None and isinstance(found, Tree):
        _remember(asked, source, started)
    return found


def trusted(asked: Asked) -> list[key.Key]:
    """The keys that were named, else the user's own."""
    named = asked.trust or [options.lookup("key", default=key.default_path())]
    return key.ring([Path(name) for name in named])


def check_machine(source: Source) -> None:
    """Raise Problem for an image that this machine cannot run."""
    here = os.uname().machine
    if source.arch not in ("any", here, *RUNS_ON.get(here, ())):
        raise Problem(
            f"{source.name} is for {source.arch}, this machine is {here}", "`imagekit boot` starts it in an emulator"
        )


def _placed(source: Source, *, ephemeral: bool) -> Admitted:
    """Its root in the cache, or why it has to be in memory."""
    cache = roots.location()
    reason = "--ephemeral was given" if ephemeral else roots.usable(cache)
    if not reason:
        try:
            os.makedirs(cache, mode=0o700, exist_ok=True)  # noqa: PTH103
            inuse.enter(Path(cache))
            held = roots.hold(cache, source.digest)
            how = "was there" if held else "was unpacked now"
            held = held or roots.make(cache, source.digest, source.fill, say=_tell)
            held.outlive()
            return Tree(held.root, entry=source.entry, why=[source.signer, f"in the cache, {how}: {held.root}"])
        except (OSError, RigProblem) as error:
            reason = f"the cache cannot be used: {error.strerror if isinstance(error, OSError) else error.message}"
    return InMemory(source, [source.signer, f"in memory, for this run alone: {reason}"])


def _remember(asked: Asked, source: Source, started: int) -> None:
    """Let the next run find the root without looking at the image again, as long as no file has changed."""
    named = [Path(name) for name in asked.trust] or [Path(options.lookup("key", default=key.default_path()))]
    keys = [file for path in named for file in ([path, *sorted(path.glob("*.pub"))] if path.is_dir() else [path])]
    decide = [place / "pyproject.toml" for place in (Path.cwd(), *Path.cwd().parents)]  # it may name a key, or none yet
    read = [str(path.absolute()) for path in (*source.files, *keys)]
    entry = source.entry
    said = [
        source.digest,
        *(f"argument {word}" for word in entry.argv),
        *(f"environment {name}={value}" for name, value in entry.env.items()),
        *([f"user {entry.user}"] if entry.user else []),
        f"workdir {entry.workdir}",
    ]
    if any("\n" in line for line in said):
        return
    with suppress(OSError):  # a full disk; the next run verifies again
        stamp.record(typed.stamp_words(asked), read=read, wrote=[str(p) for p in decide], said=said, started_ns=started)


def _tell(line: str) -> None:
    import sys

    if sys.stderr.isatty():
        namespace.say(line)


# --- kinds of images --------------------------------------------------------------------------------------------------


def _artifact(path: Path, keys: Sequence[key.Key] | None) -> Source:
    """What `imagekit build` wrote, in a format with a root: tar, oci or docker."""
    made = artifact.load(path)
    signer = _signer(made, keys) if keys is not None else None
    part = next((part for part in made.parts if part.role == "root"), None)
    if made.kind != "root" or part is None:
        raise Problem(
            f"{made.name} is in the format {made.format}", "run takes an image in the format tar, oci or docker"
        )

    def fill(draft: str) -> None:
        with _opened(made, part, signer) as handle:
            unpack(handle, Path(draft, "root"))

    files = (made.path, made.path.with_name(made.path.name + artifact.SIGNATURE_SUFFIX), made.path.parent / part.file)
    said = f"signed by {signer.id}" if signer else "not verified (--insecure)"
    return Source(made.name, made.arch, part.sha256, Entry(), fill, files, f"{made.path.name}: {said}")


def _signer(made: artifact.Artifact, keys: Sequence[key.Key]) -> key.Key:
    problems = []
    for one in keys:
        try:
            made.verify_manifest(one)
            return one
        except Problem as problem:
            problems.append(problem)
    raise problems[0]


@contextmanager
def _opened(made: artifact.Artifact, part: artifact.Part, signer: key.Key | None) -> Iterator[int]:
    """A verified copy of the part; of an image that nobody verified, the file as it is."""
    if signer is not None:
        with made.opened(signer) as opened:
            yield opened.handles[part.role]
    else:
        with open(made.path.parent / part.file, "rb") as file:
            yield file.fileno()


def unpack(handle: int, root: Path) -> None:
    """The root in a file that a format wrote, as a folder with the places that a machine's own folders are shown at."""
    folder.write(rootfs.members(handle), root)
    for name in MOUNT_POINTS:
        with suppress(FileExistsError):  # as a symlink too: namespace.stage refuses to mount through one
            (root / name).mkdir()
