"""A tiny Debian archive for tests: packages made from dictionaries, indices, an InRelease signed by a throw-away key.

`deb(...)` makes the bytes of one package; `archive(folder)` is a whole archive that a loopback address serves:

    with archive(tmp_path) as debian:
        debian.add("tiny", [*folders("usr"), Item("./usr/x", b"x")], fields={"Depends": "other (>= 2)"})
        debian.publish()
        debian.use(monkeypatch)  # IMAGEKIT_MIRROR and IMAGEKIT_KEYRING
"""

import lzma
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pysequoia
from debian_mirror import Mirror, serving

BLOCK = 512


class Item(NamedTuple):
    """One member of a data.tar: `data` makes a file, `link` a symlink, `hard` a hard link, none of them a folder."""

    name: str
    data: bytes | None = None
    mode: int = 0o644
    link: str = ""
    hard: str = ""
    uid: int = 0
    gid: int = 0


def folders(*names: str) -> list[Item]:
    """Folders, as dpkg-deb lists them: ./ first."""
    return [Item("./", mode=0o755), *(Item(f"./{name}/", mode=0o755) for name in names)]


def header(
    name: bytes, flag: bytes, *, mode: int = 0o644, size: int = 0, link: bytes = b"", uid: int = 0, gid: int = 0
) -> bytes:
    """A GNU tar header as dpkg-deb writes it."""
    fields = [name[:100].ljust(100, b"\0"), b"%07o\0" % mode, b"%07o\0" % uid, b"%07o\0" % gid, b"%011o\0" % size]
    fields += [b"%011o\0" % 0, b" " * 8, flag, link[:100].ljust(100, b"\0"), b"ustar  \0", bytes(247)]
    raw = bytearray(b"".join(fields))
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(data: bytes) -> bytes:
    """`data` filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def long_name(name: bytes, flag: bytes) -> bytes:
    """A GNU long name (flag L) or long link (flag K)."""
    return header(b"././@LongLink", flag, size=len(name) + 1) + padded(name + b"\0")


def member(item: Item) -> bytes:
    """A member of a tar archive."""
    name = item.name.encode()
    target = (item.link or item.hard).encode()
    flag = b"2" if item.link else b"1" if item.hard else b"5" if item.data is None else b"0"
    data = item.data or b""
    long = long_name(name, b"L") if len(name) > 100 else b""
    long += long_name(target, b"K") if len(target) > 100 else b""
    made = header(name, flag, mode=item.mode, size=len(data), link=target, uid=item.uid, gid=item.gid)
    return long + made + padded(data)


def tar(items: Iterable[Item]) -> bytes:
    """A whole tar archive."""
    return b"".join(map(member, items)) + bytes(2 * BLOCK)


def ar(members: Iterable[tuple[str, bytes]]) -> bytes:
    """A whole ar archive."""
    parts = [b"!<arch>\n"]
    for name, data in members:
        parts.append(
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return b"".join(parts)


def xz(data: bytes) -> bytes:
    """`data` compressed as dpkg-deb does by default, but faster."""
    return lzma.compress(data, preset=0)


def control(name: str, version: str, architecture: str, fields: Mapping[str, str]) -> str:
    """The text of a control file."""
    about = {"Package": name, "Version": version, "Architecture": architecture, "Maintainer": "a test"}
    return "".join(f"{key}: {value}\n" for key, value in {**about, **fields, "Description": "a test"}.items())


def deb(
    name: str = "tiny",
    items: Iterable[Item] = (),
    *,
    version: str = "1",
    architecture: str = "all",
    fields: Mapping[str, str] | None = None,
    scripts: Mapping[str, str] | None = None,
    data_tar: tuple[str, bytes] | None = None,
) -> bytes:
    """The bytes of a package; `data_tar` replaces its data member whole, for the broken ones."""
    texts = {"control": control(name, version, architecture, fields or {}), **(scripts or {})}
    control_tar = tar([Item("./", mode=0o755), *(Item(f"./{key}", text.encode()) for key, text in texts.items())])
    data = data_tar or ("data.tar.xz", xz(tar(items)))
    return ar((("debian-binary", b"2.0\n"), ("control.tar.xz", xz(control_tar)), data))


ARCHES = ("amd64", "arm64")
SUITE = "bookworm"
COMPONENTS = ("main", "non-free-firmware")
PARTS = {"": "debian", "-updates": "debian", "-security": "debian-security"}  # ending of the suite -> archive


@cache
def key(user: str = "a test <test@example.org>") -> Any:
    """A throw-away OpenPGP key, made once a run."""
    return pysequoia.Tsk.generate(user)


def clear_signed(text: str, signer: Any = None) -> bytes:
    """The text clear-signed, as an InRelease is."""
    mode = pysequoia.SignatureMode.CLEAR
    return bytes(pysequoia.sign((signer or key()).signer(), text.encode(), mode=mode))


class Archive:
    """A tiny archive: one suite with its updates and its security archive, for two architectures."""

    def __init__(self, folder: Path, mirror: Mirror) -> None:
        self.folder = folder
        self.mirror = mirror
        self.keyring = folder / "keyring.gpg"
        self.keyring.write_bytes(bytes(key().extract_certificate()))
        self.stanzas: dict[tuple[str, str, str], list[str]] = {
            (end, arch, component): [] for end in PARTS for arch in ARCHES for component in COMPONENTS
        }

    def add(
        self,
        name: str,
        items: Iterable[Item] = (),
        *,
        version: str = "1",
        architecture: str = "all",
        fields: Mapping[str, str] | None = None,
        scripts: Mapping[str, str] | None = None,
        part: str = "",
        component: str = "main",
        data: bytes | None = None,
    ) -> bytes:
        """Put a package into the pool and list it; `part` is "", "-updates" or "-security", `data` its own bytes."""
        made = data or deb(name, items, version=version, architecture=architecture, fields=fields, scripts=scripts)
        path = Path(f"pool/{component}/{name}_{version.replace(':', '%3a')}_{architecture}.deb")
        place = self.folder / PARTS[part] / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(made)
        listed = {
            "Filename": str(path),
            "Size": str(len(made)),
            "SHA256": sha256(made).hexdigest(),
            "Priority": "optional",
        }
        stanza = control(name, version, architecture, {**listed, **(fields or {})})
        for arch in ARCHES if architecture == "all" else (architecture,):
            self.stanzas[part, arch, component].append(stanza)
        return made

    def publish(self, *, signer: Any = None, date: datetime | None = None, **fields: str) -> None:
        """Write every index, and sign the suites; `fields` are further ones of the InRelease, or other ones."""
        for end, archive in PARTS.items():
            dists = self.folder / archive / "dists" / (SUITE + end)
            listed = [
                self._write_index(dists / component, arch, "\n".join(self.stanzas[end, arch, component]))
                for arch in ARCHES
                for component in COMPONENTS
            ]
            about = {
                "Origin": "Debian",
                "Suite": f"oldstable{end}",
                "Codename": f"{SUITE}{end}",
                "Date": rfc822(date or datetime.now(UTC) - timedelta(minutes=1)),
                "Acquire-By-Hash": "yes",
                **fields,
            }
            text = "".join(f"{name}: {value}\n" for name, value in about.items()) + "SHA256:\n" + "".join(listed)
            (dists / "InRelease").write_bytes(clear_signed(text, signer))

    def use(self, monkeypatch: Any) -> None:
        """Make this the mirror, and its key the key ring, of the test."""
        monkeypatch.setenv("IMAGEKIT_MIRROR", f"{self.mirror.address}/debian")
        monkeypatch.setenv("IMAGEKIT_KEYRING", str(self.keyring))

    def in_release(self, end: str = "") -> Path:
        """Where the signed metadata of a suite lies."""
        return self.folder / PARTS[end] / "dists" / (SUITE + end) / "InRelease"

    @staticmethod
    def _write_index(component: Path, arch: str, text: str) -> str:
        packed = xz(text.encode())
        digest = sha256(packed).hexdigest()
        folder = component / f"binary-{arch}/by-hash/SHA256"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digest).write_bytes(packed)
        return f" {digest} {len(packed):8} {component.name}/binary-{arch}/Packages.xz\n"


def rfc822(date: datetime) -> str:
    """A date as an InRelease writes it."""
    return f"{date:%a, %d %b %Y %H:%M:%S} UTC"


@contextmanager
def archive(folder: Path) -> Iterator[Archive]:
    """An archive below `folder`, served until the block ends."""
    (folder / "archive").mkdir(parents=True)
    with serving(folder / "archive") as mirror:
        yield Archive(folder / "archive", mirror)
