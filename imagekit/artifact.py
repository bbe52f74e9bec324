"""Artifact: what a format wrote, its manifest and its signature; opening it for use verifies it.

On disk an artifact is a manifest (canonical JSON that lists every part by sha256), a minisign signature over the
manifest, and the parts beside them. Also here: what a format is.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import ENOSPC
from hashlib import sha256
from pathlib import Path
from typing import Any

from imagekit import stamp
from imagekit.bootkeys import BootKeys
from imagekit.errors import Defect, Problem, RigProblem
from imagekit.key import Key
from imagekit.layout import Layout
from imagekit.store import Store

MAX_MANIFEST = 64 << 20  # bytes
MAX_SIGNATURE = 64 << 10  # bytes
LARGEST_IN_MEMORY = 64 << 20  # bytes of a part that is copied into memory; a larger one into a file without a name
CHUNK = 1 << 20
ZEROS = bytes(CHUNK)
OTHER_CACHE = "IMAGEKIT_CACHE names another cache"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,254}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
SIGNATURE_SUFFIX = ".minisig"
MANIFEST_SUFFIX = ".manifest.json"


@dataclass(frozen=True)
class Part:
    """One file of an artifact."""

    role: str  # "kernel", "initrd", "cmdline", "root", "disk"
    file: str  # its name, beside the manifest
    size: int  # bytes
    sha256: str


def _no_tools(*names: str) -> Any:
    raise Defect(f"nobody brought the tools {', '.join(names)}")


def _say_nothing(line: str) -> None:
    _ = line


@dataclass(frozen=True)
class Format:
    """A kind of output, as a value: how it is written and which machines can start it."""

    write: Callable[..., dict[str, "Written"]]  # (tree, *, job: Job) -> role -> bytes in the store
    suffixes: Mapping[str, str]  # role -> file name suffix: {"kernel": ".kernel", ...}
    kind: str  # "root", "disk", "kernel"; "update" of a disk
    bootable: bool = True  # whether it needs a kernel in the tree
    arches: tuple[str, ...] = ("x86_64", "aarch64")  # that it exists for
    firmware: tuple[str, ...] = ()  # what starts it as it is: "bios", "uefi", "raspi3b", "raspi4b"; () for none
    assets: tuple[str, ...] = ()  # what it needs below /boot: assets.py
    modules: tuple[str, ...] = ()  # of the kernel, all of which it must have, for the machines that it is made for
    drivers: tuple[str, ...] = ()  # of a disk that is opened, those that the kernel has; at least one must be
    protects: tuple[str, ...] = ()  # the fields of Layout that it honours, of those that protect
    in_memory: bool = False  # a disk whose root is in the initrd, whatever the image's layout says

    def has_root_on_disk(self, layout: Layout) -> bool:
        """Whether what it writes mounts its root from a disk."""
        if self.kind in ("disk", "update"):
            return layout.root != "initrd" and not self.in_memory
        return self.kind == "kernel" and "root" in self.suffixes


@dataclass(frozen=True)
class Job:
    """What is to be written beside the tree, and with what."""

    name: str
    version: str
    arch: str
    store: Store
    layout: Layout = Layout()
    boot_keys: BootKeys | None = None  # where the layout is protected by what they sign
    tools: Callable[..., Any] = field(default=_no_tools, repr=False)  # (*names) -> toolbox.Tools
    say: Callable[[str], None] = field(default=_say_nothing, repr=False)  # a progress line
    key: Key | None = field(default=None, repr=False)  # what a format signs in itself: an update


@dataclass(frozen=True)
class Written:
    """What a format wrote for one role: an object of the store, and what the manifest shall say of it."""

    sha256: str
    size: int
    facts: Mapping[str, Any]  # compressor and version, digest of the uncompressed bytes, ...


def keep(store: Store, chunks: Iterable[bytes], **facts: Any) -> Written:
    """Put what a format wrote into the store, piece by piece."""
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for chunk in chunks:
            size += len(chunk)
            yield chunk

    digest = store.write(counted())
    return Written(digest, size, facts)


@dataclass(frozen=True)
class Artifact:
    """An image as written: `path` is its manifest. Nothing here is trusted before `verify` or `opened`."""

    path: Path
    text: bytes  # the manifest's bytes, as read once
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The image's name."""
        return str(self.manifest["name"])

    @property
    def arch(self) -> str:
        """The architecture it is for."""
        return str(self.manifest["arch"])

    @property
    def format(self) -> str:
        """The format it was written in."""
        return str(self.manifest["format"])

    @property
    def kind(self) -> str:
        """ "root", "disk" or "kernel": which targets can start it."""
        return str(self.manifest["kind"])

    @property
    def parts(self) -> tuple[Part, ...]:
        """The files that it consists of."""
        return tuple(Part(**{k: p[k] for k in ("role", "file", "size", "sha256")}) for p in self.manifest["parts"])

    @property
    def sbom(self) -> Part | None:
        """The CycloneDX document that lies beside it; None for an artifact that is older than those."""
        named = self.manifest.get("sbom")
        return Part("sbom", **{k: named[k] for k in ("file", "size", "sha256")}) if named else None

    @property
    def files(self) -> tuple[Part, ...]:
        """Every file that the manifest answers for: the parts, and what tells of them."""
        return (*self.parts, *filter(None, [self.sbom]))

    @property
    def has_kernel(self) -> bool:
        """Whether its kernel is a file of its own, so that a machine can give it more than the image does."""
        return bool({"kernel", "archive"} & {part.role for part in self.parts})

    @property
    def size(self) -> int:
        """Bytes of all parts together."""
        return sum(part.size for part in self.parts)

    @property
    def digest(self) -> str:
        """sha256 of the manifest, which names every other byte."""
        return sha256(self.text).hexdigest()

    def verified(self, key: Key) -> bool:
        """Whether signature and every part are right; see `verify` for what is wrong when they are not."""
        try:
            self.verify(key)
        except Problem:
            return False
        return True

    def verify(self, key: Key) -> None:
        """Raise a Problem that names the first thing that is wrong: the signature, or a part."""
        self.verify_manifest(key)
        for part in self.files:
            _check_part(self.path.parent / part.file, part, lambda _: None)

    def verify_manifest(self, key: Key) -> None:
        """Raise a Problem unless the key signed the manifest; no part is looked at."""
        _verify_signature(self, key)

    def signer(self, keys: Sequence[Key]) -> Key:
        """Which of the keys signed the manifest; raises Problem if none did. No part is looked at."""
        problems = []
        for one in keys:
            try:
                self.verify_manifest(one)
                return one
            except Problem as problem:
                problems.append(problem)
        if len(problems) == 1:
            raise problems[0]
        raise Problem(f"{self.path.name} is signed by none of the {len(keys)} keys", problems[0].message)

    def read_sbom(self) -> bytes:
        """The CycloneDX document beside it, if it has one: the bytes whose sha256 the manifest holds."""
        part, chunks = self.sbom, list[bytes]()
        if part:
            _check_part(self.path.parent / part.file, part, chunks.append)
        return b"".join(chunks)

    @contextmanager
    def opened(self, key: Key) -> Iterator["Opened"]:
        """The parts as verified copies of our own: what is used is what was verified, whoever owns the files."""
        self.verify_manifest(key)
        handles: dict[str, int] = {}
        try:
            for part in self.parts:
                handles[part.role] = _verified_copy(self.path.parent / part.file, part)
            yield Opened(self, handles)
        finally:
            for handle in handles.values():
                os.close(handle)


@dataclass(frozen=True)
class Opened:
    """An artifact whose parts were copied while they were verified; valid inside `with artifact.opened(key)`."""

    artifact: Artifact
    handles: Mapping[str, int]  # role -> descriptor of a sealed memfd, or of a large part's file without a name

    def read(self, role: str) -> bytes:
        """The verified bytes of a part."""
        handle = self.handles[role]
        return os.pread(handle, os.fstat(handle).st_size, 0)


def load(path: Path) -> Artifact:
    """The artifact whose manifest, signature or part is at `path`; raises Problem when it is none."""
    manifest = manifest_of(path)
    try:
        with open(manifest, "rb") as file:
            text = file.read(MAX_MANIFEST + 1)
    except OSError as error:
        raise Problem(f"cannot read {manifest}: {error.strerror}") from error
    if len(text) > MAX_MANIFEST:
        raise Problem(f"{manifest} is larger than a manifest can be")
    return Artifact(manifest, text, _parse(text, manifest))


def canonical(manifest: Mapping[str, Any]) -> bytes:
    """A manifest as the bytes that are signed: sorted keys, one space of indent, UTF-8, one line end at the end."""
    return (json.dumps(manifest, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def manifest_of(path: Path) -> Path:
    """The manifest that answers for a file: itself, or a signature or part; raises Problem when there is none."""
    if path.name.endswith(MANIFEST_SUFFIX):
        return path
    if path.name.endswith(MANIFEST_SUFFIX + SIGNATURE_SUFFIX):
        return path.with_name(path.name.removesuffix(SIGNATURE_SUFFIX))
    for candidate in sorted(path.parent.glob("*" + MANIFEST_SUFFIX)) if path.parent.is_dir() else ():
        if candidate.is_file() and f'"file": "{path.name}"'.encode() in _beginning(candidate):
            return candidate
    raise Problem(
        f"{path} is no artifact: there is no manifest for it in {path.parent}", f"name a file *{MANIFEST_SUFFIX}"
    )


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_MANIFEST)


def _parse(text: bytes, path: Path) -> Mapping[str, Any]:
    try:
        manifest = json.loads(text)
        if not isinstance(manifest, dict) or canonical(manifest) != text:
            raise ValueError("not in canonical form")
        _check_shape(manifest)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Problem(f"{path} is not a manifest: {type(error).__name__}: {error}") from error
    return manifest


def _check_shape(manifest: Mapping[str, Any]) -> None:
    """What `Artifact` reads without looking: it may be read before any signature is verified, and be anybody's."""
    for name in ("name", "arch", "format", "kind"):
        if not isinstance(manifest[name], str):
            raise ValueError(f"{name} is no text")
    named = [*manifest["parts"], *([{"role": "sbom", **manifest["sbom"]}] if "sbom" in manifest else [])]
    for part in named:
        if not FILE_NAME.match(part["file"]):
            raise ValueError(f"part {part['file']!r} is no file beside it")
        if not isinstance(part["size"], int) or part["size"] < 0 or not SHA256.match(part["sha256"]):
            raise ValueError(f"part {part['file']} has no size and sha256")
    for name in ("role", "file"):
        values = [str(part[name]) for part in named]
        if len(values) != len(set(values)):
            raise ValueError(f"two parts have the same {name}")


def _verify_signature(artifact: Artifact, key: Key) -> None:
    signature = artifact.path.with_name(artifact.path.name + SIGNATURE_SUFFIX)
    try:
        with open(signature, "rb") as file:
            text = file.read(MAX_SIGNATURE).decode()
    except (OSError, UnicodeDecodeError):
        raise Problem(f"{artifact.path.name} is not signed: there is no {signature.name} beside it") from None
    try:
        key.verify(artifact.text, text)
    except Problem as problem:
        raise Problem(f"{artifact.path.name}: {problem.message}", problem.hint) from problem


def _verified_copy(path: Path, part: Part) -> int:
    """The part's bytes where nobody changes them: in memory, or if they are many in a file of our own."""
    is_large = part.size > LARGEST_IN_MEMORY
    handle = _on_disk(part) if is_large else _in_memory(part)
    try:
        _check_part(path, part, lambda chunk: _put(handle, chunk))
        os.ftruncate(handle, part.size)  # the last bytes may have been zeros, which are not written
        return _read_only(handle) if is_large else _sealed(handle)
    except BaseException:
        os.close(handle)
        raise


def _check_part(path: Path, part: Part, take: Callable[[bytes], object]) -> None:
    """Hash a part's bytes while they are taken; raises Problem when they are not those that the manifest names."""
    try:
        with open(path, "rb") as file:
            total, size = sha256(), 0
            while size <= part.size and (chunk := file.read(CHUNK)):
                total.update(chunk)
                size += len(chunk)
                take(chunk)
    except OSError as error:
        if error.errno == ENOSPC:
            raise RigProblem(f"no room for a verified copy of {path.name}", OTHER_CACHE) from error
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    if size != part.size or total.hexdigest() != part.sha256:
        what = "other bytes" if size == part.size else ("more bytes" if size > part.size else f"{size} bytes")
        raise Problem(f"{path.name} has {what}, not the {part.size} that the manifest names", "build it again")


def _in_memory(part: Part) -> int:
    return os.memfd_create(part.file[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _on_disk(part: Part) -> int:
    """A file without a name, in the cache: a disk may have more bytes than there is memory."""
    import tempfile

    folder = Path(stamp.cache_location()) / "opened"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:  # by O_TMPFILE, where the file system has that
            return os.dup(file.fileno())
    except OSError as error:
        raise RigProblem(f"cannot copy {part.file} to {folder}: {error.strerror}", OTHER_CACHE) from error


def _put(handle: int, chunk: bytes) -> None:
    """Write on, or leave a hole where all is zeros."""
    if chunk == ZEROS[: len(chunk)]:
        os.lseek(handle, len(chunk), os.SEEK_CUR)
        return
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _sealed(handle: int) -> int:
    import fcntl

    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
    return handle


def _read_only(handle: int) -> int:
    """The same file, which nobody has a descriptor of to write by, and none can be opened but by root."""
    os.fchmod(handle, 0o400)
    again = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(handle)
    return again
