"""A folder beside the definition becomes a package by what it holds, and by nothing else."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from source_rig import locked, obtained, request, taken

from imagekit import plugs
from imagekit.errors import Problem
from imagekit.sources import _placed, _tar
from imagekit.store import Store
from imagekit.stores.directory import open_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of the usual things."""
    made = tmp_path / "site"
    (made / "bin").mkdir(parents=True)
    (made / "empty").mkdir()
    (made / "index.html").write_text("<h1>hello")
    (made / "bin/run").write_text("#!/bin/sh\n")
    (made / "bin/run").chmod(0o755)
    (made / "home").symlink_to("index.html")
    return made


def test_a_folder_is_laid_out_below_its_prefix(site: Path, store: Store) -> None:
    package = taken(site.parent, "directory:site prefix=/srv/www", store=store)
    assert (package.name, package.version, package.architecture) == ("site", "0", "all")
    assert {path: (entry.kind, entry.mode, entry.uid, entry.gid) for path, entry in package.tree.items()} == {
        "/srv/www/bin": ("dir", 0o755, 0, 0),
        "/srv/www/bin/run": ("file", 0o755, 0, 0),
        "/srv/www/empty": ("dir", 0o755, 0, 0),
        "/srv/www/home": ("symlink", 0o777, 0, 0),
        "/srv/www/index.html": ("file", 0o644, 0, 0),
    }
    assert package.tree.read("/srv/www/index.html") == b"<h1>hello"
    assert package.tree["/srv/www/home"].target == "index.html"


def test_without_a_prefix_it_is_laid_over_the_root_whose_bin_is_in_usr(site: Path, store: Store) -> None:
    assert "/usr/bin/run" in taken(site.parent, "directory:site", store=store).tree


def test_it_may_be_given_a_name_and_a_version(site: Path, store: Store) -> None:
    (pin,) = locked(site.parent, "directory:site name=www version=1.2", store=store)
    assert (pin.name, pin.version, pin.archive, pin.path) == ("www", "1.2", "beside", "site#prefix=/")


UNSEEN: dict[str, Callable[[Path], object]] = {
    "times": lambda site: os.utime(site / "index.html", (1, 1)),
    "umask": lambda site: (site / "index.html").chmod(0o600),
    "umask of folders": lambda site: (site / "empty").chmod(0o777),
    "owner": lambda site: os.chown(site / "index.html", 1234, 1234),
    "setuid": lambda site: (site / "bin/run").chmod(0o4755),
    "order": lambda site: [shutil.move(site / "bin", site / "x"), shutil.move(site / "x", site / "bin")],
    "hard links": lambda site: os.link(site / "index.html", site.parent / "other"),
}
SEEN: dict[str, Callable[[Path], object]] = {
    "bytes": lambda site: (site / "index.html").write_text("<h1>hallo"),
    "a name": lambda site: (site / "index.html").rename(site / "index.htm"),
    "one more": lambda site: (site / "new").write_text(""),
    "one less": lambda site: (site / "empty").rmdir(),
    "who may execute": lambda site: (site / "index.html").chmod(0o755),
    "a link": lambda site: [(site / "home").unlink(), (site / "home").symlink_to("empty")],
    "gone": shutil.rmtree,
}


@pytest.mark.parametrize("change", UNSEEN.values(), ids=UNSEEN)
def test_what_is_not_of_the_tree_leaves_no_trace(change: Callable[[Path], object], site: Path, store: Store) -> None:
    before = locked(site.parent, "directory:site", store=store)
    change(site)
    plugs.load("sources", "directory").check(before, site.parent)
    assert locked(site.parent, "directory:site", store=store) == before


@pytest.mark.parametrize("change", SEEN.values(), ids=SEEN)
def test_what_has_changed_since_it_was_locked_is_refused(
    change: Callable[[Path], object], site: Path, store: Store, tmp_path: Path
) -> None:
    pins = locked(site.parent, "directory:site", store=store)
    change(site)
    with pytest.raises(Problem, match=r"directory:site: (it has changed since|the folder cannot be read)"):
        plugs.load("sources", "directory").check(pins, site.parent)
    if site.exists():  # and a store that never saw it takes no other folder for it
        with pytest.raises(Problem, match="it has changed since it was locked"):
            plugs.load("sources", "directory").packages(
                pins, open_store(tmp_path / "other"), lambda *_: None, folder=site.parent
            )


def test_the_store_makes_it_again_when_it_forgot(site: Path, store: Store, tmp_path: Path) -> None:
    pins = locked(site.parent, "directory:site prefix=/srv", store=store)
    (made,) = obtained(pins, site.parent, store)
    assert obtained(pins, site.parent, open_store(tmp_path / "other"))[0].digest == made.digest


def test_a_link_that_leads_out_stays_a_link(site: Path, store: Store) -> None:
    (site / "out").symlink_to("../../etc/passwd")
    (site / "loop").symlink_to(".")
    package = taken(site.parent, "directory:site prefix=/srv", store=store)
    assert [package.tree[f"/srv/{name}"].target for name in ("out", "loop")] == ["../../etc/passwd", "."]


def test_names_may_be_left_out_wherever_they_lie(site: Path, store: Store) -> None:
    before = locked(site.parent, "directory:site without=.git,*.pyc,__pycache__ prefix=/srv", store=store)
    assert before[0].path == "site#prefix=/srv&without=.git,*.pyc,__pycache__"
    (site / "bin/__pycache__").mkdir()
    (site / ".git").mkdir()
    for name in (".git/HEAD", "bin/__pycache__/run.pyc", "x.pyc", "bin/y.pyc"):
        (site / name).write_text("x")
    (package,) = obtained(before, site.parent, store)
    assert sorted(package.tree) == [f"/srv/{name}" for name in ("bin", "bin/run", "empty", "home", "index.html")]
    assert site / ".git" not in plugs.load("sources", "directory").inputs(before, site.parent)
    (site / "x.py").write_text("x")
    with pytest.raises(Problem, match="it has changed since"):
        obtained(before, site.parent, store)


def test_inputs_are_all_that_was_read(site: Path, store: Store) -> None:
    pins = locked(site.parent, "directory:site", store=store)
    found = plugs.load("sources", "directory").inputs(pins, site.parent)
    assert {site, site / "bin", site / "bin/run", site / "empty", site / "index.html"} == set(found)


def socketed(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (lambda site: os.mkfifo(site / "x"), "x is neither file, folder nor symlink"),
    "socket": (lambda site: socketed(site / "x"), "x is neither file, folder nor symlink"),
    "line end in a name": (lambda site: (site / "a\nb").write_text(""), "has control characters"),
    "name that is not UTF-8": (lambda site: open(os.fsencode(site) + b"/\xff", "w").close(), "is not UTF-8"),
    "line end in a target": (lambda site: (site / "x").symlink_to("a\nb"), "has control characters"),
    "deep": (lambda site: (site / "/".join("d" * 70)).mkdir(parents=True), "is no name of a member"),
    "large": (lambda site: os.truncate(site / "index.html", _tar.MAX_BYTES + 1), "holds more than"),
    "two of one name": (lambda site: [(site / "usr/bin").mkdir(parents=True), (site / "usr/bin/run").write_text("")],
                        "holds /usr/bin/run twice"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_what_an_image_cannot_hold_is_refused(
    change: Callable[[Path], object], message: str, site: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tar, "MAX_BYTES", 1 << 20)
    change(site)
    with pytest.raises(Problem, match=message) as caught:
        locked(site.parent, "directory:site", store=store)
    assert caught.value.message.startswith("directory:site: ")
    assert not list(Path(store.location, "notes").glob(f"{_placed.NOTE}/*"))


BAD = {
    "directory:none": ("the folder cannot be read: No such file", "it is looked for at"),
    "directory:site/index.html": ("the folder cannot be read: Not a directory", ""),
    "directory:/etc": ("it is no path beside the definition", "relative to the definition's folder"),
    "directory:../site": ("it is no path beside the definition", ""),
    "directory:site/../site": ("it is no path beside the definition", ""),
    "directory:.": ("it is no path beside the definition", ""),
    "directory:site prefix=srv": ("prefix=srv is no folder of an image", "prefix=/opt/app"),
    "directory:site prefix=/srv/../etc": ("prefix=/srv/../etc is no folder", ""),
    "directory:site prefx=/srv": (
        "unknown option 'prefx'",
        "did you mean 'prefix'? known: arch, name, prefix, version, without",
    ),
    "directory:site prefix=/a prefix=/b": ("prefix is given twice", ""),
    "directory:site name=a,b": ("'a,b' is no name of a package", "give it one with name="),
    "directory:site version=one!": ("'one!' is no version of a package", ""),
    "directory:site without=a,": ("without=a, names no files", "*.pyc"),
    "directory:site without=a/b": ("without=a/b names no files", ""),
    "directory:site arch=z80": ("unknown architecture 'z80'", "known: aarch64, x86_64"),
}


@pytest.mark.parametrize(("written", "told"), BAD.items(), ids=BAD)
def test_a_wrong_word_is_one_message(written: str, told: tuple[str, str], site: Path, store: Store) -> None:
    with pytest.raises(Problem) as caught:
        locked(site.parent, written, store=store)
    assert told[0] in caught.value.message
    assert told[1] in caught.value.hint


def test_two_of_one_name_need_another(site: Path, store: Store) -> None:
    shutil.copytree(site, site.parent / "b/site", symlinks=True)
    with pytest.raises(Problem, match="two packages are called 'site': site and b/site"):
        locked(site.parent, "directory:site", "directory:b/site prefix=/b", store=store)


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_one_may_be_for_an_architecture_alone(arch: str, site: Path, store: Store) -> None:
    pins = locked(site.parent, "directory:site arch=aarch64", store=store, arch=arch)
    assert len(pins) == (arch == "aarch64")


def test_it_brings_no_kernel(site: Path, store: Store) -> None:
    with pytest.raises(Problem, match="neither kernel nor firmware"):
        plugs.load("sources", "directory").resolve([request(site.parent, kernel="site")], store)
