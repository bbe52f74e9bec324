"""A package-lock.json becomes what `npm ci` would lay out on the image's architecture, without npm."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from npm_registry import Registry, registry, shop
from source_rig import locked, obtained, request

from imagekit import plugs
from imagekit.errors import Problem
from imagekit.package import Gone, Package
from imagekit.sources import _registry
from imagekit.store import Store
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, union

FIXTURE = Path(__file__).parent.parent / "fixtures/npm"
WORDS = "npm:app/package-lock.json prefix=/opt/app"
CPUS = {"x86_64": "x64", "aarch64": "arm64"}
needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="there is no npm here")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry with the shop's packages, which the variable names, and the lock beside the definition."""
    with registry(tmp_path / "registry") as found:
        shop(found)
        found.lock(tmp_path / "app")
        monkeypatch.setenv("npm_config_registry", found.mirror.address)
        yield found


def tree_of(packages: list[Package]) -> Tree:
    return union(package.tree for package in packages).complete()


def below(tree: Tree, folder: str) -> dict[str, tuple[str, int, str]]:
    """What lies in a folder of a tree, in short."""
    found = {path: entry for path, entry in tree.items() if path.startswith(folder + "/")}
    return {path.removeprefix(folder): (e.kind, e.mode, e.target or e.sha256) for path, e in found.items()}


def on_disk(folder: Path) -> dict[str, tuple[str, int, str]]:
    """The same of a folder of this machine."""
    found = {}
    for path in folder.rglob("*"):
        mode, name = path.lstat().st_mode & 0o7777, "/" + path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = ("symlink", 0o777, str(path.readlink()))
        elif path.is_dir():
            found[name] = ("dir", mode, "")
        else:
            found[name] = ("file", mode, sha256(path.read_bytes()).hexdigest())
    found.pop("/.package-lock.json", None)
    return found


def npm_ci(folder: Path, arch: str, **env: str) -> None:
    """Let the real npm lay out the same."""
    words = ["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--os=linux", "--libc=glibc", f"--cpu={CPUS[arch]}"]
    subprocess.run(["sh", "-c", 'umask 022; exec npm "$@"', "npm", *words], cwd=folder, check=True, capture_output=True,
                   env={**os.environ, "npm_config_cache": str(folder / "npm"), **env})  # fmt: skip


@needs_npm
@pytest.mark.parametrize("arch", CPUS)
def test_npm_lays_out_the_same(arch: str, made: Registry, tmp_path: Path, store: Store) -> None:
    for place, entry in made.packages.items():
        name = place.rpartition("node_modules/")[2]
        if "integrity" in entry:
            file = f"{name.rpartition('/')[2]}-{entry['version']}.tgz"
            entry["resolved"] = f"{made.mirror.address}/{name}/-/{file}"
    made.lock(tmp_path / "app")
    packages = obtained(locked(tmp_path, WORDS, store=store, arch=arch), tmp_path, store)
    npm_ci(tmp_path / "app", arch)
    there = on_disk(tmp_path / "app/node_modules")
    assert below(tree_of(packages), "/opt/app/node_modules") == there
    assert len(there) > 30


@needs_npm
def test_real_packages_are_what_npm_makes_of_them(tmp_path: Path, store: Store) -> None:
    shutil.copytree(FIXTURE, tmp_path / "app")
    pins = locked(tmp_path, WORDS, store=store, arch="aarch64")
    assert {pin.name: pin.version for pin in pins} == {
        "@napi-rs/triples": "1.2.0", "lru-cache": "6.0.0", "mime": "1.6.0", "semver": "7.6.0", "shop": "1.2.0",
        "yallist": "4.0.0",
    }  # fmt: skip
    packages = obtained(pins, tmp_path, store)
    assert {package.name: package.licence for package in packages if package.licence != "MIT"} == {
        "lru-cache": "ISC", "semver": "ISC", "shop": "", "yallist": "ISC",
    }  # fmt: skip
    npm_ci(tmp_path / "app", "aarch64")
    assert below(tree_of(packages), "/opt/app/node_modules") == on_disk(tmp_path / "app/node_modules")


NAMES = {
    "x86_64": {"native-x64", "of-x64"},
    "aarch64": {"native-arm64", "of-arm64"},
}
ALWAYS = {"shop", "plain", "@scope/cli", "rival", "deep", "not-mac", "holder"}


@pytest.mark.parametrize("arch", CPUS)
def test_only_what_runs_there_is_pinned(arch: str, made: Registry, tmp_path: Path, store: Store) -> None:
    pins = locked(tmp_path, WORDS, store=store, arch=arch)
    assert {pin.name for pin in pins} == ALWAYS | NAMES[arch]
    assert sorted(pin.version for pin in pins if pin.name == "deep") == ["1.0.0", "2.0.0"]
    assert {pin.archive for pin in pins if pin.name != "shop"} == {"index"}
    (scoped,) = (pin for pin in pins if pin.name == "@scope/cli")
    assert scoped.path == (
        "@scope/cli/-/cli-1.0.0.tgz#at=/opt/app/node_modules/@scope/cli"
        "&bin=run:/opt/app/node_modules/@scope/cli/bin/run.js&licence=Apache-2.0&script=1"
    )
    assert not any(made.mirror.address in part for pin in pins for part in map(str, pin))


@pytest.mark.usefixtures("made")
def test_each_version_has_its_own_bytes_and_its_owner(tmp_path: Path, store: Store) -> None:
    packages = obtained(locked(tmp_path, WORDS, store=store), tmp_path, store)
    tree = tree_of(packages)
    assert tree.read("/opt/app/node_modules/deep/index.js") == b"1"
    assert tree.read("/opt/app/node_modules/plain/node_modules/deep/index.js") == b"2"
    assert tree["/opt/app/node_modules/.bin/run"].target == "../@scope/cli/bin/run.js"  # not the rival's
    assert "/opt/app/node_modules/.bin/none" not in tree
    assert {package.owner for package in packages if package.name == "deep"} == {"deep@1.0.0", "deep@2.0.0"}
    assert tree["/opt/app/package-lock.json"].mode == 0o644


@pytest.mark.usefixtures("made")
def test_a_script_is_said_and_not_run(tmp_path: Path, store: Store) -> None:
    (found,) = plugs.load("sources", "npm").resolve([request(tmp_path, WORDS.removeprefix("npm:"))], store)
    assert found.said == ("npm: @scope/cli 1.0.0 has an install script, which is not run",)
    packages = obtained(found.pins, tmp_path, store)
    assert [package.name for package in packages if package.notes] == ["@scope/cli"]


def test_tarballs_are_fetched_once_and_kept(made: Registry, tmp_path: Path, store: Store) -> None:
    pins = locked(tmp_path, WORDS, store=store)
    assert len(made.mirror.requests) == len(pins) - 1
    before = obtained(pins, tmp_path, store)
    assert locked(tmp_path, WORDS, store=store) == pins
    assert len(made.mirror.requests) == len(pins) - 1
    after = obtained(pins, tmp_path, open_store(tmp_path / "other"))  # of somebody who has the lock alone
    assert [package.digest for package in after] == [package.digest for package in before]
    assert len(made.mirror.requests) == 2 * (len(pins) - 1)
    assert plugs.load("sources", "npm").inputs(pins, tmp_path) == [tmp_path / "app/package-lock.json"]


def change(**entry: Any) -> Callable[[Registry], None]:
    """Another entry for a package."""

    def made(of: Registry) -> None:
        of.packages["node_modules/plain"] |= entry

    return made


def renamed(place: str) -> Callable[[Registry], None]:
    def made(of: Registry) -> None:
        of.packages[place] = of.packages["node_modules/plain"]

    return made


SHA1 = "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk="
BAD: dict[str, tuple[Callable[[Registry], object], str]] = {
    "no integrity": (change(integrity=None), "node_modules/plain has no sha512 in its integrity"),
    "sha1 alone": (change(integrity=SHA1), "has no sha512"),
    "short sha512": (change(integrity="sha512-abcd"), "has no sha512"),
    "no base64": (change(integrity="sha512-" + "!" * 88), "has no sha512"),
    "another digest": (change(integrity="sha512-" + "A" * 86 + "=="), "plain 1.0.0: .* with the sha512"),
    "from git": (change(resolved="git+ssh://git@example.org/x.git#abc"), "comes from 'git.*, not from a registry"),
    "from a file": (change(resolved="file:../x.tgz"), "comes from 'file"),
    "address with a fragment": (change(resolved="https://example.org/x.tgz#abc"), "a query, a fragment or credentials"),
    "address with a password": (change(resolved="https://a:b@example.org/x.tgz"), "a query, a fragment or credentials"),
    "address with a blank": (change(resolved="https://example.org/x y.tgz"), "no address of http or https"),
    "workspace": (change(link=True, resolved="packages/a"), "is a link to the folder 'packages/a'"),
    "version": (change(version="../../x"), "which is no name and version"),
    "no version": (change(version=None), "which is no name and version"),
    "name": (change(name="../../x"), "which is no name and version"),
    "name with a query": (change(name="a?b"), "which is no name and version"),
    "number for a text": (change(version=1), "where a text belongs"),
    "command": (change(bin={"a,b": "index.js"}), "has the command"),
    "command's file": (change(bin={"a": "in\ndex.js"}), "where a text belongs|has the command"),
    "needed of another system": (change(cpu=["mips"]), "node_modules/plain is needed, and it or what it needs"),
    "place": (renamed("node_modules/../../etc/x"), "no place below node_modules"),
    "hidden place": (renamed("node_modules/.bin"), "no place below node_modules"),
    "place of a folder": (renamed("node_modules/a/b"), "no place below node_modules"),
    "deep place": (renamed("/".join(["node_modules/a"] * 33)), "no place below node_modules"),
    "unpublished": (change(version="9.9.9"), "plain 9.9.9: the registry has no such package"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD)
def test_a_lock_that_cannot_be_held_is_refused(
    spoil: Callable[[Registry], object], message: str, made: Registry, tmp_path: Path, store: Store
) -> None:
    spoil(made)
    made.lock(tmp_path / "app")
    with pytest.raises(Problem, match=message) as caught:
        locked(tmp_path, WORDS, store=store)
    assert caught.value.message.startswith("npm:app/package-lock.json: ")


TEXTS = {
    "version 1": ('{"lockfileVersion": 1, "dependencies": {}}', "lockfileVersion is 1, not 2 or 3"),
    "no version": ("{}", "lockfileVersion is None"),
    "no packages": ('{"lockfileVersion": 3}', "it has no packages"),
    "packages as a list": ('{"lockfileVersion": 3, "packages": []}', "it has no packages"),
    "entry as a text": ('{"lockfileVersion": 3, "packages": {"node_modules/a": "x"}}', "it has no packages"),
    "key twice": ('{"lockfileVersion": 3, "lockfileVersion": 3}', "is given twice"),
    "no JSON": ("<html>", "is not JSON"),
    "deep": ("[" * 100_000, "nested deeper"),
    "a list": ("[]", "no JSON object"),
    "name": ('{"lockfileVersion": 3, "packages": {"": {"name": "a b"}}}', "npm would not take either"),
}


@pytest.mark.parametrize(("text", "message"), TEXTS.values(), ids=TEXTS)
def test_what_is_no_lock_is_refused(text: str, message: str, tmp_path: Path, store: Store) -> None:
    (tmp_path / "package-lock.json").write_text(text)
    with pytest.raises(Problem, match=message):
        locked(tmp_path, "npm:package-lock.json prefix=/opt", store=store)


WRONG = {
    "npm:app/package-lock.json": "it needs prefix=...",
    "npm:app/none.json prefix=/opt": "there is no such file",
    "npm:../package-lock.json prefix=/opt": "no path beside the definition",
    "npm:app/package-lock.json prefix=/opt strip=1": "unknown option 'strip'",
}


@pytest.mark.parametrize(("written", "message"), WRONG.items(), ids=WRONG)
@pytest.mark.usefixtures("made")
def test_a_wrong_word_is_one_message(written: str, message: str, tmp_path: Path, store: Store) -> None:
    with pytest.raises(Problem, match=message):
        locked(tmp_path, written, store=store)


def test_two_locks_share_what_both_ask_for(made: Registry, tmp_path: Path, store: Store) -> None:
    made.lock(tmp_path / "b", name="other", packages={**made.packages, "": {**made.packages[""], "name": "other"}})
    both = locked(tmp_path, WORDS, "npm:b/package-lock.json prefix=/opt/b", store=store)
    assert len(both) == len(locked(tmp_path, WORDS, store=store)) + 1
    tree = tree_of(obtained(both, tmp_path, store))
    assert below(tree, "/opt/app/node_modules") == below(tree, "/opt/b/node_modules")
    assert tree["/opt/b/node_modules/.bin/run"].target == "../@scope/cli/bin/run.js"


def test_two_projects_of_one_name_are_refused(made: Registry, tmp_path: Path, store: Store) -> None:
    made.lock(tmp_path / "b")
    with pytest.raises(Problem, match=r"npm: shop 1\.0\.0 comes twice"):
        locked(tmp_path, WORDS, "npm:b/package-lock.json prefix=/opt/b", store=store)


PLACES_OF_A_LOCK = ["/etc", "/opt/node_modules/../x", "/opt/../etc/node_modules/x", "node_modules/x", ""]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("place", PLACES_OF_A_LOCK)
def test_a_place_that_no_lock_names_is_refused(place: str, tmp_path: Path, store: Store) -> None:
    pin = next(pin for pin in locked(tmp_path, WORDS, store=store) if pin.name == "deep")
    bad = pin._replace(path=f"{pin.path.partition('#')[0]}#at={place}")
    with pytest.raises(Problem, match=r"the lock lays it out at|is no folder of an image"):
        plugs.load("sources", "npm").packages([bad], store, lambda *_: None, folder=tmp_path)


def test_a_lock_that_changed_since_is_refused(made: Registry, tmp_path: Path, store: Store) -> None:
    pins = locked(tmp_path, WORDS, store=store)
    made.lock(tmp_path / "app", extra=1)
    with pytest.raises(Problem, match=r"npm:app/package-lock\.json: it has changed since it was locked"):
        obtained(pins, tmp_path, store)


def test_a_registry_that_serves_something_else_is_refused(made: Registry, tmp_path: Path, store: Store) -> None:
    pins = locked(tmp_path, WORDS, store=store)
    for answer, message in ((b"evil", "sent 4 bytes with the sha256"), (b"x" * 99_999, "where at most")):
        made.mirror.answers["*"] = lambda asked, answer=answer: asked.body(answer)
        with pytest.raises(Problem, match=message):
            obtained(pins, tmp_path, open_store(tmp_path / "other"))
    made.mirror.answers["*"] = lambda asked: asked.body(b"", 404)
    with pytest.raises(Gone, match="the registry has no such package"):
        obtained(pins, tmp_path, open_store(tmp_path / "other"))


HOSTILE = {
    "../../../etc/x": "is no name of a member",
    "a/../../b": "is no name of a member",
    "a\nb": "control characters",
}


@pytest.mark.parametrize(("name", "message"), HOSTILE.items(), ids=HOSTILE)
def test_a_hostile_tarball_is_refused(name: str, message: str, made: Registry, tmp_path: Path, store: Store) -> None:
    made.add("evil", {name: "x"})
    made.lock(tmp_path / "app")
    with pytest.raises(Problem, match=f"npm: evil 1.0.0: .*{message}"):
        locked(tmp_path, WORDS, store=store)


# --- where the registry is ------------------------------------------------------------------------------------------


def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **files: str) -> Path:
    """A home and a folder with such .npmrc files, and no other."""
    for name in [name for name in os.environ if name.lower().startswith("npm_config_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(_registry, "SYSTEM", (tmp_path / "system/.npmrc",))
    monkeypatch.setattr(_registry, "_of_npm", lambda: "https://npm.example.org/")
    for folder in ("home", "app", "system"):
        (tmp_path / folder).mkdir(exist_ok=True)
        if folder in files:
            (tmp_path / folder / ".npmrc").write_text(files[folder])
    _registry._settings.cache_clear()
    return tmp_path / "app"


FOUND = "https://found.example.org/sub/tiny/-/tiny-1.0.0.tgz"
PLACES: dict[str, tuple[dict[str, str], dict[str, str], str, str]] = {
    "npm itself": ({}, {}, "", "https://npm.example.org"),
    "where the lock found it": ({}, {}, FOUND, "https://found.example.org/sub"),
    "the host's": ({"system": "registry=https://s.example.org"}, {}, FOUND, "https://s.example.org"),
    "the user's before it": ({"system": "registry=https://s.example.org", "home": "registry = https://h.example.org/"},
                             {}, FOUND, "https://h.example.org"),
    "the project's before it": ({"home": "registry=https://h.example.org", "app": ";x\nregistry=https://a.example.org"},
                                {}, FOUND, "https://a.example.org"),
    "the variable before it": ({"app": "registry=https://a.example.org"},
                               {"NPM_CONFIG_REGISTRY": "https://v.example.org"}, FOUND, "https://v.example.org"),
    "of a variable": ({"app": "registry=https://${PLACE}/x"}, {"PLACE": "p.example.org"}, "", "https://p.example.org/x"),
    "of a comment": ({"app": "# registry=https://c.example.org"}, {}, "", "https://npm.example.org"),
    "of another scope": ({"app": "@other:registry=https://o.example.org"}, {}, "", "https://npm.example.org"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "env", "resolved", "expected"), PLACES.values(), ids=PLACES)
def test_the_registry_is_where_npm_would_look(
    files: dict[str, str], env: dict[str, str], resolved: str, expected: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = settings(monkeypatch, tmp_path, **files)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert _registry.address("tiny", resolved, folder) == expected


def test_a_scope_may_have_a_registry_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = settings(
        monkeypatch, tmp_path, app="@scope:registry=https://o.example.org/\nregistry=https://a.example.org"
    )
    assert _registry.address("@scope/a", "", folder) == "https://o.example.org"
    assert _registry.address("@more/a", "", folder) == "https://a.example.org"


@pytest.mark.parametrize("address", ["ftp://example.org", "example.org", "https://", "file:///x", "https://a.b/?x=y"])
def test_what_is_no_address_is_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = settings(monkeypatch, tmp_path, app=f"registry={address}")
    with pytest.raises(Problem, match="which is no address"):
        _registry.address("tiny", "", folder)


RESOLVED = {
    "": "tiny/-/tiny-1.0.0.tgz",
    "https://r.example.org/tiny/-/tiny-1.0.0-old.tgz": "tiny/-/tiny-1.0.0-old.tgz",
}


@pytest.mark.parametrize(("resolved", "path"), RESOLVED.items())
def test_a_tarball_is_called_as_the_lock_found_it(resolved: str, path: str) -> None:
    assert _registry.path_of("tiny", "1.0.0", resolved) == path


def test_what_lies_in_no_registry_is_pinned_by_its_address(made: Registry, tmp_path: Path, store: Store) -> None:
    shutil.copy(made.mirror.folder / "plain/-/plain-1.0.0.tgz", made.mirror.folder / "other.tgz")
    made.packages["node_modules/plain"]["resolved"] = f"{made.mirror.address}/other.tgz"
    made.lock(tmp_path / "app")
    (pin,) = (pin for pin in locked(tmp_path, WORDS, store=store) if pin.name == "plain")
    assert (pin.archive, pin.path.partition("#")[0]) == ("url", f"{made.mirror.address}/other.tgz")
