"""An image on its way in: what it is, whether a trusted key signed it, and where its root comes to lie.

Which of these it is, `imagekit run --explain` tells:

    in the cache    by digest, below an overlay in memory: a tree that was unpacked once, or a file system that is
                    mounted out of a file and never unpacked
    in memory       the same for this run alone, where the cache cannot be used or was not wanted

What is unpacked or mounted are the bytes that were verified, copied while they were hashed; the file is not looked at
again. A file system is read from that copy as it is needed, so fs-verity guards it where the kernel has that.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from imagekit import arrivals, inuse, key, mounting, namespace, options, roots, stamp
from imagekit import asked as typed
from imagekit import unpack as unpacking
from imagekit.asked import Asked, Entry, Mounted, Tree
from imagekit.disk import inflate, newtree, signedchunks, signedfile
from imagekit.errors import Problem, RigProblem
from imagekit.mounting import COVER

if TYPE_CHECKING:
    from imagekit.artifact import Artifact, Part

RUNS_ON = {"x86_64": ("x86_64",), "aarch64": ("aarch64", "armhf"), "armv7l": ("armhf",), "riscv64": ("riscv64",)}


class Source(NamedTuple):
    """An image that may be run, whatever it came as."""

    name: str
    arch: str
    digest: str  # decides every byte of the root
    entry: Entry
    fill: Callable[[str], None]  # makes `root`, or `image`, in a folder, from verified bytes
    write: Callable[[int], None] | None  # writes the file system that it is, verified, to a descriptor; None for a tree
    files: tuple[Path, ...]  # what it lies in
    signer: str


class Ephemeral:
    """A root that is unpacked for this run alone, in a file system in memory that ends with the program.

    An EROFS is mounted out of a file without a name, which ends with it as well, where the kernel does that.
    """

    def __init__(self, source: Source, why: Sequence[str]) -> None:
        self.source, self.entry, self.why = source, source.entry, why

    def stage(self, kept: int) -> bool:
        """Unpack it and stand in it, in a mount namespace of our own."""
        machine = os.open(COVER, os.O_PATH | os.O_CLOEXEC)
        namespace.mount("tmpfs", COVER, "tmpfs", flags=namespace.MS_NODEV, options="mode=755")
        sys = f"/proc/self/fd/{machine}"
        try:
            write = self.source.write
            is_mounted = write is not None and mounting.mount_unnamed(write, str(self.source.files[0].parent))
            if not is_mounted:
                self.source.fill(COVER)
        except Problem as problem:
            raise OSError(0, str(problem)) from problem
        if kept >= 0 or is_mounted:
            return namespace.stage(f"{COVER}/root", kept=kept, sys=sys)
        namespace.bind(f"{COVER}/root", f"{COVER}/root")
        os.chdir(f"{COVER}/root")
        namespace.dress(sys=sys)
        return True


Admitted = Tree | Ephemeral


def admit(asked: Asked) -> Admitted:
    """Find out what an image is, verify it, and have its root; raises Problem when it may not run."""
    started = time.time_ns()
    name, is_remote = _address(asked.image)
    keys = None if asked.insecure else trusted(asked)
    if keys is None:
        namespace.say(f"WARNING: {name} is run without its signature being looked at (--insecure)")
    path = arrivals.here(asked.image, keys) if is_remote else Path(asked.image)
    if not path.is_file():
        raise Problem(f"there is no image {path}", "name a signed file, an artifact's manifest, or a definition")
    source = _source(path, name, keys)
    if is_remote and keys is not None:
        fill, write = arrivals.dropping(source.fill, path), source.write and arrivals.dropping(source.write, path)
        source = source._replace(fill=fill, write=write)
    check_machine(source)
    found = _placed(source, ephemeral=asked.ephemeral)
    if keys is not None and isinstance(found, Tree) and not is_remote:  # a server may have another one next time
        _remember(asked, source, started)
    return found


def _address(image: str) -> tuple[str, bool]:
    """Its name, and whether it comes from a server."""
    is_remote = "://" in image
    try:
        if is_remote and urlsplit(image).port == 0:
            raise ValueError("Port out of range 1-65535")
        return arrivals.name_of(image), is_remote
    except ValueError as error:
        raise Problem(f"{image} is no address: {error}") from error


def _source(path: Path, name: str, keys: Sequence[key.Key] | None) -> Source:
    """Which kind of image a file is."""
    if _is_signed(path):
        return _signed(path, keys, name=name)
    if arrivals.is_plain(path) and not _is_part(path):
        return _plain(path, name, keys)
    return _artifact(path, keys)


def _is_part(path: Path) -> bool:
    """Whether the manifest of an artifact lies beside a tar, and names it."""
    from imagekit import artifact  # which signed files do without

    try:
        artifact.manifest_of(path)
    except Problem:
        return False
    return True


def trusted(asked: Asked) -> list[key.Key]:
    """The keys that were named, else the user's own."""
    if asked.trust:
        return key.ring([Path(name) for name in asked.trust])
    own = Path(options.lookup("key", default=key.default_path()))
    try:
        return [key.read(own)]
    except Problem as problem:
        raise Problem(problem.message, "--trust names the key of whoever signed the image") from problem


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
    reason = (
        "--ephemeral was given" if ephemeral else "nobody verified it" if not source.digest else roots.usable(cache)
    )
    if not reason:
        try:
            os.makedirs(cache, mode=0o700, exist_ok=True)  # noqa: PTH103
            if why := roots.usable(cache):  # another was faster
                raise OSError(0, why)
            inuse.enter(Path(cache))
            held = roots.hold(cache, source.digest)
            how = "was there" if held else "was unpacked now"
            if held is None:
                held = roots.make(cache, source.digest, source.fill, say=_tell)
                _trim(cache)
            held.outlive()
            return _entered(held, source, how)
        except (OSError, RigProblem) as error:
            reason = f"the cache cannot be used: {error.strerror if isinstance(error, OSError) else error.message}"
    where = "in a file without a name, or in memory" if source.write else "in memory"
    return Ephemeral(source, [source.signer, f"{where}, for this run alone: {reason}"])


def _trim(cache: str) -> None:
    """Make the cache as small as cache-size says; what others use stays, and what we are about to."""
    from imagekit import room

    if options.lookup(room.OPTION) is not None:
        room.limit(Path(cache), room.most(), say=_tell)


def _entered(held: roots.Held, source: Source, how: str) -> Tree:
    why = [source.signer, f"in the cache, {how}: {held.image if held.has_image else held.root}"]
    if not held.has_image:
        if source.write:
            why.append(f"the EROFS was unpacked: the kernel did not mount it; {typed.NO_EROFS}")
        return Tree(held.root, entry=source.entry, why=why)
    guards = [mounting.guarded(held.image), mounting.DM_VERITY]
    return Mounted(held.image, on=held.root, entry=source.entry, why=[*why, *guards])


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
    from imagekit import artifact  # with much that signed files do without

    made = artifact.load(path)
    signer = made.signer(keys) if keys is not None else None
    part = next((part for part in made.parts if part.role == "root"), None)
    if made.kind != "root" or part is None:
        raise Problem(
            f"{made.name} is in the format {made.format}", "run takes an image in the format tar, oci or docker"
        )

    def fill(draft: str) -> None:
        with _opened(made, part, signer) as handle:
            roots.unpack(handle, Path(draft, "root"))

    files = (made.path, made.path.with_name(made.path.name + artifact.SIGNATURE_SUFFIX), made.path.parent / part.file)
    said = f"signed by {signer.id}" if signer else "not verified (--insecure)"
    digest = part.sha256 if signer else ""  # what nobody verified is not kept for those who verify
    return Source(made.name, made.arch, digest, Entry(), fill, None, files, f"{made.path.name}: {said}")


@contextmanager
def _opened(made: "Artifact", part: "Part", signer: key.Key | None) -> Iterator[int]:
    """A verified copy of the part; of an image that nobody verified, the file as it is."""
    if signer is not None:
        with made.opened(signer) as opened:
            yield opened.handles[part.role]
    else:
        with open(made.path.parent / part.file, "rb") as file:
            yield file.fileno()


def _is_signed(path: Path) -> bool:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        return os.pread(file.fileno(), 24, max(size - signedfile.END, 0))[16:] == signedfile.MAGIC


def _signed(path: Path, keys: Sequence[key.Key] | None, *, name: str = "") -> Source:
    """A signed image file: docs/format.md."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        signed = signedfile.read(handle, keys)
    except Problem as problem:
        raise Problem(f"{name or path.name}: {problem.message}", problem.hint) from problem
    said = signed.said

    def unpacked(draft: str) -> None:
        unpacking.reuse_memory()
        policy = newtree.FOREIGN if keys is None else newtree.SIGNED
        pieces = signedchunks.pieces(handle, signed)
        if (
            draft != COVER
        ):  # made for other runs too, and not in a hurry: what is said of the whole is looked at as well
            pieces = inflate.checked(pieces, said.content)
        unpacking.unpack(pieces, f"{draft}/root", policy=policy, durable=False)
        roots.add_mount_points(Path(draft, "root"))

    def write(out: int) -> None:
        for piece in signedchunks.pieces(handle, signed):
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(out, rest) :]

    def copied(draft: str) -> None:
        os.mkdir(f"{draft}/root")  # noqa: PTH102 - what it is mounted on
        out = os.open(f"{draft}/image", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        try:
            write(out)
        finally:
            os.close(out)
        if draft == COVER or not mounting.is_possible(f"{draft}/image"):
            _extract(f"{draft}/image", f"{draft}/root")
            roots.add_mount_points(Path(draft, "root"))
        else:
            mounting.guard(f"{draft}/image")

    entry = Entry()
    entry.argv = [os.fsdecode(word) for word in said.arguments]
    entry.env = dict(os.fsdecode(line).partition("=")[::2] for line in said.environment)
    entry.user, entry.workdir = f"{said.uid}:{said.gid}", os.fsdecode(said.workdir)
    signer = "not verified (--insecure)" if signed.key is None else f"signed by {signedfile.id_of(signed.number)}"
    signer = f"{name or path.name}: {said.name} {said.version}, {signer}"
    fill, file = (copied, write) if said.payload == "erofs" else (unpacked, None)
    digest = said.table if keys is not None else ""  # what nobody vouches for is not kept for those who verify
    return Source(said.name, said.architecture, digest, entry, fill, file, (path,), signer)


def _plain(path: Path, name: str, keys: Sequence[key.Key] | None) -> Source:
    """A tar that nobody signed, as `docker export` and `tar` write it."""
    if keys is not None:
        raise Problem(f"{name} is signed by nobody", "`imagekit sign` signs it; --insecure runs it as it is")

    def fill(draft: str) -> None:
        left_out = arrivals.unpack_plain(path, f"{draft}/root")
        if left_out:
            namespace.say("left out: " + ", ".join(f"{what} ({count})" for what, count in left_out.items()))
        roots.add_mount_points(Path(draft, "root"))

    return Source(name, "any", "", Entry(), fill, None, (path,), f"{name}: not verified (--insecure)")


def _extract(image: str, root: str) -> None:
    """Unpack an EROFS that this kernel mounts not, by the program that its authors give for that."""
    from imagekit import host, toolbox
    from imagekit.stores.directory import open_store

    _tell("this kernel does not mount the EROFS for us: it is unpacked, once")
    tools = toolbox.tools("fsck.erofs", store=open_store())
    owners = [] if os.geteuid() == 0 and not mounting.is_mapped() else ["--no-preserve-owner"]
    argv = tools.argv("fsck.erofs", f"--extract={root}", "--overwrite", "--preserve-perms", *owners, image)
    done = host.run(argv, ok=None)
    if done.code or b"<E>" in done.stderr + done.stdout:  # its exit status does not tell all
        raise RigProblem(f"fsck.erofs does not unpack it: {host.printable(done.stderr[-300:]).strip()}")
    os.unlink(image)  # noqa: PTH108
