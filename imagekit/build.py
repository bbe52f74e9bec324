"""Lock, compose, write, sign, keep: the only place that knows the whole order."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import imagekit
from imagekit import artifact as artifacts
from imagekit import assets, bootkeys, compose, early, host, memory, offer, options, plugs, sbom, supply
from imagekit import lock as locks
from imagekit.artifact import MANIFEST_SUFFIX, SIGNATURE_SUFFIX, Artifact, Format, Job, Written
from imagekit.errors import Problem, RigProblem, unknown
from imagekit.image import File, Image, path_of
from imagekit.key import Key
from imagekit.lock import Lock
from imagekit.package import Package, Pin
from imagekit.store import Spoiled, Store, touch, wary
from imagekit.supply import check_lock as check_lock
from imagekit.supply import licences as licences
from imagekit.supply import quiet as quiet
from imagekit.supply import read_lock as read_lock
from imagekit.supply import write_lock as write_lock
from imagekit.tree import Tree

if TYPE_CHECKING:
    from imagekit.toolbox import Tools

Say = Callable[[str], None]
LARGEST = 20  # paths that a manifest names
LOOKS = 16  # places at which two files are compared before they are read whole


def tree(image: Image, *, folder: Path, lock: Lock, arch: str, store: Store, say: Say = quiet) -> Tree:
    """The image's file system for one architecture, from the packages that the lock pins."""
    found = supply.packages(image, lock, arch, folder=folder, store=store, say=say)
    return _compose(image, found, folder=folder, arch=arch, store=store)


def artifact(
    image: Image, *, folder: Path, lock: Lock, arch: str, format: str, key: Key, store: Store, say: Say = quiet,
    tools: str | None = None,
) -> Artifact:  # fmt: skip
    """The image as a signed artifact in the store: made once per digest of all that it depends on, whoever asks first.

    tools: where formats take their programs from, as `--tools` says it; None looks that option up.
    Raises Problem when the lock is behind the definition, or when anything in the image does not fit.
    """
    supply.check_protection(image)
    check_lock(image, lock)
    supply.check_beside(lock, arch, folder=folder)
    _check_offered(image, arch, format)
    definition = definition_digest(image, folder)
    pinned = _tools_mode(tools)
    boot_keys = bootkeys.chosen() if image.disk.is_signed else None
    guarded = [boot_keys.digest] if boot_keys else []
    plan = _digest([own_digest(), definition, lock.digest, arch, format, key.public.hex(), pinned, *guarded])
    place = store.folder("artifacts") / plan
    with host.once(store.folder("locks"), f"artifact-{plan}", say=say):
        made = _kept(place, key, say)
        if made is None:
            say(f"{image.name} {arch}: composing")
            packages = supply.packages(image, lock, arch, folder=folder, store=store, say=say)
            whole = _updatable(_compose(image, packages, folder=folder, arch=arch, store=store), image, arch, key)
            say(f"{image.name} {arch}: writing {format}")
            bring = partial(_tools, pinned, store, say)
            job = Job(image.name, image.version, arch, store, image.disk, boot_keys, bring, say, key)
            made = _write(whole, packages, job=job, format=format, place=place, key=key,
                          asked={"definition": definition, "lock": lock.digest, "suite": image.suite})  # fmt: skip
    return made


def publish(made: Artifact, out: Path) -> Artifact:
    """Copy an artifact to a folder, parts first, signature last; or a RigProblem, and what was there stays."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RigProblem(f"cannot write to {out}: {error.strerror}", "name another folder with -o") from error
    names = (*(file.file for file in made.files), made.path.name, made.path.name + SIGNATURE_SUFFIX)
    new = [name for name in names if not _same(made.path.parent / name, out / name)]
    with ExitStack() as drafts:  # all are written before the first gets its name; the last to be begun gets it first
        for name in reversed(new):
            _copy(made.path.parent / name, drafts.enter_context(host.draft(out / name, is_large=True)))
    return Artifact(out / made.path.name, made.text, made.manifest)


def _same(source: Path, target: Path) -> bool:
    """Whether the target has the source's bytes already: reading them costs a fraction of writing them."""
    try:
        with open(source, "rb", buffering=0) as a, open(target, "rb", buffering=0) as b:
            size = os.fstat(a.fileno()).st_size
            if size != os.fstat(b.fileno()).st_size:
                return False
            for at in range(0, size, max(size // LOOKS, 1)):  # what differs mostly does from somewhere to the end
                if os.pread(a.fileno(), 4096, at) != os.pread(b.fileno(), 4096, at):
                    return False
            return all(chunk == b.read(len(chunk)) for chunk in iter(lambda: a.read(1 << 16), b""))
    except OSError:
        return False


def _copy(source: Path, draft: BinaryIO) -> None:
    with open(source, "rb") as file:
        left = os.fstat(file.fileno()).st_size
        while left and (sent := os.sendfile(draft.fileno(), file.fileno(), None, left)):
            left -= sent


def definition_digest(image: Image, folder: Path) -> str:
    """sha256 of the definition: the Image value and the bytes of the files that it names."""
    sources = {}
    for written, content in image.files.items():
        if isinstance(content, File):
            entries = compose.source_tree(content, path_of(written), folder)
            sources[written] = Tree(entries).digest
    return _digest([asdict(image), sources])


def inputs(image: Image, definition: Path) -> list[str]:
    """Every file that decides what a build of this definition gives, for those who ask whether one has changed.

    Folders are named too: their times tell of files that came or went. Modules that the definition imported count.
    """
    found: list[str | Path] = [definition, locks.beside(definition), *_own_files()]
    found += supply.inputs(read_lock(definition), folder=definition.parent)
    if image.disk.is_signed:
        found += bootkeys.chosen().files
    for content in image.files.values():
        if isinstance(content, File):
            source = definition.parent / content.source
            found += [source, *source.rglob("*")] if source.is_dir() else [source]
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path and not path.startswith((sys.prefix, sys.base_prefix)):
            found.append(Path(path))
    project = options.project(Path.cwd())[0]
    return [os.path.abspath(path) for path in (*found, *filter(None, [project]))]  # noqa: PTH100 - without an object each


@cache
def own_digest() -> str:
    """Names this imagekit by size and time of each of its files: another one may write other bytes."""
    found = ((os.path.basename(path), os.stat(path)) for path in _own_files())  # noqa: PTH116, PTH119 - half the time
    return _digest([imagekit.__version__, [[name, of.st_size, of.st_mtime_ns] for name, of in found]])


@cache
def _own_files() -> list[str]:
    found = os.walk(Path(__file__).parent)
    return sorted(  # also no .pyc.NUMBER, which Python has while it writes one
        f"{folder}/{name}" for folder, _, names in found for name in names if ".pyc" not in name
    )


def target_modules(arch: str) -> tuple[str, ...]:
    """The kernel modules that the known machines of an architecture need, whichever of them is selected."""
    targets = [plugs.load("targets", name) for name in plugs.names("targets")]
    return tuple(sorted({module for target in targets if arch in target.arches for module in target.modules}))


def _known_modules(arch: str, store: Store) -> tuple[str, ...]:
    """The same, remembered: loading every machine takes longer than composing an image."""
    if set(plugs.names("targets")) != set(plugs.own("targets")):
        return target_modules(arch)
    key = sha256(f"{own_digest()} {arch}".encode()).hexdigest()
    known = store.recall("target-modules", key)
    if known is None:
        known = "\n".join(target_modules(arch)).encode()
        store.remember("target-modules", key, known)
    return tuple(known.decode().split())


def _modules(image: Image, arch: str, store: Store) -> tuple[str, ...]:
    """The kernel modules that machines and formats need, each once and in a fixed order."""
    found = offer.modules(image, arch)
    if offer.disks(image, arch):
        found |= {module for names in early.root_modules(image.disk).values() for module in names}
    known = _known_modules(arch, store)
    return (*known, *sorted(found - set(known)))


def _compose(image: Image, packages: list[tuple[Pin, Package]], *, folder: Path, arch: str, store: Store) -> Tree:
    modules, drivers = (_modules(image, arch, store), offer.drivers(image, arch)) if image.kernel else ((), ())
    whole = compose.compose(image, packages, folder=folder, arch=arch, modules=modules, drivers=drivers, store=store)
    if image.disk.guards:
        from imagekit import hardened  # here: most images have nothing of it

        hardened.check_tree(whole, image.disk)
    names = offer.assets(image, arch)
    return whole.override(assets.tree(names, _bringing(names, packages, arch))) if image.kernel else whole


def _updatable(whole: Tree, image: Image, arch: str, key: Key) -> Tree:
    """The tree of an image in two slots with what installs updates, which the key signs unless the image says whose."""
    if image.disk.slots == 1 or not image.kernel:
        return whole
    added = early.updates(image, arch, keys=[key])
    return whole.override(added.without([early.UPDATE_KEYS]) if early.UPDATE_KEYS in whole else added).complete()


def _bringing(names: list[str], packages: list[tuple[Pin, Package]], arch: str) -> list[Package]:
    """The packages that may bring assets: none that is only there for the root is looked through."""
    own = assets.packages(names, arch)
    return [package for pin, package in packages if pin.role != "package" or package.name in own]


def _check_offered(image: Image, arch: str, format: str) -> None:
    for what, asked, offered in (("arch", arch, image.arches), ("format", format, image.formats)):
        if asked not in offered:
            problem = unknown(what, asked, offered)
            raise Problem(f"image {image.name!r} is not made for it: {problem.message}", problem.hint)


def _kept(place: Path, key: Key, say: Say) -> Artifact | None:
    """The artifact that lies at `place`, if every byte of it is right; a damaged one is removed and made again."""
    manifests = list(place.glob(f"*{MANIFEST_SUFFIX}")) if place.is_dir() else []
    if not manifests:
        return None
    try:
        made = artifacts.load(manifests[0])
        made.verify(key)
    except Problem as problem:
        say(f"the kept artifact is damaged and is made again: {problem.message}")
        _removed(place)
        return None
    touch(place)
    return made


def _tools_mode(given: str | None) -> str:
    """The pinned programs, unless the host's were asked for: another version of a program may write other bytes."""
    mode = options.lookup("tools", given, folder=Path.cwd(), default="auto")
    return "host" if mode == "host" else "tree"


def _tools(mode: str, store: Store, say: Say, *names: str) -> "Tools":
    from imagekit import toolbox  # here: many formats write with none

    return toolbox.tools(*names, mode=mode, store=store, say=say)


def _write(
    whole: Tree, packages: list[tuple[Pin, Package]], *, job: Job, format: str, place: Path, key: Key,
    asked: Mapping[str, str],
) -> Artifact:  # fmt: skip
    kind: Format = plugs.load("formats", format)
    written = _written(kind, whole, job)
    stem = f"{job.name}_{job.version}_{job.arch}"
    parts = [_part(role, stem + kind.suffixes[role], of) for role, of in written.items()]
    about = {"name": job.name, "version": job.version, "arch": job.arch, "format": format, "kind": kind.kind}
    content = {"parts": parts, "tree": whole.digest, "packages": _listed(whole, packages), "largest": _largest(whole)}
    machine = {  # what it must be wired for, and have
        "network": _network(whole),
        "memory": memory.needed(whole, job=job, format=kind),
    }
    manifest = {"imagekit": imagekit.__version__, **about, **machine, **asked, **content}
    return _place(manifest, written, f"{stem}.{format}", place=place, key=key, store=job.store)


def _written(kind: Format, whole: Tree, job: Job) -> dict[str, Written]:
    """What the format writes; once more if something of the cache was wrong, of which all is then hashed before."""
    try:
        return kind.write(whole, job=job)
    except Spoiled as spoiled:
        job.say(f"{spoiled.message}: writing again")
        return kind.write(whole, job=replace(job, store=wary(job.store)))


def _network(whole: Tree) -> str:
    """What the image does about its network, in the words of early boot; "" where there is no early boot."""
    return whole.read(early.NETWORK).decode().strip() if early.NETWORK in whole else ""


def _part(role: str, name: str, of: Written) -> dict[str, Any]:
    return {"role": role, "file": name, "size": of.size, "sha256": of.sha256, **of.facts}


def _listed(whole: Tree, packages: list[tuple[Pin, Package]]) -> list[dict[str, Any]]:
    """Every package, what it was made from, and the bytes that it has in the image, which may be none."""
    sizes = whole.sizes()
    rows = [
        {
            "name": package.name, "version": pin.version, "architecture": pin.architecture, "sha256": pin.sha256,
            "digest": package.digest, "source": pin.source, "origin": [*package.origin], "licence": package.licence,
            "size": sizes.get(package.owner, 0),
        }
        for pin, package in packages
    ]  # fmt: skip
    return sorted(rows, key=lambda row: (row["name"], row["version"], row["architecture"], row["sha256"]))


def _largest(whole: Tree) -> list[list[str | int]]:
    """Lists, as they are once the manifest was written and read again: an artifact that is kept equals a new one."""
    rows = sorted((-entry.size, path) for path, entry in whole.items())
    return [[path, -size] for size, path in rows[:LARGEST]]


def _place(
    manifest: Mapping[str, Any], written: Mapping[str, Written], stem: str, *, place: Path, key: Key, store: Store
) -> Artifact:
    """Lay the artifact down whole: a draft folder, renamed when parts, SBOM, manifest and signature are in it."""
    name, beside, document = stem + MANIFEST_SUFFIX, stem + sbom.SUFFIX, sbom.cyclonedx(manifest)
    told = {"file": beside, "size": len(document), "sha256": sha256(document).hexdigest()}
    manifest = {**manifest, "sbom": told}
    text = artifacts.canonical(manifest)
    comment = f"imagekit {manifest['name']} {manifest['version']} {manifest['arch']} {manifest['format']}"
    draft = place.with_name(f".{place.name}")  # whoever makes this artifact holds its lock: what is there was abandoned
    _removed(draft)
    draft.mkdir()
    for part in manifest["parts"]:
        os.link(store.path(written[part["role"]].sha256), draft / part["file"])
    (draft / beside).write_bytes(document)
    (draft / name).write_bytes(text)
    (draft / (name + SIGNATURE_SUFFIX)).write_text(key.sign(text, comment=comment))
    draft.replace(place)
    return Artifact(place / name, text, manifest)


def _removed(folder: Path) -> None:
    """Take away a folder that nobody uses, if it is there."""
    if os.path.lexists(folder):
        import shutil  # here: there hardly ever is one

        shutil.rmtree(folder)


def _digest(value: object) -> str:
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
