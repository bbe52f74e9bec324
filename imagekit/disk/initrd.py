"""Kernel, initrd and arguments of a tree, as every format has them that starts a kernel.

The initrd is a concatenation of cached parts, each a compressed archive of its own (see disk/cpio).
"""

import zstandard

from imagekit.artifact import Written, keep
from imagekit.disk import cpio, pe, segments
from imagekit.errors import Problem
from imagekit.store import Store, Stored, flow
from imagekit.tree import Entry, Tree

LEVEL = -1  # a fifth larger than 3, and unpacked a quarter sooner, which is what a machine waits for first
RECIPE = f"cpio zstandard {zstandard.__version__} level {LEVEL}"
KERNEL, CMDLINE = "/boot/kernel", "/boot/cmdline"


def parts(tree: Tree, *, store: Store) -> list[bytes]:
    """The archives of a tree, directories first; one after the other they are the initrd.

    Raises Problem for an entry that an initrd cannot hold.
    """
    return [segments.kept(store, RECIPE, part, _packed).data for part in segments.parts(tree)]


def laid(tree: Tree, *, store: Store) -> list[bytes | Stored]:
    """The same for who uses all of them once and in order: large ones are read then."""
    return [segments.laid(store, RECIPE, part, _packed) for part in segments.parts(tree)]


def size(tree: Tree, *, store: Store) -> int:
    """Bytes of a tree's archives."""
    found = ((part, segments.size(store, RECIPE, part)) for part in segments.parts(tree))
    return sum(_made(store, part) if known is None else known for part, known in found)


def write(tree: Tree, *, store: Store, of: str = "") -> Written:
    """The initrd of a tree as one object of the store; of: the digest of the whole tree, if this is a part of it."""
    return keep(store, flow(laid(tree, store=store)), **facts(of or tree.digest))


def facts(digest: str) -> dict[str, str]:
    """What a manifest says of an initrd: its bytes depend on the compressor's version."""
    return {"compressor": RECIPE.removeprefix("cpio "), "tree": digest}


def root(tree: Tree) -> Tree:
    """The tree less what a boot takes: /boot is empty."""
    return tree.without([path for path in tree if path.startswith("/boot/") and path.count("/") == 2])


def check(tree: Tree, *, format: str, arch: str) -> None:
    """Raise a Problem when the tree has no kernel to start, or one of another architecture."""
    if KERNEL not in tree or CMDLINE not in tree:
        raise Problem(f"format {format} needs a kernel", 'give the image kernel="debian:linux-image-cloud"')
    found = _machine(tree[KERNEL])
    if found not in ("", arch):
        raise Problem(f"{KERNEL} is for {found}, and the image for {arch}", "write the lock again: `imagekit lock`")


def _machine(kernel: Entry) -> str:
    """The architecture in its headers, which are not hashed here: what a boot uses is; "" where they tell none."""
    content = kernel.content
    head = (
        content[: pe.HEAD] if isinstance(content, bytes) else content._replace(size=min(content.size, pe.HEAD)).read()
    )
    try:
        return pe.read(head, what=KERNEL, size=kernel.size).machine
    except Problem:  # compressed, or made to be started by QEMU alone
        return ""


def whole(tree: Tree, path: str, *, store: Store) -> Written:
    """One file of the tree as it is; a kernel that the store has is not written again (it is hashed when opened)."""
    entry = tree[path]
    if not store.has(entry.sha256):
        store.write([tree.read(path)])
    return Written(entry.sha256, entry.size, {})


def _made(store: Store, part: Tree) -> int:
    return len(segments.kept(store, RECIPE, part, _packed).data)


def _packed(part: Tree) -> segments.Kept:
    packed = zstandard.ZstdCompressor(level=LEVEL).compress(cpio.archive(part.items()))
    return segments.Kept(packed + bytes(-len(packed) % 4), ())  # the kernel wants each archive at a multiple of 4
