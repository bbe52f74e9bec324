"""The toolbox: QEMU, firmware and disk tools, of this machine or from pinned packages; nothing is ever installed.

`tools("qemu-img", mode="auto", store=store)` takes a program of the machine where its version suffices, else one from
a tools tree: packages pinned in tools/*.lock, fetched when first needed, unpacked into the cache without root, and put
over /usr in a mount namespace of the program's own. Where the kernel forbids such namespaces, the tree's own dynamic
loader starts the program.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit import host, lock, plugs, room, shelf
from imagekit.arch import ARCHES, Arch
from imagekit.arch import host as host_arch
from imagekit.disk import folder
from imagekit.errors import Defect, Problem, RigProblem, unknown
from imagekit.namespace import SHARED
from imagekit.package import Gone, Package, Pin, Progress, Request, Source
from imagekit.shelf import Group, Tool
from imagekit.store import Store, touch
from imagekit.tree import Entry, Slice, directory, union

GROUPS: Mapping[str, Group] = shelf.GROUPS
TOOLS: Mapping[str, Tool] = shelf.TOOLS
MODES = ("auto", "host", "tree")
SUITE = "trixie"  # its QEMU 10 knows machines that Debian 12's 7.2 lacks; its erofs-utils and e2fsprogs read tar
LOCKS = Path(__file__).parent / "tools"
FORM = "1"  # raise it when what is unpacked changes: other trees, other names
ABSENT = ("adduser", "passwd", "debconf", "perl-base", "python3", "systemd")  # wanted by install scripts, never run
SKIPPED = re.compile(r"/usr/share/(doc|man|locale|info|lintian|bug|icons|applications)(/|$)|/gconv(/|$)")
NOTE = "tools"
Say = Callable[[str], None]


class Found(NamedTuple):
    """One tool, as it will be started."""

    origin: str  # "host", "tree" (over /usr), or "loader" (the tree's, where namespaces are forbidden)
    version: str
    path: Path  # on this machine, also of what lies in the tree
    prefix: tuple[str, ...]  # of its argument list, less the launcher
    usr: Path | None = None  # what the launcher puts over /usr


@dataclass(frozen=True)
class Tools:
    """The tools that were asked for. What `argv` gives can be started by subprocess as it stands."""

    found: Mapping[str, Found]

    def argv(self, name: str, *args: str | Path) -> list[str]:
        """The argument list that starts a tool; it dies with the thread of this process that starts it."""
        tool, words = self._named(name), [os.fspath(arg) for arg in args]
        return host.launcher([*tool.prefix, *words], usr=tool.usr)

    def version(self, name: str) -> str:
        """The version that a program tells of itself."""
        return self._named(name).version

    def origin(self, name: str) -> str:
        """Where a tool is from: "host", "tree" or "loader"."""
        return self._named(name).origin

    def path(self, name: str) -> Path:
        """Where a firmware file, or a program, lies on this machine."""
        return self._named(name).path

    @property
    def env(self) -> dict[str, str]:
        """The environment to start them with."""
        return host.environment()

    def _named(self, name: str) -> Found:
        if name not in self.found:
            raise Defect(f"the tool {name!r} was not asked for", f"asked for: {', '.join(self.found)}")
        return self.found[name]


def quiet(line: str) -> None:
    """Say nothing."""
    _ = line


def tools(*names: str, mode: str = "auto", store: Store, say: Say = quiet, progress: Progress | None = None) -> Tools:
    """These tools, from this machine or the tree, fetched if they must be.

    Raises RigProblem when the machine's own are wanted and do not suffice, or when the tree cannot be had.
    """
    if mode not in MODES:
        raise unknown("choice of tools", mode, MODES)
    for name in names:
        if name not in TOOLS:
            raise unknown("tool", name, TOOLS)
    return Tools({name: _find(name, mode, store, say, progress or bar(say)) for name in names})


def on_host(name: str, store: Store) -> tuple[Found | None, str]:
    """This machine's own tool if it suffices, and in words what is there or is missing."""
    tool = TOOLS[name]
    if not tool.flag:
        path = next((p for p in map(Path, (tool.path, *tool.elsewhere)) if p.is_file()), None)
        return (Found("host", "", path, ()), str(path)) if path else (None, f"no {tool.path}")
    path = host.look_up(name)
    if path is None:
        return None, f"no {name}"
    version = _host_version(path, tool, store)
    if _numbers(version) < tool.minimum:
        return None, f"{name} {version or 'of unknown version'}, older than {'.'.join(map(str, tool.minimum))}"
    return Found("host", version, path, (str(path),)), f"{name} {version}"


def fetched(group: str, store: Store) -> str:
    """Which of a group's packages lie in the cache as a tree: "pinned" or "newer" ones, or "", none."""
    present = _present(group, store)
    return (present and ("pinned" if present.name == digest(group, _pins(group)) else "newer")) or ""


def size(group: str) -> int:
    """Bytes that fetching a group takes when the cache is empty."""
    return sum(pin.size for pin in _pins(group))


def write_locks(store: Store, say: Say = quiet) -> None:
    """Pin the newest packages of every group, for every architecture that imagekit runs on."""
    LOCKS.mkdir(exist_ok=True)
    for arch in ARCHES.values():
        say(f"tools: resolving for {arch.name}")
        resolved = _source().resolve([_request(group, arch) for group in GROUPS], store)
        archives = sorted({archive for answer in resolved for archive in answer.archives})
        pins = {group: answer.pins for group, answer in zip(GROUPS, resolved, strict=True)}
        written = lock.Lock(table_digest(), tuple(archives), pins)
        (LOCKS / f"{arch.name}.lock").write_text(written.text(), encoding="utf-8")
        _pinned.cache_clear()


def table_digest() -> str:
    """What the locks must answer: the groups, their packages and the suite."""
    return sha256(repr((SUITE, ABSENT, {name: group.packages for name, group in GROUPS.items()})).encode()).hexdigest()


def bar(say: Say) -> Progress:
    """Progress as lines for `say`; a terminal shows the newest alone."""

    def progress(what: str, done: int, total: int) -> None:
        full = done * 20 // max(total, 1)
        say(f"{what} [{'#' * full:20}] {done / 1e6:.1f} of {total / 1e6:.1f} MB {done * 100 // max(total, 1)} %")

    return progress


def _find(name: str, mode: str, store: Store, say: Say, progress: Progress) -> Found:
    if mode != "tree":
        found, what = on_host(name, store)
        if found:
            return found
        if mode == "host":
            raise RigProblem(f"this machine has {what}", "install it, or let imagekit bring its own: --tools=auto")
    tool = TOOLS[name]
    tree = _tree(tool.group, store, say, progress)
    path = Path(f"{tree}{tool.path}")
    if not path.exists():
        raise Defect(f"{tool.path} is not in the tools tree {tree}")
    return _entered(name, tree, path, store) if tool.flag else Found("tree", "", path, ())


# --- this machine's own ---------------------------------------------------------------------------------------------


def _host_version(path: Path, tool: Tool, store: Store) -> str:
    """Asked once per version of the file: QEMU takes a tenth of a second to say it."""
    status = path.stat()
    key = sha256(repr((str(path), status.st_mtime_ns, status.st_size, tool.flag)).encode()).hexdigest()
    known = store.recall(NOTE, f"version-{key}")
    if known is None:
        known = _version(host.run([path, tool.flag], ok=None, timeout=30)).encode()
        store.remember(NOTE, f"version-{key}", known)
    return known.decode()


def _version(done: host.Done) -> str:
    match = re.search(rb"\d+(\.\d+)+", done.stdout + done.stderr)  # mke2fs tells it on stderr
    return match[0].decode() if match else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".") if number)


# --- entering the tree ----------------------------------------------------------------------------------------------


def _entered(name: str, tree: Path, path: Path, store: Store) -> Found:
    """How a program of the tree starts here: tried once per boot and powers, because asking the kernel lies."""
    key = sha256(repr((host.powers(), str(path))).encode()).hexdigest()
    known = store.recall(NOTE, f"entry-{key}")
    if known is None:
        known = " ".join(_try_entry(name, tree, path)).encode()
        store.remember(NOTE, f"entry-{key}", known)
    origin, _, version = known.decode().partition(" ")
    if origin == "loader":
        return Found(origin, version, path, loader(name, tree))
    return Found(origin, version, path, (TOOLS[name].path,), tree / "usr")


def _try_entry(name: str, tree: Path, path: Path) -> tuple[str, str]:
    """(origin, version): through a mount namespace, else through the tree's own loader."""
    flag = TOOLS[name].flag
    over = host.run(host.launcher([TOOLS[name].path, flag], usr=tree / "usr"), ok=None, timeout=60)
    if _version(over):
        return "tree", _version(over)
    alone = host.run([*loader(name, tree), flag], ok=None, timeout=60)
    if _version(alone):
        return "loader", _version(alone)
    said = host.printable(over.stderr[-500:] + alone.stderr[-500:]).strip()
    raise RigProblem(
        f"{path} does not start on this machine: {said}", "`imagekit doctor` tells more; --tools=host uses yours"
    )


def loader(name: str, tree: Path) -> tuple[str, ...]:
    """The words that start a program of the tree without any privilege, where user namespaces are forbidden."""
    arch = host_arch()
    libraries = f"{tree}/usr/lib/{arch.triplet}"
    modules = f"QEMU_MODULE_DIR={libraries}/qemu"  # else QEMU loads this machine's own modules, of another version
    start = (f"{tree}/usr{arch.interpreter}", "--library-path", libraries, f"{tree}{TOOLS[name].path}")
    folders = ("qemu", "seabios", "qemu-efi-aarch64") if name.startswith("qemu-system-") else ()
    data = [word for folder in folders for word in ("-L", f"{tree}/usr/share/{folder}")]
    return (str(host.look_up("env")), modules, *start, *data)


# --- making the tree ------------------------------------------------------------------------------------------------


def _tree(group: str, store: Store, say: Say, progress: Progress) -> Path:
    """A group's tree in the cache, made once whoever asks first."""
    present = _present(group, store)
    if present:
        return present
    with host.once(store.folder("locks"), f"tools-{group}", say=say):
        return _present(group, store) or _make(group, store, say, progress)


def _present(group: str, store: Store) -> Path | None:
    """The tree of the pinned packages; else of those that replaced them when the mirror had dropped some."""
    pinned = digest(group, _pins(group))
    replaced = store.recall(NOTE, f"replaced-{pinned}")
    places = [store.folder("tools") / name for name in (pinned, (replaced or b"").decode()) if name]
    found = next((place for place in places if place.is_dir()), None)
    if found:
        touch(found)
    return found


def _make(group: str, store: Store, say: Say, progress: Progress) -> Path:
    pins = _pins(group)
    try:
        return _unpacked(group, pins, store, say, progress)
    except Gone as gone:
        _loud(f"WARNING: {gone.message}", say)
        _loud(f"WARNING: taking the newest tools of {SUITE} instead, as signed by its archive", say)
    newer = _source().resolve([_request(group, host_arch())], store)[0].pins
    tree = _unpacked(group, newer, store, say, progress)
    store.remember(NOTE, f"replaced-{digest(group, pins)}", tree.name.encode())
    return tree


def _loud(line: str, say: Say) -> None:
    """A line that stays: on a terminal the next one takes the place of the last."""
    say(line)
    if sys.stderr.isatty():
        print(file=sys.stderr)


def _unpacked(group: str, pins: Sequence[Pin], store: Store, say: Say, progress: Progress) -> Path:
    """The packages as a folder that appears whole or not at all."""
    import shutil

    name = digest(group, pins)
    draft, final = store.folder("tools") / f"draft-{name}", store.folder("tools") / name
    shutil.rmtree(draft, ignore_errors=True)  # of one who was killed: we hold the lock
    try:
        packages = _source().packages(
            pins, store, lambda what, *sizes: progress(f"tools {group}: {what}", *sizes), folder=Path()
        )
        say(f"tools {group}: unpacking {len(packages)} packages")
        folder.write(_wanted(group, packages), draft)
        os.sync()  # a power cut after the rename must not leave a program with holes
        draft.rename(final)
        if GROUPS[group].kept:
            _forget(packages)
    except OSError as error:
        raise RigProblem(
            f"cannot unpack the tools to {draft}: {error.strerror}", room.hint(Path(store.location), error)
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return final


def _forget(packages: Sequence[Package]) -> None:
    """Drop the converted bytes of firmware packages: 400 MB, of which we unpacked four, and no image holds them."""
    for place in {e.content.path for p in packages for e in p.tree.values() if isinstance(e.content, Slice)}:
        Path(place).unlink(missing_ok=True)


def digest(group: str, pins: Sequence[Pin]) -> str:
    """The name of the tree that these packages make."""
    words = (FORM, group, GROUPS[group].kept, SKIPPED.pattern, sorted(pin.sha256 for pin in pins))
    return sha256(repr(words).encode()).hexdigest()


def _wanted(group: str, packages: Sequence[Package]) -> Iterator[tuple[str, Entry]]:
    """What of the packages is unpacked: /usr, less manuals and the like; of a firmware group, the named files alone."""
    kept = re.compile(GROUPS[group].kept or r"/usr/.*")
    trees = [
        p.tree.filter(lambda path: kept.fullmatch(path) is not None and not SKIPPED.search(path)) for p in packages
    ]
    whole = union(trees)
    links_last = sorted(whole.paths, key=lambda path: whole[path].kind == "hardlink")
    for path in (*(f"/usr/{name}" for name in SHARED), *links_last):
        entry = whole.get(path, directory())
        yield path, entry._replace(mode=0o755 if entry.mode & 0o111 else 0o644)  # no set-id bits


def _source() -> Source:
    source: Source = plugs.load("sources", "debian")
    return source


def _request(group: str, arch: Arch) -> Request:
    asked = GROUPS[group].packages
    without = tuple(name for name in ABSENT if name not in asked)
    return Request(asked, kernel="", init=(), without=without, suite=SUITE, arch=arch.name)


def _pins(group: str) -> tuple[Pin, ...]:
    return _pinned(LOCKS / f"{host_arch().name}.lock")[group]


@cache
def _pinned(path: Path) -> Mapping[str, tuple[Pin, ...]]:
    try:
        return lock.read(path).pins
    except Problem as problem:
        raise Defect(problem.message, "write it with `imagekit lock --tools`") from problem
