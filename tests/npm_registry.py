"""A tiny npm registry for tests: tarballs made from dictionaries, and a package-lock.json that names them."""

import base64
import gzip
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha512
from pathlib import Path
from typing import Any

from debian_archive import Item, tar
from debian_mirror import Mirror, serving


def tarball(files: Mapping[str, str], **package: Any) -> bytes:
    """A package as npm packs it."""
    texts = {"package.json": json.dumps(package), **files}
    return gzip.compress(tar([Item(f"package/{name}", text.encode()) for name, text in texts.items()]), mtime=0)


def integrity(data: bytes) -> str:
    """What a lock says of a tarball."""
    return "sha512-" + base64.b64encode(sha512(data).digest()).decode()


class Registry:
    """A running registry, and the lock of a project that takes all of it."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.packages: dict[str, dict[str, Any]] = {"": {"name": "shop", "version": "1.0.0", "dependencies": {}}}

    def add(self, place: str, files: Mapping[str, str], *, version: str = "1.0.0", **entry: Any) -> None:
        """Publish a package, and lay it out at a place; a name is a place below the root's node_modules."""
        place = place if place.startswith("node_modules/") else f"node_modules/{place}"
        name = place.rpartition("node_modules/")[2]
        data = tarball(
            files, name=name, version=version, **{k: v for k, v in entry.items() if k in ("bin", "dependencies")}
        )
        file = self.mirror.folder / name / "-" / f"{name.rpartition('/')[2]}-{version}.tgz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.packages[place] = {"version": version, "integrity": integrity(data), **entry}
        if place.count("node_modules/") == 1 and not entry.get("extraneous"):
            kind = "devDependencies" if entry.get("dev") else "optionalDependencies" if entry.get("optional") else ""
            self.packages[""].setdefault(kind or "dependencies", {})[name] = version

    def lock(self, folder: Path, **top: Any) -> Path:
        """Write package.json and package-lock.json."""
        folder.mkdir(exist_ok=True)
        about = {"name": "shop", "version": "1.0.0", "lockfileVersion": 3, "requires": True}
        (folder / "package.json").write_text(json.dumps(self.packages[""]))
        path = folder / "package-lock.json"
        path.write_text(json.dumps({**about, "packages": self.packages, **top}))
        return path


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    """Serve a registry until the block ends."""
    folder.mkdir()
    with serving(folder) as mirror:
        yield Registry(mirror)


def shop(made: Registry) -> None:
    """What tests look at: scopes, nested versions, other systems, dev, commands, a bundled package, an alias."""
    made.add("plain", {"index.js": "1"}, license="MIT", dependencies={"deep": "2.0.0"})
    made.add("@scope/cli", {"bin/run.js": "#!/usr/bin/env node\n", ".gitignore": "x"}, bin={"run": "bin/run.js"},
             license="Apache-2.0", hasInstallScript=True)  # fmt: skip
    made.add("rival", {"run.js": "#!/usr/bin/env node\n"}, bin={"run": "./run.js", "own": "run.js", "none": "none.js"})
    made.add("deep", {"index.js": "1"}, version="1.0.0")
    made.add("node_modules/plain/node_modules/deep", {"index.js": "2", "cli.js": "2"}, version="2.0.0",
             bin={"deep": "cli.js"})  # fmt: skip
    made.add("test-only", {"index.js": ""}, dev=True)
    for cpu in ("x64", "arm64"):
        made.add(f"native-{cpu}", {f"{cpu}.node": cpu}, os=["linux"], cpu=[cpu], optional=True,
                 dependencies={f"of-{cpu}": "1.0.0"})  # fmt: skip
        made.add(f"of-{cpu}", {"index.js": ""}, optional=True)
        del made.packages[""]["optionalDependencies"][f"of-{cpu}"]
    made.add("mac", {"mac.node": ""}, os=["darwin"], optional=True)
    made.add("musl", {"musl.node": ""}, os=["linux"], libc=["musl"], optional=True)
    made.add("not-mac", {"index.js": ""}, os=["!darwin", "!win32"], optional=True)
    held = json.dumps({"name": "held", "version": "3.0.0", "bin": "held.js"})
    made.add("holder", {"node_modules/held/package.json": held, "node_modules/held/held.js": "#!/bin/sh\n"},
             dependencies={"held": "3.0.0"}, bundleDependencies=["held"])  # fmt: skip
    made.packages["node_modules/holder/node_modules/held"] = {
        "version": "3.0.0", "inBundle": True, "bin": {"held": "held.js"},
    }  # fmt: skip
