"""Read an artifact's tree back from the very bytes of its parts: what was built, told by nothing but the output.

    kernel_initrd, tar_kernel_initrd, tar    by strict readers of our own
    uki, and disks and discs                 kernel, initrd and arguments as their firmware would find them; a root on
    kernel_squashfs, kernel_erofs            the disk by the tool of its file system (sqfs2tar, fsck.erofs: only root)

What an initrd has that only finds a root on the disk must be of the tree as well.
"""

import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import BinaryIO

from imagekit import early, host
from imagekit.artifact import Opened
from imagekit.disk import containers, discoverable, gpt, guarded, initrd, loader, tarread, uki, uncpio, untar
from imagekit.disk.sparse import Sparse, of_file
from imagekit.errors import Problem, RigProblem
from imagekit.store import Store
from imagekit.toolbox import tools
from imagekit.tree import Entry, file

MOST = 8 << 30  # bytes that a part may unpack to
PIECE = 1 << 20
FOUND = (
    "imagekit.verity=",
    "imagekit.changes=",
    "rootfstype=",
    "root=",
)  # arguments that tell where a root lies, the last one first
OPENING = (early.SEAL, early.DATA)  # in an initrd, what is told of a disk that it opens; not of the tree
MAGICS = {"squashfs": (0, b"hsqs"), "erofs": (1024, b"\xe2\xe1\xf5\xe0"), "ext4": (1080, b"\x53\xef")}
READ = ("squashfs", "erofs")
Entries = Iterator[tuple[str, Entry]]


def entries(opened: Opened, *, store: Store) -> Entries:
    """Every path with its entry; raises Problem for a format or a root that cannot be read back."""
    made = opened.artifact
    roles = frozenset(part.role for part in made.parts)
    if made.format in READERS:
        yield from READERS[made.format](opened)
    elif "uki" in roles:
        yield from _started(loader.of_uki(opened.read("uki")), made.arch)
    elif "disk" in roles:
        with containers.opened(Path(f"/proc/self/fd/{opened.handles['disk']}"), most=MOST) as (_, disk):
            yield from _disk(disk, made.arch, store=store)
    elif {"kernel", "initrd", "cmdline", "root"} <= roles:
        size = os.fstat(opened.handles["root"]).st_size
        started = loader.Loaded(*(opened.read(role) for role in ("kernel", "initrd", "cmdline")))
        root = of_file(f"/proc/self/fd/{opened.handles['root']}", size)
        yield from _rooted(started, root, made.arch, store=store)
    else:
        raise Problem(
            f"the files of {made.format} cannot be read back",
            "those of kernels, archives and disks can; `imagekit rebuild` compares every byte of any format",
        )


def _initrd(opened: Opened) -> Entries:
    return _booted({role: opened.read(role) for role in ("kernel", "initrd", "cmdline")})


def _archived(opened: Opened) -> Entries:
    """An archive with the three that a boot takes."""
    names = {"/kernel": "kernel", "/initrd.img": "initrd", "/cmdline": "cmdline"}
    found: dict[str, bytes] = {}
    for path, entry in untar.members([opened.read("archive")]):
        role = names.get(path, "")
        if not role or role in found or not isinstance(entry.content, bytes):
            raise Problem(f"{path!a} is in the archive, which has {', '.join(names)} once each")
        found[role] = entry.content
    if len(found) != len(names):
        raise Problem(f"the archive has not all of {', '.join(names)}")
    return _booted(found)


def _booted(parts: Mapping[str, bytes]) -> Entries:
    yield initrd.KERNEL, file(parts["kernel"])
    yield initrd.CMDLINE, file(parts["cmdline"])
    yield from uncpio.members(parts["initrd"], most=MOST)


def _tar(opened: Opened) -> Entries:
    stream = untar.Stream(_unpacked(opened.read("root")))
    for head in untar.heads(stream):
        total = sha256()
        for piece in untar.body(stream, head.entry.size):
            total.update(piece)
        digest = total.hexdigest() if head.entry.kind == "file" else ""
        yield head.path, head.entry._replace(sha256=digest)


def _unpacked(packed: bytes) -> Iterator[bytes]:
    unpacker, size = zlib.decompressobj(31), 0
    try:
        while not unpacker.eof:
            piece = unpacker.decompress(packed, PIECE)
            size += len(piece)
            if (not piece and not unpacker.eof and not unpacker.unconsumed_tail) or size > MOST:
                raise Problem("the archive is cut short, or unpacks to too much")
            packed = unpacker.unconsumed_tail
            if piece:
                yield piece
    except zlib.error as error:
        raise Problem(f"the archive is broken: {error}") from error
    if unpacker.unused_data:
        raise Problem("something follows the end of the archive")


READERS = {"kernel_initrd": _initrd, "tar_kernel_initrd": _archived, "tar": _tar}


# --- what firmware starts ---------------------------------------------------------------------------------------------


def _started(found: loader.Loaded, arch: str) -> Entries:
    """A tree that is in the initrd whole."""
    whole = _booted({"kernel": found.kernel, "initrd": found.initrd, "cmdline": _own(found.arguments, arch)})
    return ((path, entry) for path, entry in whole if path not in OPENING)


def _disk(disk: Sparse, arch: str, *, store: Store) -> Entries:
    found = loader.find(disk, arch=arch)
    at = next((part for part in _partitions(disk) if part.type == discoverable.ROOTS[arch]), None)
    if at is None:
        return _started(found, arch)
    return _rooted(found, disk.part(at.start, at.size), arch, store=store)


def _partitions(disk: Sparse) -> tuple[gpt.Partition, ...]:
    try:
        return gpt.read(disk)
    except Problem:  # a disc, which has its whole tree in the initrd
        return ()


def _rooted(found: loader.Loaded, root: Sparse, arch: str, *, store: Store) -> Entries:
    """A tree whose root lies apart; what is in the initrd must be of it."""
    kind = next((kind for kind, (at, magic) in MAGICS.items() if root.read(at, len(magic)) == magic), "")
    if kind not in READ:
        raise Problem(
            f"a root of {kind or 'an unknown kind'} cannot be read back", f"{', '.join(READ)} can; `imagekit rebuild` "
            "compares every byte of any format"
        )  # fmt: skip
    of_root = dict(_squashfs(root, store) if kind == "squashfs" else _erofs(root, store))
    for path, entry in uncpio.members(found.initrd, most=MOST):
        is_ours = entry.kind == "dir" or path in (early.INITRD, "/init", *OPENING)
        if not is_ours and (path not in of_root or of_root[path].identity != entry.identity):
            raise Problem(f"{path!a} of the initrd is not as the root has it")
    yield initrd.KERNEL, file(found.kernel)
    yield initrd.CMDLINE, file(_own(found.arguments, arch))
    yield from of_root.items()


def _own(arguments: bytes, arch: str) -> bytes:
    """The image's own arguments, without those that a format added behind them (disk/uki.arguments)."""
    kernel, dashes, init = f" {arguments.decode('utf-8', 'surrogateescape').strip()} ".partition(" -- ")
    words, consoles = kernel.split(), uki.CONSOLES[arch].split()
    is_again = words[-1:] == [f"panic={guarded.AGAIN}"]
    if is_again and ((words[-2:-1] and words[-2].startswith(FOUND[0])) or words[-1 - len(consoles) : -1] == consoles):
        words.pop()  # of an image in two slots that says nothing of it
    for begin in FOUND:
        if words and words[-1].startswith(begin):
            words.pop()
    if words[-len(consoles) :] == consoles:
        del words[-len(consoles) :]
    return (" ".join(words) + (dashes + init).rstrip() + "\n").encode("utf-8", "surrogateescape")


# --- file systems -----------------------------------------------------------------------------------------------------


def _squashfs(root: Sparse, store: Store) -> Entries:
    with _copied(root) as image, TemporaryFile() as tar:
        _run("sqfs2tar", "--root-becomes", ".", _path(image), store=store, output=tar)
        tar.seek(0)
        reader = tarread.Reader(iter(lambda: tar.read(PIECE), b""), most=MOST)
        while (member := reader.member()) is not None:
            total = sha256()
            for piece in reader.body():
                total.update(piece)
            path, entry = _entry(member, total.hexdigest())
            if path != "/":
                yield path, entry


def _entry(member: tarread.Member, digest: str) -> tuple[str, Entry]:
    kind = untar.KINDS[member.kind]
    target = os.fsdecode(member.target)
    xattrs = tuple(sorted((name.decode(), value) for name, value in member.xattrs.items()))
    return "/" + os.fsdecode(member.name), Entry(
        kind,
        member.mode,
        member.uid,
        member.gid,
        member.size,
        digest if kind == "file" else "",
        "/" + target if kind == "hardlink" else target,
        member.device if kind in ("char", "block") else (0, 0),
        xattrs,
    )


def _erofs(root: Sparse, store: Store) -> Entries:
    """By its authors' program, which unpacks: only root may give files their owners, and make devices."""
    if os.geteuid():
        raise Problem("only root can read a root of erofs back", "`imagekit rebuild` compares every byte of any format")
    with _copied(root) as image, TemporaryDirectory() as folder, TemporaryFile() as said:
        _run("fsck.erofs", f"--extract={folder}/root", "--preserve", "--xattrs", _path(image), store=store, output=said)
        yield from _walked(f"{folder}/root", "", {})


def _walked(top: str, below: str, known: dict[int, str]) -> Entries:
    for item in sorted(os.scandir(f"{top}{below}"), key=lambda item: item.name):
        path, about = f"{below}/{item.name}", item.stat(follow_symlinks=False)
        kind = KINDS[stat.S_IFMT(about.st_mode)]
        first = known.setdefault(about.st_ino, path) if kind == "file" else path
        names = os.listxattr(item.path, follow_symlinks=False)
        xattrs = tuple(sorted((name, os.getxattr(item.path, name, follow_symlinks=False)) for name in names))
        device = (os.major(about.st_rdev), os.minor(about.st_rdev)) if kind in ("char", "block") else (0, 0)
        if first != path:
            kind = "hardlink"
        size, digest = (0, "") if kind != "file" else (about.st_size, _digest(item.path))
        target = first if kind == "hardlink" else os.readlink(item.path) if kind == "symlink" else ""  # noqa: PTH115
        mode = stat.S_IMODE(about.st_mode)
        yield path, Entry(kind, mode, about.st_uid, about.st_gid, size, digest, target, device, xattrs)
        if kind == "dir":
            yield from _walked(top, path, known)


KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "symlink", stat.S_IFCHR: "char",
         stat.S_IFBLK: "block", stat.S_IFIFO: "fifo"}  # fmt: skip


def _digest(path: str) -> str:
    total = sha256()
    with open(path, "rb") as content:
        while piece := content.read(PIECE):
            total.update(piece)
    return total.hexdigest()


def _copied(root: Sparse) -> BinaryIO:
    """The bytes of a partition as a file without a name, for a tool."""
    copy = TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        for at, chunk in root.filled(PIECE):
            copy.seek(at)
            copy.write(chunk)
        copy.truncate(root.size)
        copy.flush()
    except BaseException:
        copy.close()
        raise
    return copy


def _path(copy: BinaryIO) -> str:
    return f"/proc/{os.getpid()}/fd/{copy.fileno()}"


def _run(tool: str, *words: str, store: Store, output: BinaryIO) -> None:
    with TemporaryFile() as said:
        found = tools(tool, store=store)
        process = host.launch(found.argv(tool, *words), env=found.env, stdout=output, stderr=said)
        try:
            code = process.wait()
        finally:
            host.end(process)
        said.seek(0)
        told = host.printable(said.read(PIECE)[-2000:]).strip()
    if code or "<E>" in told:
        raise RigProblem(f"{tool} ended with {code}: {told or 'without a word'}")
