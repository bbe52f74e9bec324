"""A .deb beside the definition is the package that dpkg would unpack, for the architecture that it says."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from debian_archive import Item, deb, folders
from source_rig import locked, obtained, request, taken

from imagekit import plugs
from imagekit.errors import Problem
from imagekit.store import Store
from imagekit.stores.directory import open_store

HELLO = Item("./usr/bin/hello", b"#!/bin/sh\necho hello\n", mode=0o755)
ITEMS = [*folders("usr", "usr/bin"), HELLO]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


@pytest.fixture
def vendor(tmp_path: Path) -> Path:
    """A folder with a package for each architecture, and for all."""
    made = tmp_path / "vendor"
    made.mkdir()
    for arch in ("amd64", "arm64", "all"):
        (made / f"tiny_1_{arch}.deb").write_bytes(deb("tiny", ITEMS, version="1", architecture=arch))
    return made


def test_a_deb_made_by_dpkg_is_taken(tmp_path: Path, store: Store) -> None:
    (tmp_path / "tree/DEBIAN").mkdir(parents=True)
    (tmp_path / "tree/opt").mkdir()
    (tmp_path / "tree/opt/agent").write_text("the agent")
    (tmp_path / "tree/DEBIAN/control").write_text(
        "Package: agent\nVersion: 1:2.0-1\nArchitecture: arm64\nMaintainer: a test\nDescription: a test\n"
    )
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", "tree", "agent.deb"], cwd=tmp_path, check=True,
                   capture_output=True)  # fmt: skip
    package = taken(tmp_path, "deb:agent.deb", store=store, arch="aarch64")
    assert (package.name, package.version, package.architecture) == ("agent", "1:2.0-1", "arm64")
    assert package.tree.read("/opt/agent") == b"the agent"


FITS = [("all", "x86_64"), ("all", "aarch64"), ("amd64", "x86_64"), ("arm64", "aarch64")]


@pytest.mark.parametrize(("made", "arch"), FITS)
def test_its_architecture_is_the_images_or_all(made: str, arch: str, vendor: Path, store: Store) -> None:
    (pin,) = locked(vendor.parent, f"deb:vendor/tiny_1_{made}.deb", store=store, arch=arch)
    assert (pin.name, pin.architecture, pin.archive, pin.path) == ("tiny", made, "beside", f"vendor/tiny_1_{made}.deb")


@pytest.mark.parametrize(("made", "arch", "wanted"), [("amd64", "aarch64", "arm64"), ("arm64", "x86_64", "amd64")])
def test_another_architecture_is_refused(made: str, arch: str, wanted: str, vendor: Path, store: Store) -> None:
    with pytest.raises(Problem, match=f"it is made for {made}, and the image's {arch} is {wanted}") as caught:
        locked(vendor.parent, f"deb:vendor/tiny_1_{made}.deb", store=store, arch=arch)
    assert "arch=" in caught.value.hint


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_a_definition_may_name_one_for_each(arch: str, vendor: Path, store: Store) -> None:
    both = ("deb:vendor/tiny_1_amd64.deb arch=x86_64", "deb:vendor/tiny_1_arm64.deb arch=aarch64")
    (pin,) = locked(vendor.parent, *both, store=store, arch=arch)
    assert pin.architecture == {"x86_64": "amd64", "aarch64": "arm64"}[arch]


NEEDS = {
    "nothing": ({}, ()),
    "one": ({"Depends": "libc6 (>= 2.36)"}, ("deb: tiny needs libc6 (>= 2.36); name what the image lacks",)),
    "before, and folded": ({"Pre-Depends": "dpkg", "Depends": "a |\n b,\n\tc"},
                           ("deb: tiny needs dpkg, a | b, c; name what the image lacks",)),
    "a terminal's words": ({"Depends": "a\x1b[2J"}, ("deb: tiny needs a\\x1b[2J; name what the image lacks",)),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "said"), NEEDS.values(), ids=NEEDS)
def test_what_it_depends_on_is_said(
    fields: dict[str, str], said: tuple[str, ...], tmp_path: Path, store: Store
) -> None:
    (tmp_path / "tiny.deb").write_bytes(deb("tiny", ITEMS, fields=fields))
    (found,) = plugs.load("sources", "deb").resolve([request(tmp_path, "tiny.deb")], store)
    assert found.said == said


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "other bytes": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), "it has changed since it was locked"),
    "another version": (lambda path: path.write_bytes(deb("tiny", ITEMS, version="2", architecture="amd64")),
                        "it has changed since it was locked"),
    "gone": (Path.unlink, "there is no such file"),
    "a fifo": (lambda path: [path.unlink(), os.mkfifo(path)], "tiny_1_amd64.deb is no file"),
    "a folder": (lambda path: [path.unlink(), path.mkdir()], "tiny_1_amd64.deb is no file"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_is_not_what_was_locked_is_refused(
    change: Callable[[Path], object], message: str, vendor: Path, store: Store, tmp_path: Path
) -> None:
    pins = locked(tmp_path, "deb:vendor/tiny_1_amd64.deb", store=store)
    change(vendor / "tiny_1_amd64.deb")
    kind = plugs.load("sources", "deb")
    with pytest.raises(Problem, match=f"deb:vendor/tiny_1_amd64.deb: {message}"):
        kind.check(pins, tmp_path)
    assert kind.packages(pins, store, lambda *_: None, folder=tmp_path)[0].version == "1"  # the store has it
    with pytest.raises(Problem, match=message):
        kind.packages(pins, open_store(tmp_path / "other"), lambda *_: None, folder=tmp_path)


def test_another_store_makes_the_same(vendor: Path, store: Store, tmp_path: Path) -> None:
    pins = locked(vendor.parent, "deb:vendor/tiny_1_all.deb", store=store)
    digests = {obtained(pins, tmp_path, of)[0].digest for of in (store, open_store(tmp_path / "other"))}
    assert len(digests) == 1
    assert plugs.load("sources", "deb").inputs(pins, tmp_path) == [vendor / "tiny_1_all.deb"]


def test_a_lock_that_calls_it_otherwise_is_refused(vendor: Path, store: Store, tmp_path: Path) -> None:
    (pin,) = locked(vendor.parent, "deb:vendor/tiny_1_all.deb", store=store)
    with pytest.raises(Problem, match="the lock calls tiny 1 all by another name"):
        obtained([pin._replace(version="2")], tmp_path, store)


BAD = {
    "deb:vendor/none.deb": "there is no such file",
    "deb:vendor": "vendor is no file",
    "deb:vendor/text": "it is no ar archive",
    "deb:/var/tiny.deb": "it is no path beside the definition",
    "deb:vendor/../../x.deb": "it is no path beside the definition",
    "deb:vendor/tiny_1_all.deb prefix=/opt": "unknown option 'prefix'",
}


@pytest.mark.parametrize(("written", "message"), BAD.items(), ids=BAD)
def test_a_wrong_word_is_one_message(written: str, message: str, vendor: Path, store: Store) -> None:
    (vendor / "text").write_text("hello")
    with pytest.raises(Problem, match=message):
        locked(vendor.parent, written, store=store)
