"""Deep verification: from a trusted key to every file, and the first thing on that way that does not fit.

The key signed the manifest; the manifest names each part by sha256, each package by the digest of its tree, and the
whole tree by its digest. The tree is read back from the very bytes of the parts. What it comes to must have the digest
that the manifest names; each package that is here must be the one that the manifest names, and have its files so.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, combinations
from typing import Any

from imagekit import arch, assets, readback, seen
from imagekit.artifact import Artifact
from imagekit.disk import initrd
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.package import Package
from imagekit.sources import _deb
from imagekit.store import Store
from imagekit.tree import Entry, Tree

DEBS = ("debian", "deb")  # sources whose packages are kept by the sha256 of what was fetched
FIELDS = ("kind", "mode", "uid", "gid", "size", "sha256", "target", "device", "xattrs")
NAMED = 5  # packages that a line names
Row = Mapping[str, Any]


def check(made: Artifact, *, key: Key, store: Store, allow_rollback: bool = False) -> list[str]:
    """What was found of an artifact, in lines; raises Problem that names the first thing that does not fit.

    allow_rollback: take an image that is older than one that was verified here.
    """
    made.verify_manifest(key)
    if not allow_rollback:
        seen.check(made, by=key, store=store)
    rows = _rows(made)
    packages = {row["sha256"]: _package(row, rows, made, store) for row in rows}
    here = [package for package in packages.values() if package]
    tree = _tree(made, key, store)
    brought = _brought(here)
    _check_tree(made, tree, here, brought)
    seen.remember(made, by=key, store=store)
    return list(_told(tree, brought, [row for row in rows if packages[row["sha256"]] is None], len(rows)))


def _told(tree: Tree, brought: Mapping[str, Entry], lacking: Sequence[Row], count: int) -> Iterator[str]:
    """What was compared, and what was not."""
    files = [path for path, entry in tree.items() if entry.kind != "dir"]
    of_packages = [path for path in files if path in brought]
    others = [path for path in of_packages if tree[path].identity != brought[path].identity]
    same = len(of_packages) - len(others)
    yield f"deep: {len(files)} files have the tree that the manifest names; {same} are those of their packages"
    if others:
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        yield f"deep: as the image has them, not their packages: {', '.join(map(ascii, others[:NAMED]))}{more}"
    yield f"deep: {count - len(lacking)} of {count} packages are here, and are those that the manifest names"
    for is_deb, why in ((True, "not in the cache, `imagekit build` fetches them"), (False, "no .deb")):
        names = [f"{row['name']} {row['version']}" for row in lacking if (row["source"] in DEBS) == is_deb]
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            yield f"deep: not compared: {', '.join(names[:NAMED])}{more} ({why})"


def _rows(made: Artifact) -> list[Row]:
    rows = made.manifest.get("packages")
    names = ("name", "version", "architecture", "sha256", "digest", "source")
    if not isinstance(rows, list) or not all(isinstance(r, dict) and all(type(r.get(n)) is str for n in names)
                                             for r in rows):  # fmt: skip
        raise Problem(
            f"{made.path.name} does not name its packages by digest", "an older imagekit wrote it: build again"
        )
    return rows


def _package(row: Row, rows: Sequence[Row], made: Artifact, store: Store) -> Package | None:
    """The package of a row, if it is here; Problem unless it is what the row says."""
    if row["source"] not in DEBS:
        return None
    who = f"{row['name']} {row['version']} {row['architecture']}"
    if row["architecture"] not in ("all", arch.arch(made.arch).debian):
        raise Problem(f"package {who} is of another architecture than the image, which is for {made.arch}")
    package = _deb.load(row["sha256"], store)
    if package is None:
        return None
    found = f"{package.name} {package.version} {package.architecture}"
    if found != who:
        raise Problem(f"package {who}: what has its sha256 is {found}: two packages were swapped")
    if (digest := Tree(package.tree).digest) != row["digest"]:
        other = next((f", which it has for {r['name']}: two packages were swapped" for r in rows
                      if r["digest"] == digest), "")  # fmt: skip
        raise Problem(f"package {who} has the tree {digest}{other}; the manifest names {row['digest']}")
    return package


def _brought(packages: Iterable[Package]) -> dict[str, Entry]:
    """What the packages bring; of what several bring, the first counts."""
    brought: dict[str, Entry] = {}
    for package in packages:
        for path, entry in package.tree.items():
            brought.setdefault(path, entry)
    return brought


def _check_tree(made: Artifact, tree: Tree, packages: Sequence[Package], brought: Mapping[str, Entry]) -> None:
    named = made.manifest.get("tree")
    if any(whole.digest == named for whole in _wholes(made, tree, packages)):
        return
    for path in tree.paths:
        own, of = tree[path], brought.get(path)
        if of is not None and own.kind != "dir" and own.identity != of.identity:
            what = next(name for name in FIELDS if getattr(own, name) != getattr(of, name))
            raise Problem(
                f"{path!a} is not as package {of.owner} has it: {what} {getattr(own, what)!a:.100}, and there "
                f"{getattr(of, what)!a:.100}",
                f"the tree has another digest than the manifest's {named}",
            )
    raise Problem(
        f"the files have the tree {tree.digest}, and the manifest names {named!a}",
        "none that a package brings differs: one of the image's own does, or one is missing or too many",
    )


def _wholes(made: Artifact, tree: Tree, packages: Sequence[Package]) -> Iterator[Tree]:
    """The tree, and as it is with what other formats of the image take from below /boot, which no initrd carries."""
    yield tree
    if "/boot/kernel" in tree:
        known = [name for name in assets.ASSETS if made.arch in assets.ASSETS[name].packages]
        for names in chain.from_iterable(combinations(known, count) for count in range(1, len(known) + 1)):
            try:
                yield tree.override(assets.tree(names, packages)).complete()
            except Problem:  # the package is not here, and so it is none of these
                continue


def _tree(made: Artifact, key: Key, store: Store) -> Tree:
    entries: dict[str, Entry] = {}
    with made.opened(key) as opened:
        for path, entry in readback.entries(opened, store=store):
            if path in entries:
                raise Problem(f"{path!a} is in the artifact twice")
            entries[path] = entry
    tree = Tree(entries)
    if initrd.KERNEL in tree:
        initrd.check(tree, format=made.format, arch=made.arch)
    return tree
