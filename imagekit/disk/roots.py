"""Roots: a tree as a file system on a disk, read-only, and the empty one that keeps what is changed.

Each is made without privileges by a pinned tool that takes the canonical tar as a stream; nothing is unpacked. What
was made once is kept in the store, by the digest of the tree and the tool's version.

    squashfs    zstd; the smallest
    erofs       lz4, which is all that Linux 6.1 knows; the fastest to read
    ext4        no compression, no journal
"""

import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

from imagekit import host, room
from imagekit.artifact import Job, Written
from imagekit.disk import ids, tar
from imagekit.errors import Defect, Problem, RigProblem, unknown
from imagekit.tree import Entry, Slice, Tree, directory

CHUNK = 1 << 20
NOTE = "roots"
LITTLE = 1 << 20  # bytes of room that are none
BLOCK = 4096  # bytes; a tool would take the page size of the machine it runs on
BLOCKS_PER_GROUP = 32768  # of ext4: what one block of bitmap can tell of
INODE = 256  # bytes of an inode of ext4; what its attributes take beyond that is a block
LARGEST = 16 << 40  # bytes of an ext4 with 32 bits of block numbers
TRIES = 4
ENVIRONMENT = {
    "SOURCE_DATE_EPOCH": "0",
    "MKE2FS_CONFIG": "/dev/null",  # this machine's would have a say
}
EXT4 = (  # every feature by name: what a version has for a default is its own affair
    "none,sparse_super,large_file,filetype,dir_index,ext_attr,extent,flex_bg,huge_file,dir_nlink,extra_isize,"
    "metadata_csum,64bit"
)
# Reserved for group descriptors of a larger disk; beyond it the kernel goes on without (meta_bg). Each of these blocks
# must fit into a transaction, which is a quarter of the journal: for 2 TiB it refused to grow at all (ENOSPC).
GROWS_TO = 1 << 40  # bytes
ROOT = [("/.", directory())]  # the entry "./": without it a tool takes the caller's id and umask, or its own idea


class Maker(NamedTuple):
    """How one kind is made."""

    tool: str
    argv: Callable[[Path, str, int], list[str | Path]]  # (output, seed, size in blocks)
    xattrs: tuple[str, ...]  # prefixes of the attributes that arrive
    recipe: str  # what decides the bytes beside tool, version, tree and seed


def _squashfs(output: Path, seed: str, blocks: int) -> list[str | Path]:
    _ = seed, blocks
    return ["--quiet", "--force", "--no-skip", "--compressor", "zstd", "--comp-extra", "level=3", output]


def _erofs(output: Path, seed: str, blocks: int) -> list[str | Path]:
    _ = blocks
    uuid = ids.guid(seed, "root file system")
    return ["--quiet", "-T0", "--all-time", f"-b{BLOCK}", "-zlz4", f"-U{uuid}", "--tar=f", output]


def _ext4(output: Path, seed: str, blocks: int) -> list[str | Path]:
    return [*_mke2fs(seed, "root file system"), "-O", EXT4, "-T", "default", "-d", "-", output, str(blocks)]


def _mke2fs(seed: str, what: str) -> list[str | Path]:
    uuid, hash_seed = ids.guid(seed, what), ids.guid(seed, f"{what} hash")
    options = f"hash_seed={hash_seed},root_owner=0:0,nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    return ["-q", "-F", "-b", str(BLOCK), "-I", str(INODE), "-m", "0", "-o", "Linux", "-U", str(uuid), "-E", options]


MAKERS = {
    "squashfs": Maker("tar2sqfs", _squashfs, ("user.", "trusted.", "security."), "1 zstd level 3"),
    "erofs": Maker("mkfs.erofs", _erofs, ("user.", "trusted.", "security.", "system.posix_acl_"), "1 lz4"),
    "ext4": Maker("mke2fs", _ext4, ("security.",), f"1 {EXT4}"),
}


def write(tree: Tree, *, kind: str, seed: str, job: Job) -> Slice:
    """A tree as a file system: a whole file of the store. See `written`."""
    return _slice(written(tree, kind=kind, seed=seed, job=job), job)


def written(tree: Tree, *, kind: str, seed: str, job: Job) -> Written:
    """A tree as a file system "squashfs", "erofs" or "ext4"; its ids derive from the seed.

    Raises Problem for what that kind cannot hold, RigProblem when the tool fails or there is no room.
    """
    if kind not in MAKERS:
        raise unknown("kind of root", kind, MAKERS)
    maker, whole = MAKERS[kind], tree.complete()
    _check(whole, kind)
    version = job.tools(maker.tool).version(maker.tool)
    recipe = f"{maker.tool} {version} {maker.recipe}"
    key = sha256(f"{recipe}\n{whole.digest}\n{seed}".encode()).hexdigest()
    facts = {"compressor": recipe, "tree": tree.digest}
    return _kept(job, key, facts) or _made(job, key, facts, lambda draft: _make(maker, whole, seed, job, draft))


def of_tar(chunks: Iterable[bytes], output: Path, *, seed: str, job: Job) -> str:
    """Write the EROFS of a tar's files, whoever made the tar; gives what decides its bytes beside them."""
    maker = MAKERS["erofs"]
    _run(job, maker.tool, maker.argv(output, seed, 0), chunks)
    return f"{maker.tool} {job.tools(maker.tool).version(maker.tool)} {maker.recipe}"


def changes(size: int, *, seed: str, job: Job, label: str = "changes") -> Slice:
    """An empty ext4 of `size` bytes with a journal, which a running kernel can make larger, as large as the disk."""
    version = job.tools("mke2fs").version("mke2fs")
    key = sha256(f"mke2fs {version} 1 {EXT4} {size} {GROWS_TO} {label}\n{seed}".encode()).hexdigest()
    return _slice(_kept(job, key, {}) or _made(job, key, {}, lambda draft: _empty(size, seed, label, job, draft)), job)


# --- what was made before ---------------------------------------------------------------------------------------------


def _slice(made: Written, job: Job) -> Slice:
    return Slice(str(job.store.path(made.sha256)), 0, made.size)


def _kept(job: Job, key: str, facts: dict[str, str]) -> Written | None:
    """What the store has under this key, if its bytes are still the ones that were made."""
    note = job.store.recall(NOTE, key)
    if note is None:
        return None
    try:
        digest, size = json.loads(note)
        total = sha256()
        for chunk in _chunks(job.store.path(digest)):
            total.update(chunk)
    except (KeyError, ValueError, OSError):
        return None  # lost, which costs no more than making it again
    return Written(digest, size, facts) if total.hexdigest() == digest else None


def _made(job: Job, key: str, facts: dict[str, str], make: Callable[[Path], None]) -> Written:
    with host.once(job.store.folder("locks"), f"root-{key}", say=job.say):
        found = _kept(job, key, facts)
        if found:
            return found
        with _draft(job.store.folder("drafts-of-roots")) as draft:
            make(draft)
            size = draft.stat().st_size
            with closing(_chunks(draft)) as chunks:  # else an error on its way keeps the file open, and its room taken
                digest = job.store.write(chunks)
    job.store.remember(NOTE, key, json.dumps([digest, size]).encode())
    return Written(digest, size, facts)


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A file for a tool to write to, which is gone afterwards; so are those whose makers were killed."""
    for old in folder.iterdir():
        host.remove_abandoned(old)
    path = folder / f"{os.getpid()}-{os.urandom(8).hex()}"
    try:
        with host.open_draft(path):
            yield path
    except OSError as error:
        raise RigProblem(f"cannot write {path}: {error.strerror}", room.hint(folder.parent, error)) from error
    finally:
        path.unlink(missing_ok=True)


def _chunks(path: Path) -> Generator[bytes, None, None]:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk


# --- making it --------------------------------------------------------------------------------------------------------


def _check(tree: Tree, kind: str) -> None:
    """Raise a Problem for an attribute that the tool would leave out without a word, and for names too long."""
    for path, entry in tree.items():
        lost = [name for name, _ in entry.xattrs if not name.startswith(MAKERS[kind].xattrs)]
        if lost:
            raise Problem(
                f"{path} has the extended attribute {lost[0]}, which cannot be written to {kind}",
                f"{kind} takes {', '.join(f'{prefix}*' for prefix in MAKERS[kind].xattrs)}",
            )
        if len(os.fsencode(path.rpartition("/")[2])) > 255:
            raise Problem(f"{path}: a file system takes names of 255 bytes at most")


def _make(maker: Maker, tree: Tree, seed: str, job: Job, draft: Path) -> None:
    if maker.argv is not _ext4:
        return _run(job, maker.tool, maker.argv(draft, seed, 0), _stream(tree))
    blocks, inodes = _ext4_size(tree)
    for number in range(TRIES):
        draft.write_bytes(b"")
        try:
            return _run(job, maker.tool, ["-N", str(inodes), *maker.argv(draft, seed, blocks)], _stream(tree))
        except RigProblem as problem:
            full = "Could not allocate" in problem.message or "No free space" in problem.message
            if not full or number == TRIES - 1:
                raise
        blocks += blocks // 8  # counted too closely: as deterministic as the tree
    return None


def _stream(tree: Tree) -> Iterable[bytes]:
    return chain(tar.chunks(ROOT), tar.chunks(tree.items(), binary=True), [tar.END])


def _run(job: Job, tool: str, words: list[str | Path], chunks: Iterable[bytes] = ()) -> None:
    """Feed a tool; raises RigProblem with its words when it fails, or warns of what it left out."""
    from subprocess import DEVNULL, PIPE
    from tempfile import TemporaryFile

    tools = job.tools(tool)
    with TemporaryFile() as said:  # no pipe, which would fill up while we write to the other one
        process = host.launch(
            tools.argv(tool, *words), env={**tools.env, **ENVIRONMENT}, stdin=PIPE, stdout=DEVNULL, stderr=said
        )
        try:
            _feed(process.stdin, chunks)
            code = process.wait()
        finally:
            host.end(process)
        said.seek(0)
        lines = dict.fromkeys(host.printable(said.read(CHUNK)[-2000:]).splitlines())  # some repeat themselves
    if code:
        told = "\n".join(line for line in lines if line.strip()) or "without a word"
        raise RigProblem(f"{tool} ended with {code}: {told}", _hint(told, Path(job.store.location)))


def _feed(pipe: IO[bytes] | None, chunks: Iterable[bytes]) -> None:
    if pipe is None:
        raise Defect("a tool without an input was to be fed")
    with suppress(BrokenPipeError):  # it has died, and says why
        for chunk in chunks:
            pipe.write(chunk)
        pipe.close()


def _hint(told: str, cache: Path) -> str:
    """What to do about it; a tool that could not write may speak of checksums instead of room."""
    from shutil import disk_usage
    from tempfile import gettempdir

    full = [str(place) for place in (cache, Path(gettempdir())) if disk_usage(place).free < LITTLE]
    if not full and "No space left" not in told:
        return ""
    return f"make room{' in ' + full[0] if full else ''}, or set IMAGEKIT_CACHE and TMPDIR"


# --- ext4 -------------------------------------------------------------------------------------------------------------


def _empty(size: int, seed: str, label: str, job: Job, draft: Path) -> None:
    options = [*_mke2fs(seed, label)]
    options[-1] = f"{options[-1]},resize={GROWS_TO // BLOCK}"
    inodes = min(8192, size // BLOCK)  # of every group of 128 MiB to come, too
    words = ["-N", str(inodes), "-L", label, "-O", f"{EXT4},has_journal,resize_inode", "-J", "size=4"]
    _run(job, "mke2fs", [*options, *words, draft, str(size // BLOCK)])


def _ext4_size(tree: Tree) -> tuple[int, int]:
    """How many blocks and inodes a tree takes: as few as will do, since nobody writes to it."""
    inodes = sum(entry.kind != "hardlink" for entry in tree.values()) + 16  # 11 are ext4's own
    content = sum(_entry_blocks(entry) for entry in tree.values()) + _folder_blocks(tree) + 8  # lost+found: 4
    content += -(-inodes * INODE // BLOCK)
    groups = -(-content // BLOCKS_PER_GROUP) + 1
    descriptors = -(-groups * 64 // BLOCK) + 1
    blocks = (
        content + content // 200 + groups * 8 + min(groups, 40) * descriptors + 32
    )  # copies: groups 1, 3, 5, 7, 9...
    if blocks * BLOCK > LARGEST:
        raise Problem(f"the tree takes {blocks * BLOCK} bytes of ext4, more than the {LARGEST} that it can have")
    return blocks, inodes


def _entry_blocks(entry: Entry) -> int:
    data = entry.size if entry.kind == "file" else len(os.fsencode(entry.target)) if entry.kind == "symlink" else 0
    own = 0 if entry.kind == "symlink" and data < 60 else -(-data // BLOCK)  # a short one lies in the inode
    extents = own // BLOCKS_PER_GROUP // 3  # four lie in the inode
    return own + extents + bool(entry.xattrs)


def _folder_blocks(tree: Tree) -> int:
    """Blocks of directories: entries of 8 bytes and a name, never across blocks ("Linear Directories")."""
    used: dict[str, int] = {"": 24}
    for path, entry in tree.items():
        parent, _, name = path.rpartition("/")
        used[parent] = used.get(parent, 24) + 12 + len(os.fsencode(name))
        if entry.kind == "dir":
            used.setdefault(path, 24)
    return sum(-(-size // (BLOCK - 272)) for size in used.values())
