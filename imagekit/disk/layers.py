"""Layers of a container image: one per owner, each a tar.gz made once and kept in the store.

OCI Image Format Specification 1.1, "Image Layer Filesystem Changeset". The layers are a plain union: nothing is
removed by a later one, so there are no whiteouts.
"""

from collections.abc import Iterator
from hashlib import sha256
from itertools import chain
from typing import NamedTuple

from imagekit.disk import gzip, segments, tar
from imagekit.errors import Problem
from imagekit.store import Store
from imagekit.tree import Entry, Slice, Tree

MOST = 100  # Docker stacks 125 at most (moby, maxLayerDepth), overlayfs 500; who builds upon the image needs some too
RECIPE = f"layer 2 {gzip.VERSION}"  # raise the number when other bytes are written
FOLDERS, OTHERS, LAST = "folders", "others", "image"
WHITEOUT = ".wh."  # such a name means that another is removed


class Layer(NamedTuple):
    """A layer in the store, and what an image's configuration says of it."""

    owner: str
    sha256: str  # of the compressed bytes
    size: int
    diff_id: str  # sha256 of the tar

    def entry(self, store: Store) -> Entry:
        """The layer as a file of an archive."""
        return Entry("file", 0o644, size=self.size, sha256=self.sha256, content=Slice(
            str(store.path(self.sha256)), 0, self.size))  # fmt: skip


def layers(tree: Tree, *, store: Store) -> list[Layer]:
    """All folders first, then every owner's files with the folders above them, the image's own at last.

    The folders come again because some readers make those that a layer lacks up, and theirs hide the right ones.
    Raises Problem for a name that means something else in a layer.
    """
    for path in tree:
        if f"/{WHITEOUT}" in path:
            raise Problem(f"{path}: a name that begins with {WHITEOUT} removes another in a container image")
    return [_layer(owner, part, store) for owner, part in _divided(tree) if part]


def _divided(tree: Tree) -> Iterator[tuple[str, Tree]]:
    yield FOLDERS, tree.filter(lambda path: tree[path].kind == "dir")
    owners = tree.filter(lambda path: tree[path].kind != "dir").by_owner()
    largest = sorted(owners, key=lambda owner: (-owners[owner].size, owner))
    alone = [owner for owner in largest if owner != LAST][: MOST - 3]
    others = Tree(chain.from_iterable(owners[owner].items() for owner in set(owners) - {*alone, LAST}))
    for owner in sorted(alone):
        yield owner, _standing(owners[owner], tree)
    yield OTHERS, _standing(others, tree)
    yield LAST, _standing(owners.get(LAST, Tree()), tree)


def _standing(part: Tree, tree: Tree) -> Tree:
    """The part with the folders above it as they are in the tree."""
    folders = set()
    for path in part:
        while path := path.rpartition("/")[0]:
            folders.add(path)
    return Tree({**{path: tree[path] for path in sorted(folders & tree.keys())}, **part})


def _layer(owner: str, part: Tree, store: Store) -> Layer:
    kept = segments.kept(store, RECIPE, part, _made)
    return Layer(owner, sha256(kept.data).hexdigest(), len(kept.data), f"{kept.facts[0]:064x}")


def _made(part: Tree) -> segments.Kept:
    total = sha256()

    def hashed(chunk: bytes) -> bytes:
        total.update(chunk)
        return chunk

    made = gzip.joined(map(hashed, run) for run in chain(tar.runs(part.items()), [[tar.END]]))
    return segments.Kept(b"".join(gzip.member([made])), (int(total.hexdigest(), 16),))
