"""An image of packages from every place beside Debian: locked, built for another architecture, and found in it."""

import gzip
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from debian_archive import Item, deb, folders, tar
from npm_registry import Registry, registry

from imagekit import cli, lock

KEYS = Path(__file__).parent.parent / "fixtures/keys"
DEFINITION = """
from imagekit import Image

image = Image("mixed", packages=(
    "directory:site prefix=/srv/www",
    "deb:vendor/agent_1_arm64.deb",
    "tarball:vendor/app.tar.gz strip=1 prefix=/opt/app",
    "tarball:{url} sha256={digest} prefix=/opt/tool",
    "npm:shop/package-lock.json prefix=/opt/shop",
), formats=("tar",), arches=("aarch64",))
"""


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A folder with a definition and what it names, and a server for the rest."""
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS / "test.key"))
    monkeypatch.chdir(tmp_path)
    with registry(tmp_path / "served") as made:
        monkeypatch.setenv("npm_config_registry", made.mirror.address)
        made.add("hello", {"cli.js": "#!/usr/bin/env node\n"}, bin={"hello": "cli.js"}, license="MIT",
                 dependencies={"dep": "0.1.0"})  # fmt: skip
        made.add("dep", {"index.js": "a newer one"}, version="1.0.0")
        made.add("node_modules/hello/node_modules/dep", {"index.js": "an older one"}, version="0.1.0")
        made.lock(tmp_path / "shop")
        for folder in ("site", "vendor"):
            (tmp_path / folder).mkdir()
        (tmp_path / "site/index.html").write_text("<h1>hello")
        agent = [*folders("usr", "usr/bin"), Item("./usr/bin/agent", b"the agent", mode=0o755)]
        (tmp_path / "vendor/agent_1_arm64.deb").write_bytes(deb("agent", agent, architecture="arm64"))
        app = gzip.compress(tar([Item("app-1/", mode=0o755), Item("app-1/run", b"the app", mode=0o755)]))
        (tmp_path / "vendor/app.tar.gz").write_bytes(app)
        tool = tar([Item("tool", b"the tool", mode=0o755)])
        (tmp_path / "served/tool-2.tar").write_bytes(tool)
        url = f"{made.mirror.address}/tool-2.tar"
        (tmp_path / "mixed.py").write_text(DEFINITION.format(url=url, digest=sha256(tool).hexdigest()))
        yield made


def test_all_of_them_make_an_image(npm: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["lock", "mixed.py"]) == 0
    pins = lock.read(tmp_path / "mixed.lock").pins["aarch64"]
    assert {(pin.source, pin.name, pin.architecture) for pin in pins} == {
        ("directory", "site", "all"), ("deb", "agent", "arm64"), ("tarball", "app", "all"),
        ("tarball", "tool-2", "all"),
        ("npm", "shop", "all"), ("npm", "hello", "all"), ("npm", "dep", "all"),
    }  # fmt: skip
    asked = len(npm.mirror.requests)
    assert cli.main(["build", "mixed.py", "-o", "out"]) == 0
    assert len(npm.mirror.requests) == asked  # what was locked was kept
    with tarfile.open(tmp_path / "out/mixed_0_aarch64.tar.gz") as made:
        found = {name: made.extractfile(f"{name}").read() for name in (  # type: ignore[union-attr]
            "srv/www/index.html", "usr/bin/agent", "opt/app/run", "opt/tool/tool", "opt/shop/node_modules/hello/cli.js",
        )}  # fmt: skip
        assert made.getmember("opt/shop/node_modules/.bin/hello").linkname == "../hello/cli.js"
    assert list(found.values()) == [b"<h1>hello", b"the agent", b"the app", b"the tool", b"#!/usr/bin/env node\n"]
    assert cli.main(["verify", "out/mixed_0_aarch64.tar.manifest.json"]) == 0
    capsys.readouterr()
    assert cli.main(["sbom", "out/mixed_0_aarch64.tar.manifest.json"]) == 0
    assert {f"pkg:npm/dep@{version}" for version in ("1.0.0", "0.1.0")} <= set(capsys.readouterr().out.split('"'))


CHANGES = {
    "site/index.html": "directory:site: it has changed since it was locked",
    "vendor/agent_1_arm64.deb": "deb:vendor/agent_1_arm64.deb: it has changed since it was locked",
    "vendor/app.tar.gz": "tarball:vendor/app.tar.gz: it has changed since it was locked",
    "shop/package-lock.json": "npm:shop/package-lock.json: it has changed since it was locked",
}


@pytest.mark.usefixtures("npm")
def test_what_changed_beside_it_is_noticed_also_after_a_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["lock", "mixed.py"]) == cli.main(["build", "mixed.py", "-o", "out"]) == 0
    for name, message in CHANGES.items():
        before = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(before + b" ")
        capsys.readouterr()
        assert cli.main(["build", "mixed.py", "-o", "out"]) == 1
        told = capsys.readouterr().err
        assert message in told
        assert "imagekit lock" in told
        (tmp_path / name).write_bytes(before)
    assert cli.main(["build", "mixed.py", "-o", "out"]) == 0


def test_another_machine_builds_the_same_bytes(npm: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["lock", "mixed.py"]) == cli.main(["build", "mixed.py", "-o", "out"]) == 0
    first = (tmp_path / "out/mixed_0_aarch64.tar.gz").read_bytes()
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "other"))
    subprocess.run(["touch", "-d", "2001-01-01", *map(str, (tmp_path / "site").rglob("*"))], check=True)
    (tmp_path / "site/index.html").chmod(0o600)
    asked = len(npm.mirror.requests)
    assert cli.main(["build", "mixed.py", "-o", "again"]) == 0
    assert (tmp_path / "again/mixed_0_aarch64.tar.gz").read_bytes() == first
    assert len(npm.mirror.requests) == asked + 4  # the tool, and three of npm's


@pytest.mark.usefixtures("npm")
def test_any_damage_to_the_cache_is_healed(tmp_path: Path) -> None:
    assert cli.main(["lock", "mixed.py"]) == cli.main(["build", "mixed.py", "-o", "out"]) == 0
    first, cache = (tmp_path / "out/mixed_0_aarch64.tar.gz").read_bytes(), tmp_path / "cache"
    shutil.copytree(cache, tmp_path / "good", symlinks=True)
    notes = [f"notes/{kind}" for kind in ("placed-package", "debian-package", "npm-integrity")]
    files = [path.relative_to(cache) for kind in (*notes, "objects") for path in (cache / kind).rglob("*")]
    damaged = [name for name in files if (cache / name).is_file()]
    for name in damaged:
        shutil.rmtree(cache)
        shutil.copytree(tmp_path / "good", cache, symlinks=True)
        for kind in ("artifacts", *(notes if name.parts[0] == "objects" else ())):
            shutil.rmtree(cache / kind)  # so that it is looked at
        data = (cache / name).read_bytes()
        (cache / name).unlink()
        (cache / name).write_bytes(data[: len(data) // 2])
        assert cli.main(["build", "mixed.py", "-o", "again"]) == 0, name
        assert (tmp_path / "again/mixed_0_aarch64.tar.gz").read_bytes() == first
    assert len(damaged) > 20
