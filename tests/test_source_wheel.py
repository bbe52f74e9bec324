"""Wheels: which ones an image needs, on its own architecture and Python, and what is pinned and taken of them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from source_rig import obtained, request
from wheel_index import Index, serving_index, wheel

from imagekit import plugs
from imagekit.errors import Problem
from imagekit.package import Gone, Package, Pin
from imagekit.sources import _python, _simple, _wheel
from imagekit.store import Store
from imagekit.stores.directory import open_store

PUBLIC = "https://py" + "pi.org/simple"  # what pip takes; no file of the project names it
LIBRARY = "/usr/local/lib/python3.11/dist-packages"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with serving_index(tmp_path / "index") as made:
        monkeypatch.setenv("PIP_INDEX_URL", made.address)
        for other in ("UV_DEFAULT_INDEX", "UV_INDEX_URL"):
            monkeypatch.delenv(other, raising=False)
        yield made


def lock(*texts: str, store: Store, folder: Path = Path(), arch: str = "x86_64", python: str = "3.11") -> list[Pin]:
    asked = request(folder, *texts, arch=arch, python=python)
    return list(plugs.load("sources", "wheel").resolve([asked], store)[0].pins)


def names(pins: list[Pin]) -> dict[str, str]:
    return {pin.name: pin.version for pin in pins}


def stock(index: Index) -> None:
    """An application and what it needs: extras, markers of platforms, a compiled wheel, versions to choose from."""
    index.add("app", "2.0", requires=("lib>=1,<3", "fast[speed]; python_version >= '3.8'"))
    index.add("app", "2.1a1")
    index.add("lib", "1.0")
    index.add("lib", "2.0", requires=("arm; platform_machine == 'aarch64'", "win; sys_platform == 'win32'"))
    index.add("lib", "2.5", link="data-yanked")
    index.add("lib", "2.6", link='data-requires-python="&gt;=3.12"')
    index.add("lib", "3.0")
    index.add("fast", "1.0", requires=("core==1.0; extra == 'speed'", "docs; extra == 'docs'"))
    for arch in ("x86_64", "aarch64"):
        index.add("core", tag=f"cp311-cp311-manylinux_2_17_{arch}.manylinux2014_{arch}")
        index.add("core", tag=f"cp311-cp311-musllinux_1_2_{arch}")
        index.add("core", "1.1", tag=f"cp312-cp312-manylinux_2_17_{arch}")
    index.add("core", tag="cp311-cp311-win_amd64")
    index.add("arm")


@pytest.mark.parametrize(("arch", "more"), [("x86_64", {}), ("aarch64", {"arm": "1.0"})])
def test_the_closure_is_that_of_the_images_architecture(
    arch: str, more: dict[str, str], index: Index, store: Store
) -> None:
    stock(index)
    pins = lock("app", store=store, arch=arch)
    assert names(pins) == {"app": "2.0", "core": "1.0", "fast": "1.0", "lib": "2.0", **more}
    (core,) = (pin for pin in pins if pin.name == "core")
    assert core.path.startswith(f"core-1.0-cp311-cp311-manylinux_2_17_{arch}.")
    assert (core.architecture, pins[0].architecture) == (arch, "all")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("lib<2", "1.0"), ("lib", "3.0"), ("lib==2.5", "2.5"), ("app>=2.1a0", "2.1a1"), ("LIB", "3.0"),
        ("lib!=3.0", "2.0"),
    ],
)  # fmt: skip
def test_versions_are_chosen_as_pip_chooses(asked: str, found: str, index: Index, store: Store) -> None:
    stock(index)
    assert found in names(lock(asked, store=store)).values()


REFUSED = {  # what a definition asks for, and what it is told
    "unknown": ("nothing-like-it", "has no project 'nothing-like-it'"),
    "no version": ("lib>9", "the definition wants lib>9"),
    "conflict": ("app lib>=3", "app 2.0 wants lib<3,>=1; the definition wants lib>=3"),
    "another python": ("core>1", "the definition wants core>1"),
    "sdist alone": ("source", "no wheel for CPython 3.11 on x86_64 .*source distributions"),
    "an address": ("x@https://example.org/x.whl", "names an address"),
    "no requirement": ("fast[", "is no requirement"),
    "an option": ("fast strip=1", "unknown option 'strip'"),
    "wants an address": ("leads", "is wanted from an address"),
    "no sha256": ("unsealed", "the index has: nothing"),
}


@pytest.mark.parametrize(("asked", "told"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_locked_is_told(asked: str, told: str, index: Index, store: Store) -> None:
    stock(index)
    index.put("source-1.0.tar.gz", b"x")
    index.add("leads", requires=("x @ https://example.org/x.whl",))
    index.put("unsealed-1.0-py3-none-any.whl", wheel("unsealed"), digest="#md5=0")
    texts = [asked] if " " not in asked or "=1" in asked else asked.split(" ")
    with pytest.raises(Problem, match=told):
        lock(*texts, store=store)
    assert not list(Path(store.location).rglob("drafts/*"))


def test_an_image_without_a_python_is_told_so(index: Index, store: Store) -> None:
    stock(index)
    with pytest.raises(Problem, match="wheels need a Python"):
        lock("lib", store=store, python="")


def test_what_is_present_already_is_not_taken(index: Index, store: Store) -> None:
    stock(index)
    asked = request(Path(), "app", python="3.11", without=("fast",))  # type: ignore[arg-type]
    (resolved,) = plugs.load("sources", "wheel").resolve([asked], store)
    assert names(list(resolved.pins)) == {"app": "2.0", "lib": "2.0"}


def test_a_wheel_beside_the_definition_brings_what_it_needs(index: Index, store: Store, tmp_path: Path) -> None:
    stock(index)
    place = tmp_path / "vendor" / "own_tool-3.1-py3-none-any.whl"
    place.parent.mkdir()
    points = {"own_tool-3.1.dist-info/entry_points.txt": "[console_scripts]\nown = own_tool:main\n"}
    place.write_bytes(wheel("own-tool", "3.1", requires=("lib<2",), more=points))
    pins = lock("vendor/own_tool-3.1-py3-none-any.whl", store=store, folder=tmp_path)
    assert names(pins) == {"lib": "1.0", "own-tool": "3.1"}
    found = {package.name: package for package in obtained(pins, tmp_path, store)}
    assert found["own-tool"].tree["/usr/local/bin/own"].mode == 0o755
    place.write_bytes(wheel("own-tool", "3.1"))
    with pytest.raises(Problem, match="has changed since it was locked"):
        obtained(pins, tmp_path, store)


def test_a_wheel_beside_that_others_want_in_another_version_is_told(index: Index, store: Store, tmp_path: Path) -> None:
    stock(index)
    (tmp_path / "lib-9.0-py3-none-any.whl").write_bytes(wheel("lib", "9.0"))
    with pytest.raises(Problem, match=r"app .* wants lib<3,>=1"):
        lock("app", "lib-9.0-py3-none-any.whl", store=store, folder=tmp_path)


def test_another_machine_takes_the_same_bytes_from_its_own_index(index: Index, store: Store, tmp_path: Path) -> None:
    stock(index)
    pins = lock("app", store=store)
    ours = obtained(pins, Path(), store)
    theirs = obtained(pins, Path(), open_store(tmp_path / "other"))
    assert [(one.name, one.digest) for one in ours] == [(one.name, one.digest) for one in theirs]
    assert all("127.0.0.1" not in pin.path for pin in pins)


def test_an_index_that_lost_or_changed_a_file_is_told(index: Index, store: Store, tmp_path: Path) -> None:
    stock(index)
    pins = lock("lib", store=store)
    changed = wheel("lib", "3.0", {"lib.py": "evil"})
    (index.mirror.folder / "files" / "lib-3.0-py3-none-any.whl").write_bytes(changed)
    with pytest.raises(Problem, match=sha256(changed).hexdigest()):
        obtained(pins, Path(), open_store(tmp_path / "second"))
    index.files["lib"] = [line for line in index.files["lib"] if "3.0" not in line]
    index.write("lib")
    with pytest.raises(Gone, match="has this file no longer"):
        obtained(pins, Path(), open_store(tmp_path / "third"))
    for name in ("second", "third"):
        assert not [path for path in (tmp_path / name).rglob("objects/*/*") if path.read_bytes() == changed]


@pytest.mark.parametrize(
    ("env", "pip_conf", "found"),
    [
        ({}, "[global]\ncert = x\n", PUBLIC),
        ({"PIP_INDEX_URL": "https://a.example/simple/"}, "", "https://a.example/simple"),
        ({"UV_DEFAULT_INDEX": "https://u.example/s", "PIP_INDEX_URL": "https://a.example"}, "", "https://u.example/s"),
        ({}, "[global]\nindex-url = https://c.example/simple\n", "https://c.example/simple"),
    ],
)
def test_the_index_is_the_one_that_pip_and_uv_are_told(
    env: dict[str, str], pip_conf: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*_simple.SETTINGS, "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "pip.conf").write_text(pip_conf)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert _simple.address() == found


@pytest.mark.parametrize("value", ["file:///srv/simple", "not an address", "https://[", "ftp://a.example"])
def test_an_index_that_is_no_server_is_told(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", value)
    with pytest.raises(Problem, match="no address of http"):
        _simple.address()


REAL = ("uvicorn==0.30.6", "pydantic-core==2.23.4", "pyyaml==6.0.2")


def test_pip_lays_out_the_same_files(store: Store, tmp_path: Path) -> None:
    """Real wheels from the index, one with a command and two that are compiled, beside what the real pip makes."""
    pytest.importorskip("pip", reason="there is no pip in this environment to compare with")
    out = tmp_path / "pip"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--ignore-installed",
           "--only-binary=:all:", "--python-version", "3.11", "--platform", "manylinux2014_x86_64", "--target",
           str(out), *REAL]  # fmt: skip
    subprocess.run(pip, check=True, env={**os.environ, "PIP_CONSTRAINT": os.devnull}, capture_output=True)
    expected = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    found: dict[str, str] = {}
    for package in real(store):
        files = {path: entry for path, entry in package.tree.items() if entry.kind == "file"}
        found |= {path.removeprefix(f"{LIBRARY}/").removeprefix("/usr/local/"): e.sha256 for path, e in files.items()}
    ours = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json"}  # what an installer writes of itself
    kept = {path for path in expected if path.rpartition("/")[2] not in ours}
    assert {path for path in found if path.rpartition("/")[2] not in ours} == kept
    assert [path for path in kept if path.startswith("bin/")] == ["bin/uvicorn"]  # pip's own script is another one
    for path in kept - {"bin/uvicorn"}:
        assert found[path] == sha256(expected[path].read_bytes()).hexdigest(), path


def real(store: Store) -> list[Package]:
    pins = lock(*REAL, store=store)
    wanted = {text.partition("==")[0] for text in REAL}
    return obtained([pin for pin in pins if pin.name in wanted], Path(), store)


def test_a_note_of_another_python_is_not_taken_for_ours(store: Store) -> None:
    data = wheel("lib")
    digest = store.write([data])
    for version in ("3.11", "3.13"):
        python = _python.of(version, "x86_64", "trixie")
        made = _wheel.convert(data, "lib-1.0-py3-none-any.whl", python, digest=digest, store=store)
        assert f"/usr/local/lib/python{version}/dist-packages/lib/__init__.py" in made.tree
