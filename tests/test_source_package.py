"""Own packages in an image: taken from beside the definition by the key that signed them, at every build."""

import shutil
from pathlib import Path

import pytest
from source_rig import locked, obtained

from imagekit import key as keyring
from imagekit import plain
from imagekit.errors import Problem
from imagekit.package import Origin, Package
from imagekit.store import Store
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, directory, file

HELLO = "hello_1.0_all.ikp"
WORDS = f"package:{HELLO}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> keyring.Key:
    """Your own key."""
    made = new(tmp_path / "own.key")
    monkeypatch.setenv("IMAGEKIT_KEY", str(tmp_path / "own.key"))
    return made


def new(path: Path) -> keyring.Key:
    from imagekit import cli

    assert cli.main(["key", "new", str(path)]) == 0
    return keyring.read(path)


def package(text: str = "hello", *, name: str = "hello", version: str = "1.0", arch: str = "all") -> Package:
    tree = Tree({"/usr/share": directory(), "/usr/share/hello": file(text.encode())})
    return Package(name, version, arch, tree.digest, tree, (), Origin(name, version), "MIT")


def lay(folder: Path, made: Package, key: keyring.Key, *, file: str = HELLO) -> Path:
    path = folder / file
    path.write_bytes(b"".join(plain.write(made, key=key)))
    return path


def test_it_is_taken_with_all_that_its_label_says(tmp_path: Path, store: Store, own: keyring.Key) -> None:
    lay(tmp_path, package(), own)
    pins = locked(tmp_path, WORDS, store=store)
    assert [(pin.name, pin.version, pin.architecture) for pin in pins] == [("hello", "1.0", "all")]
    for cache in (store, open_store(tmp_path / "other")):
        (found,) = obtained(pins, tmp_path, cache)
        assert found.tree.read("/usr/share/hello") == b"hello"
        assert (found.digest, found.licence, found.origin) == (package().digest, "MIT", Origin("hello", "1.0"))


def test_anothers_key_is_trusted_where_the_definition_names_it(tmp_path: Path, store: Store, own: keyring.Key) -> None:
    other = new(tmp_path / "other.key")
    assert other.public != own.public
    lay(tmp_path, package(), other)
    with pytest.raises(Problem, match=r"package:hello_1.*not trusted"):
        locked(tmp_path, WORDS, store=store)
    pins = locked(tmp_path, f"{WORDS} key=other.pub", store=store)
    lay(tmp_path, package(), own)  # the same package, by a key that the lock does not name
    with pytest.raises(Problem, match="has changed since it was locked"):
        obtained(pins, tmp_path, open_store(tmp_path / "second"))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


CHANGES = {"cut": _cut, "flipped": _flip, "gone": Path.unlink, "empty": lambda path: path.write_bytes(b"")}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_is_not_whole_is_refused(change, tmp_path: Path, store: Store, own: keyring.Key) -> None:
    path = lay(tmp_path, package(), own)
    pins = locked(tmp_path, WORDS, store=store)
    change(path)
    with pytest.raises(Problem, match="package:hello_1"):
        locked(tmp_path, WORDS, store=open_store(tmp_path / "second"))
    with pytest.raises(Problem, match="package:hello_1"):
        obtained(pins, tmp_path, open_store(tmp_path / "third"))


def test_another_version_or_package_in_its_place_is_refused(tmp_path: Path, store: Store, own: keyring.Key) -> None:
    lay(tmp_path, package(), own)
    pins = locked(tmp_path, WORDS, store=store)
    for other in (package(version="0.9"), package(name="other"), package("evil")):
        lay(tmp_path, other, own)
        with pytest.raises(Problem, match="has changed since it was locked"):
            obtained(pins, tmp_path, open_store(tmp_path / f"cache-{other.digest[:8]}-{other.version}{other.name}"))


def test_two_valid_packages_cannot_be_swapped_in_the_lock(tmp_path: Path, store: Store, own: keyring.Key) -> None:
    """A lock that names the one's name and the other's bytes: each is signed, and the two do not belong together."""
    lay(tmp_path, package(), own)
    lay(tmp_path, package("x", name="other"), own, file="other_1.0_all.ikp")
    (one,) = locked(tmp_path, WORDS, store=store)
    (other,) = locked(tmp_path, "package:other_1.0_all.ikp", store=store)
    swapped = one._replace(sha256=other.sha256, path=other.path)
    with pytest.raises(Problem, match="other"):
        obtained([swapped], tmp_path, open_store(tmp_path / "second"))


def test_another_architecture_is_refused(tmp_path: Path, store: Store, own: keyring.Key) -> None:
    lay(tmp_path, package(arch="aarch64"), own, file="hello_1.0_aarch64.ikp")
    words = "package:hello_1.0_aarch64.ikp"
    with pytest.raises(Problem, match="aarch64"):
        locked(tmp_path, words, store=store)
    assert locked(tmp_path, words, store=store, arch="aarch64")[0].architecture == "aarch64"
    assert locked(tmp_path, f"{words} arch=aarch64", store=store) == ()


def test_a_lock_without_its_key_is_refused(tmp_path: Path, store: Store, own: keyring.Key) -> None:
    lay(tmp_path, package(), own)
    (pin,) = locked(tmp_path, WORDS, store=store)
    for path in (HELLO, f"{HELLO}#key=00&number=00", pin.path.replace(own.public.hex(), "ab" * 32)):
        with pytest.raises(Problem):
            obtained([pin._replace(path=path)], tmp_path, open_store(tmp_path / sha(path)))


def sha(text: str) -> str:
    from hashlib import sha256

    return sha256(text.encode()).hexdigest()[:8]


def test_an_image_holds_it(tmp_path: Path, own: keyring.Key, capsys: pytest.CaptureFixture[str]) -> None:
    from imagekit import cli

    lay(tmp_path, package(), own)
    shutil.copy(Path(__file__).parents[1] / "fixtures" / "keys" / "test.key", tmp_path / "k")
    (tmp_path / "own.py").write_text(
        "from imagekit import Image\nimage = Image(name='own', version='1', formats=('tar',), "
        "packages=('package:hello_1.0_all.ikp',), arches=('x86_64', 'aarch64'))\n"
    )
    assert cli.main(["lock", str(tmp_path / "own.py")]) == 0
    assert cli.main(["build", str(tmp_path / "own.py"), "-o", str(tmp_path / "out")]) == 0
    manifests = sorted((tmp_path / "out").glob("*.manifest.json"))
    assert len(manifests) == 2
    assert all('"licence":"MIT"' in path.read_text().replace(" ", "") for path in manifests)
    capsys.readouterr()
