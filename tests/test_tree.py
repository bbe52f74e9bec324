"""A Tree is a value: the same content has the same digest, a union has no order, and every byte read is checked."""

import itertools
import os
from pathlib import Path

import pytest

from imagekit.errors import Problem, RigProblem
from imagekit.tree import Entry, Slice, Tree, below_symlink, directory, file, folder_tree, symlink, union

A = Tree({"/usr": directory(owner="a"), "/usr/a": file(b"a", owner="a")})
B = Tree({"/usr": directory(owner="b"), "/usr/b": file(b"bb", mode=0o755, owner="b")})
C = Tree({"/etc": directory(owner="c"), "/etc/link": symlink("../usr/a", owner="c"), "/usr": directory(owner="c")})


def linked() -> Tree:
    """One file under three names."""
    whole = {"/a": file(b"data"), "/b": Entry("hardlink", target="/a"), "/c": Entry("hardlink", target="/a")}
    return Tree({"/keep": file(b"k"), **whole})


@pytest.mark.parametrize("order", list(itertools.permutations((A, B, C))))
def test_a_union_has_no_order(order: tuple[Tree, ...]) -> None:
    whole, same = union(order), A | B | C
    assert whole == same
    assert whole.digest == same.digest
    assert hash(whole) == hash(same)
    assert whole.paths == ("/etc", "/etc/link", "/usr", "/usr/a", "/usr/b")
    assert {path: entry.owner for path, entry in whole.items()} == {path: entry.owner for path, entry in same.items()}
    assert {name: part.digest for name, part in whole.by_owner().items()} == {
        name: part.digest for name, part in same.by_owner().items()
    }


def test_a_union_with_itself_is_itself() -> None:
    assert A | A == A
    assert Tree() | A == A
    assert union([]) == Tree()


ENTRY = file(b"a", owner="one")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (file(b"b", owner="two"), "sha256"),
        (file(b"aa", owner="two"), "size 1 against 2"),
        (file(b"a", mode=0o755, owner="two"), "mode 0o644 against 0o755"),
        (file(b"a", uid=5, owner="two"), "uid 0 against 5"),
        (file(b"a", gid=5, owner="two"), "gid 0 against 5"),
        (directory(owner="two"), "kind file against dir"),
        (symlink("a", owner="two"), "kind file against symlink"),
        (ENTRY._replace(xattrs=(("security.capability", b"x"),), owner="two"), "xattrs"),
    ],
)
def test_a_conflict_names_path_owners_and_difference(other: Entry, words: str) -> None:
    with pytest.raises(Problem) as caught:
        Tree({"/x": ENTRY}) | Tree({"/x": other})
    assert "/x differs between one and two" in caught.value.message
    assert words in caught.value.message
    assert "without" in caught.value.hint
    assert Tree({"/x": ENTRY}).digest != Tree({"/x": other}).digest


def test_owner_and_place_of_the_bytes_are_no_part_of_the_identity(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"..a")
    elsewhere = ENTRY._replace(owner="two", content=Slice(str(tmp_path / "bytes"), 2, 1))
    assert Tree({"/x": elsewhere}) == Tree({"/x": ENTRY})
    assert (Tree({"/x": elsewhere}) | Tree({"/x": ENTRY}))["/x"].owner == "one"
    assert Tree({"/x": elsewhere}).read("/x") == b"a"


def test_the_digest_is_promised() -> None:
    """Locks, caches and manifests hold it: to change it is to change a file format."""
    device = Entry("char", 0o666, device=(1, 3))
    odd = file(b"", mode=0o4755)._replace(xattrs=(("user.a", b"\0\xff"),))
    tree = Tree({"/a": file(b"a", uid=1), "/d": directory(0o700), "/d/l": symlink("../a"), "/n": device, "/x": odd})
    assert Tree().digest == "aa9b575a13ff4472f2314e65f4be13d324f2d9a294521f47c55f5d40fa542515"
    assert tree.digest == "0610591629a3a8d28fd0128d9c1713c23e511512e2153f36ed175d7b9b48a1be"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"b", "are not what they were"),
        (b"", "are not what they were"),
        (Slice("missing", 0, 1), "cannot read missing"),
    ],
)
def test_bytes_that_changed_are_never_used(content: bytes | Slice, words: str) -> None:
    with pytest.raises(RigProblem, match=words):
        Tree({"/x": ENTRY._replace(content=content)}).read("/x")


@pytest.mark.parametrize("size", [0, 2])
def test_a_stored_file_that_was_cut_is_never_used(tmp_path: Path, size: int) -> None:
    (tmp_path / "bytes").write_bytes(bytes(size))
    with pytest.raises(RigProblem, match="shorter than it was"):
        Slice(str(tmp_path / "bytes"), 0, 3).read()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing", "/missing is not in the tree"),
        ("/etc", "/etc is a dir, not a file"),
        ("/etc/link", "/etc/link is a symlink, not a file"),
    ],
)
def test_what_is_no_file_cannot_be_read(path: str, words: str) -> None:
    with pytest.raises(Problem, match=words):
        (A | C).read(path)


def test_hard_links_share_bytes() -> None:
    assert linked().read("/b") == linked().read("/c") == b"data"


@pytest.mark.parametrize(("target", "words"), [("/x", "/x is a hardlink"), ("/gone", "/gone is not in the tree")])
def test_a_hard_link_to_no_file_is_a_problem(target: str, words: str) -> None:
    with pytest.raises(Problem, match=words):
        Tree({"/x": Entry("hardlink", target=target)}).read("/x")


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ("/a", {"/keep": "file", "/b": "file", "/c": "hardlink"}),
        ("/b", {"/keep": "file", "/a": "file", "/c": "hardlink"}),
        ("/keep", {"/a": "file", "/b": "hardlink", "/c": "hardlink"}),
    ],
)
def test_leaving_a_name_out_leaves_its_links_whole(gone: str, left: dict[str, str]) -> None:
    rest = linked().without([gone])
    assert {path: entry.kind for path, entry in rest.items()} == left
    assert all(rest.read(path) for path in rest)


def test_leaving_out_takes_what_is_below_and_nothing_beside() -> None:
    tree = Tree({p: directory() for p in ("/doc", "/doc/a", "/doc/a/b", "/docs", "/x/doc")})
    assert set(tree.without(["/doc/"])) == {"/docs", "/x/doc"}
    assert tree.without(["/nothing"]) is tree


def test_parents_are_completed_once() -> None:
    whole = Tree({"/a/b/c": file(b""), "/a": directory(0o700)}).complete()
    assert whole.paths == ("/a", "/a/b", "/a/b/c")
    assert whole["/a"].mode == 0o700
    assert whole["/a/b"].mode == 0o755
    assert whole.complete() is whole


def test_paths_are_sorted_by_their_components() -> None:
    names = ("a", "a-", "a.b", "a\x01", "é", "\udcff", "A", "0", "a a")
    paths = [f"/{one}" for one in names] + ["/" + "/".join(two) for two in itertools.product(names, names)]
    tree = Tree({path: directory() for path in paths})
    assert list(tree.paths) == sorted(paths, key=lambda path: path.split("/"))


def test_paths_list_parents_first() -> None:
    assert Tree({p: directory() for p in ("/a-b", "/a/b", "/a", "/a.b")}).paths == ("/a", "/a/b", "/a-b", "/a.b")


def test_override_replaces() -> None:
    assert Tree({"/x": ENTRY}).override(Tree({"/x": directory()}))["/x"].kind == "dir"


def test_sizes_are_largest_first() -> None:
    assert (A | B).sizes() == {"b": 2, "a": 1}
    assert list((A | B).sizes()) == ["b", "a"]
    assert (A | B).size == 3


@pytest.mark.parametrize(
    ("tree", "found"),
    [
        ({"/lib": symlink("usr/lib"), "/lib/x": file(b"")}, ("/lib/x", "/lib")),
        ({"/f": file(b""), "/f/x/y": file(b"")}, ("/f/x/y", "/f")),
        ({"/usr": directory(), "/usr/lib": symlink("lib64")}, None),
    ],
)
def test_paths_below_a_symlink_are_found(tree: dict[str, Entry], found: tuple[str, str] | None) -> None:
    assert below_symlink(Tree(tree)) == found


def test_a_folder_leaves_no_trace_of_umask_user_and_order(tmp_path: Path) -> None:
    for name, mode in (("b.sh", 0o700), ("a.txt", 0o600), ("sub/c", 0o666)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to("a.txt")
    tree = folder_tree(tmp_path, "/srv/")
    assert {path: (entry.kind, entry.mode, entry.uid) for path, entry in tree.items()} == {
        "/srv/a.txt": ("file", 0o644, 0),
        "/srv/b.sh": ("file", 0o755, 0),
        "/srv/link": ("symlink", 0o777, 0),
        "/srv/sub": ("dir", 0o755, 0),
        "/srv/sub/c": ("file", 0o644, 0),
    }


def test_a_folder_with_a_fifo_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Problem, match="fifo is neither file, folder nor symlink"):
        folder_tree(tmp_path, "/")


def test_a_tree_is_immutable_and_short_to_print() -> None:
    entries = {"/x": ENTRY}
    tree = Tree(entries)
    entries["/y"] = ENTRY
    assert set(tree) == {"/x"}
    with pytest.raises(TypeError):
        tree["/y"] = ENTRY  # type: ignore[index]
    assert repr(tree) == "<Tree of 1 paths, 1 bytes>"
    assert (tree == {"/x": ENTRY}) is False


def test_a_hard_link_keeps_its_bytes_when_what_it_was_linked_to_is_replaced() -> None:
    package = Tree(
        {"/usr/bin/perl": file(b"theirs", owner="perl"), "/usr/bin/perl5": Entry("hardlink", target="/usr/bin/perl")}
    )
    both = package.override(Tree({"/usr/bin/perl": file(b"ours")}))
    assert (both.read("/usr/bin/perl"), both.read("/usr/bin/perl5")) == (b"ours", b"theirs")


def test_a_hard_link_is_with_the_file_that_it_shares_bytes_with() -> None:
    tree = Tree({"/a": file(b"1", owner="one"), "/b": Entry("hardlink", target="/a", owner="two")})
    assert {owner: set(part) for owner, part in tree.by_owner().items()} == {"one": {"/a", "/b"}}
