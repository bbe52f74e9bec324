"""Template: a machine that has booted, kept in the cache so that others go on from there instead of booting.

    templates/KEY/ram           the guest's memory, mapped privately by each restored machine: what it does not write
                                is in memory once for all of them
    templates/KEY/state         all else that QEMU knows, a third of a MiB
    templates/KEY/NAME.disk     an overlay per disk
    templates/KEY/template.json what a restore must know and check; KEY is a digest of all that makes the machine

A folder appears whole, by rename. It is locked (shared) while a machine lives on it; what nobody holds is removed when
it is of an earlier boot of this host, of a maker who was killed, or the oldest of too many.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from imagekit import host
from imagekit.errors import RigProblem
from imagekit.store import Store
from imagekit.targets._qemu_plan import Plan

FOLDER, NOTES, RAM, STATE = "templates", "template.json", "ram", "state"
FORM = 1  # raise it when a template is made or read otherwise
MOST, MOST_BYTES = 12, 4 << 30
MAX_STATE = 1 << 30  # bytes


@dataclass(frozen=True)
class Template:
    """One that was found and checked; its descriptors, and the lock, live as long as the ExitStack that got them."""

    folder: Path
    notes: Mapping[str, Any]  # nonce, stages, console
    ram: int
    state: int
    disks: Mapping[str, int]  # name -> descriptor of its overlay


def impossible(plan: Plan) -> str:
    """Why a machine cannot be restored from a template; "" when it can be tried."""
    rig = plan.rig
    if rig.wires:
        return "the other machines on its wires cannot be restored with it"
    if rig.tpm:
        return "its TPM would not be the one that the template's guest knew"
    if not rig.channel:
        return "without a channel nobody can set a restored guest's clock and randomness"
    if rig.wait != "ready":
        return f"it is waited for {rig.wait!r}, and a template is a guest that is ready"
    return ""


def key(plan: Plan, agent: bytes) -> str:
    """A digest of all that decides how the booted machine is, and which QEMU can go on with it."""
    program = plan.tools.path(plan.program)
    status = program.stat()
    qemu = (plan.tools.version(plan.program), str(program), status.st_size, status.st_mtime_ns)
    powers = host.powers() if plan.accelerator.name == "kvm" else ()
    machine = (plan.command.arguments, plan.command.cmdline, plan.identity)
    whole = (FORM, _boot_id(), plan.opened.artifact.digest, qemu, powers, machine, sha256(agent).hexdigest())
    return sha256(repr(whole).encode()).hexdigest()


def find(store: Store, name: str, held: ExitStack, *, disks: Sequence[str] = ()) -> Template | None:
    """The template of that key, if there is one; raises RigProblem, and removes it, when it is damaged."""
    folder = store.folder(FOLDER) / name
    with ExitStack() as own:
        try:
            _lock(folder, fcntl.LOCK_SH, own)
            notes = json.loads((folder / NOTES).read_bytes())
            own_disks = {disk: _open(folder / f"{disk}.disk", own) for disk in disks}
            found = Template(folder, notes, _open(folder / RAM, own), _open(folder / STATE, own), own_disks)
        except FileNotFoundError:
            return None
        except ValueError:
            fault = f"{NOTES} is no JSON"
        else:
            fault = _fault(found)
        if not fault:
            with suppress(OSError):
                os.utime(folder)  # the last one to be removed
            held.enter_context(own.pop_all())
            return found
    remove(folder)
    raise RigProblem(f"the template was damaged and is removed: {fault}")


def remove(folder: Path) -> None:
    """Take a template away, unless a machine lives on it: then it is only not found any more."""
    with suppress(FileNotFoundError):
        (folder / NOTES).unlink()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def draft(store: Store, name: str) -> Iterator[Path]:
    """A folder that becomes the template of that key when the block ends well, and is removed when it does not."""
    templates = store.folder(FOLDER)
    with ExitStack() as own:
        folder = templates / f"draft-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            with _alone(templates):  # nobody sweeps a draft that is about to be locked
                sweep(templates)
                folder.mkdir(mode=0o700)
                own.callback(shutil.rmtree, folder, ignore_errors=True)
                _lock(folder, fcntl.LOCK_EX, own)
            yield folder
            remove(templates / name)
            folder.rename(templates / name)
        except OSError as error:
            raise RigProblem(f"cannot keep a template in {templates}: {error.strerror}") from error


def describe(folder: Path, **more: Any) -> None:
    """Write the notes of a draft whose other files are complete."""
    ram, state, disks = (folder / RAM).stat(), folder / STATE, sorted(folder.glob("*.disk"))
    notes = {
        "boot": _boot_id(),
        "ram": _known_by(ram),
        "state": [state.stat().st_size, _digest(state)],
        "disks": {path.stem: _known_by(path.stat()) for path in disks},
        **more,
    }
    (folder / NOTES).write_text(json.dumps(notes))


def sweep(templates: Path) -> None:
    """Remove what nobody holds and nobody will use, and the oldest of those that are too many."""
    kept = []
    for folder in templates.iterdir():
        if folder.name.startswith("draft-") or _boot_of(folder) != _boot_id():
            _remove_unheld(folder)
        else:
            with suppress(OSError):
                kept.append((folder.stat().st_mtime, _size(folder), folder))
    count, size = len(kept), sum(size for _, size, _ in kept)
    for _, own, folder in sorted(kept):  # the oldest first; there is one to come
        if (count >= MOST or size > MOST_BYTES * (1 - 1 / MOST)) and _remove_unheld(folder):
            count, size = count - 1, size - own


@contextmanager
def _alone(templates: Path) -> Iterator[None]:
    """One process at a time: what is done here takes milliseconds."""
    with ExitStack() as own:
        handle = os.open(templates, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        own.callback(os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remove_unheld(folder: Path) -> bool:
    with suppress(OSError), ExitStack() as own:
        _lock(folder, fcntl.LOCK_EX, own)
        remove(folder)
        return True
    return False


def _lock(folder: Path, kind: int, own: ExitStack) -> None:
    """Lock a folder, which the kernel frees with its holder; raises OSError when it cannot be had, or is gone."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    own.callback(os.close, handle)
    fcntl.flock(handle, kind | (fcntl.LOCK_NB if kind == fcntl.LOCK_EX else 0))
    if not folder.is_dir():
        raise FileNotFoundError(folder)


def _open(path: Path, own: ExitStack) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # QEMU opens its memory for writing, also where it maps a copy
    own.callback(os.close, handle)
    return handle


def _fault(found: Template) -> str:
    """What is not as it was when the template was made; memory is not read for that, as restoring it must be quick."""
    try:
        ram, (size, digest) = os.fstat(found.ram), found.notes["state"]
        if _known_by(ram) != list(found.notes["ram"]):
            return f"its memory was changed, or has {ram.st_size} bytes instead of {found.notes['ram'][0]}"
        if os.fstat(found.state).st_size != size or size > MAX_STATE:
            return f"its state has {os.fstat(found.state).st_size} bytes instead of {size}"
        if sha256(os.pread(found.state, size, 0)).hexdigest() != digest:
            return "its state has other bytes"
        for name, handle in found.disks.items():
            if _known_by(os.fstat(handle)) != list(found.notes["disks"][name]):
                return f"its disk {name} was changed"
        if not {"nonce", "stages", "console"} <= set(found.notes):
            return f"{NOTES} is incomplete"
    except (KeyError, TypeError, ValueError) as error:
        return f"{NOTES} makes no sense: {error!r}"
    return ""


def _known_by(status: os.stat_result) -> list[int]:
    """What a file that is too large to be read again is known by."""
    return [status.st_size, status.st_mtime_ns]


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _boot_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / NOTES).read_bytes())["boot"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
