"""A depot to test with: small signed artifacts, keys of every role, and a real server on loopback."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tuf.api.metadata import Metadata
from tuf.api.serialization.json import JSONSerializer

from imagekit import artifact, key, site
from imagekit.artifact import Artifact
from imagekit.depot import index, publishing, pulling, roles, server, trust
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.site import Site
from imagekit.store import Store
from imagekit.stores.directory import open_store

IMAGE_KEY = key.from_seed(bytes(32), comment=key.TEST_MARK)


def role_key(role: str, number: int = 1) -> Key:
    """A key of its own for each role and number, the same in every run."""
    return key.from_seed(sha256(f"{role} {number}".encode()).digest())


KEYS = {role: [role_key(role)] for role in roles.ROLES} | {"root": [role_key("root", n) for n in (1, 2, 3)]}
EVERY_KEY = [one for some in KEYS.values() for one in some]
ONLINE = [*KEYS["targets"], *KEYS["snapshot"], *KEYS["timestamp"]]


def noise(seed: int, size: int) -> bytes:
    """Bytes that no compressor shortens."""
    return random.Random(seed).randbytes(size)


def made(folder: Path, *, name: str = "web", version: str = "1", arch: str = "x86_64", format: str = "kernel_initrd",
         parts: Mapping[str, bytes] | None = None, signer: Key = IMAGE_KEY) -> Artifact:  # fmt: skip
    """A signed artifact of two parts, written to a folder."""
    parts = parts or {"kernel": noise(1, 300_000), "initrd": b"initrd " * 40_000}
    stem = f"{name}_{version}_{arch}"
    described = [
        {"role": role, "file": f"{stem}.{role}", "size": len(data), "sha256": sha256(data).hexdigest()}
        for role, data in parts.items()
    ]
    text = artifact.canonical(
        {"name": name, "version": version, "arch": arch, "format": format, "kind": "kernel", "parts": described}
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.{format}.manifest.json"
    path.write_bytes(text)
    path.with_name(path.name + ".minisig").write_text(signer.sign(text, comment=name))
    for role, data in parts.items():
        (folder / f"{stem}.{role}").write_bytes(data)
    return artifact.load(path)


def holding(folder: Path, name: str, version: str, *packages: tuple[str, str]) -> Artifact:
    """A signed artifact whose manifest lists packages."""
    one = made(folder, name=name, version=version, parts={"kernel": name.encode()})
    rows: list[dict[str, Any]] = [
        {"name": n, "version": v, "architecture": "amd64", "size": 1, "sha256": sha256(n.encode()).hexdigest()}
        for n, v in packages
    ]
    text = artifact.canonical({**one.manifest, "packages": rows})
    one.path.write_bytes(text)
    one.path.with_name(one.path.name + ".minisig").write_text(IMAGE_KEY.sign(text, comment=name))
    return artifact.load(one.path)


def files(digest: bytes) -> Sequence[str]:
    """Those of the package curl."""
    return ["/usr/bin/curl"] if digest == sha256(b"curl").digest() else []


@dataclass
class Depot:
    """A depot in a directory, its keeper's and its reader's memory, and a reader's cache."""

    folder: Path
    root: bytes = b""
    days: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = index.create(self.site, KEYS, thresholds={"root": 2}, days=self.days)
        trust.adopt(self.site, self.root, home=self.keeper)

    @property
    def place(self) -> Path:
        """Where it lies."""
        return self.folder / "depot"

    @property
    def keeper(self) -> Path:
        """What its keeper has seen of it."""
        return self.folder / "keeper"

    @property
    def store(self) -> Store:
        """Its keeper's cache."""
        return open_store(self.folder / "keeper-store")

    @property
    def site(self) -> Site:
        """It, as its keeper sees it."""
        return site.at(str(self.place))

    def publish(self, *artifacts: Artifact, site: Site | None = None, **how: Any) -> publishing.Moved:
        """Publish with the keys of every role that is online."""
        return publishing.publish(
            artifacts,
            site or self.site,
            **{"key": IMAGE_KEY, "keys": ONLINE, "home": self.keeper, "store": self.store, **how},
        )

    def held(self) -> index.Held:
        """The index as a keeper has it."""
        return index.load(self.site, self.root)


@dataclass
class Reader:
    """Somebody who pulls from a place."""

    site: Site
    folder: Path

    def trusts(self, root: bytes) -> "Reader":
        """Trust it by its root."""
        trust.adopt(self.site, root, home=self.home)
        return self

    @property
    def home(self) -> Path:
        """What was seen."""
        return self.folder / "home"

    @property
    def out(self) -> Path:
        """Where images are pulled to."""
        return self.folder / "out"

    @property
    def store(self) -> Store:
        """The reader's own."""
        return open_store(self.folder / "store")

    def refresh(self) -> trust.Seen:
        """The index as it is now."""
        return trust.refresh(self.site, home=self.home)

    def pull(self, name: str = "web", **asked: str) -> pulling.Pulled:
        """Refresh, choose and pull."""
        seen = self.refresh()
        chosen = pulling.choose(pulling.images(seen.targets), name, **asked)
        return pulling.pull(chosen, seen, self.site, out=self.out, key=IMAGE_KEY, store=self.store)


@contextmanager
def served(root: Path, **how: Any) -> Iterator[str]:
    """The address of a real server of a folder."""
    running = server.Server(root, **how)
    thread = Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{running.port}"
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def forge(path: Path, change: Callable[[Any], object], *signers: Key, to: Path | None = None) -> bytes:
    """Metadata changed by somebody who has these keys, written back (or elsewhere)."""
    metadata: Metadata[Any] = Metadata.from_file(str(path))
    change(metadata.signed)
    metadata.signatures.clear()
    for one in signers:
        metadata.sign(roles.RoleSigner(one), append=True)
    data = metadata.to_bytes(JSONSerializer())
    (to or path).write_bytes(data)
    return data


def refuse(reader: Reader, words: str, kind: type[Problem] = Problem) -> None:
    """The reader says these words and has written nothing."""
    before = sorted(reader.out.rglob("*")) if reader.out.exists() else []
    with pytest.raises(kind, match=words):
        reader.pull()
    assert (sorted(reader.out.rglob("*")) if reader.out.exists() else []) == before
