"""A machine frozen into a folder with its guest as it is: memory, disks, console; any number may go on from there.

saved.json              what a resume must know and check; written last
state                   all that QEMU knows, memory included
kernel, initrd          for the next boot, after a power cut
NAME.N.disk             the overlays of a disk, the lowest first; the file below them stays where it is
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import file_digest
from pathlib import Path
from typing import Any

from imagekit.artifact import Artifact, Opened
from imagekit.errors import Problem, RigProblem
from imagekit.guest import Guest, Rig
from imagekit.rig import Disk
from imagekit.store import Store
from imagekit.targets import _qemu, _qemu_restore
from imagekit.targets._machine import Machine
from imagekit.targets._qemu_disks import Drive, Layer, over, overlay
from imagekit.targets._qemu_lives import Lives
from imagekit.targets._qemu_plan import DISKS, Plan, plan

FORM, NOTES, STATE = 1, "saved.json", "state"
OF_THE_MACHINE = (  # of the rig: what a resume cannot change
    *("memory", "channel", "cmdline", "firmware", "display", "media", "image_size"),
)


def saver(target: str, lives: Lives) -> Callable[[Path], None]:
    """A function that freezes the machine, as it then is, into a folder; the guest goes on afterwards."""

    def save(folder: Path) -> None:
        machine, made = lives.check_alive("it was saved"), lives.plan
        if made.rig.wires:
            raise Problem(
                "a machine on wires cannot be saved: the others on them would go on", "save one without `wires`"
            )
        if made.rig.tpm:
            raise Problem("a machine with a TPM cannot be saved", "keep its parts: `guest.tpm.state()`, and its disks")
        with _draft(Path(folder).absolute()) as draft:
            with open(draft / STATE, "wb") as state:
                disks = machine.ask(lambda: _freeze(machine, state.fileno(), lambda: _copy_disks(made, draft)))
            for role, handle in made.opened.handles.items():
                _copy(handle, draft / role)
            _describe(target, draft, made, machine, disks)

    return save


def resume(folder: Path, *, rig: Rig, store: Store) -> Guest:
    """A guest as it was when it was saved; the folder is only read. Raises Problem when it cannot be."""
    began, folder = time.monotonic(), Path(folder).absolute()
    notes = _read(folder)
    made = _planned(folder, notes, rig, store)
    try:
        lives = _resumed(folder, notes, made)
    except BaseException:
        made.close()
        raise
    lives.facts |= _qemu.facts(lives) | {"wall_seconds": time.monotonic() - began}
    return _qemu.guest(notes["target"], lives)


async def _freeze(machine: Machine, state: int, copy: Callable[[], Any]) -> Any:
    was_running = (await machine.monitor.execute("query-status"))["status"] == "running"
    try:
        await _qemu_restore.save(machine, state, ignore_shared=False)
        return copy()
    finally:
        if was_running:
            await machine.monitor.execute("cont")


def _copy_disks(made: Plan, draft: Path) -> list[dict[str, Any]]:
    """The overlays of each disk, at a moment when QEMU has written all and goes on with nothing."""
    told = []
    for drive in made.drives:
        own = [layer.handle for layer in drive.below if layer is not drive.lowest] + [drive.top]
        for number, handle in enumerate(own):
            _copy(handle, draft / f"{drive.name}.{number}.disk")
        source = str(drive.source or "")
        told.append({"name": drive.name, "size": drive.size, "layers": len(own), "source": source,
                     "identity": list(drive.identity), "flash": drive.is_flash})  # fmt: skip
    return told


def _describe(target: str, draft: Path, made: Plan, machine: Machine, disks: list[dict[str, Any]]) -> None:
    files = {path.name: [path.stat().st_size, _digest(path)] for path in draft.iterdir()}
    notes = {
        "form": FORM,
        "target": target,
        "qemu": machine.version,
        "accelerator": made.accelerator.name,
        "rig": {name: getattr(made.rig, name) for name in OF_THE_MACHINE},
        "artifact": [str(made.opened.artifact.path), made.opened.artifact.text.decode()],
        "manifest": dict(made.opened.artifact.manifest),
        "nonce": machine.agent.nonce,
        "disks": disks,
        "files": files,
        **_qemu_restore.told(machine),
    }
    (draft / NOTES).write_text(json.dumps(notes, indent=1))


def _read(folder: Path) -> Mapping[str, Any]:
    """The notes of a folder all of whose files are as they were written."""
    try:
        notes = json.loads((folder / NOTES).read_bytes())
        files, form = notes["files"], notes["form"]
        if form != FORM:
            raise Problem(f"{folder} was saved by another imagekit", "save it again")
        for name, (size, digest) in files.items():
            path = folder / name
            if path.stat().st_size != size or _digest(path) != digest:
                raise Problem(f"{folder} is damaged: {name} has other bytes than were saved", "save it again")
    except FileNotFoundError as error:
        what = Path(error.filename).name
        raise Problem(f"{folder} is no saved machine: there is no {what}", "`guest.save(folder)` makes one") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise Problem(f"{folder} is no saved machine: {NOTES} makes no sense ({error!r})") from error
    return dict(notes)


def _planned(folder: Path, notes: Mapping[str, Any], rig: Rig, store: Store) -> Plan:
    path, text = notes["artifact"]
    saved = replace(
        rig, **notes["rig"], accelerator=notes["accelerator"], disks=(), wires=(), wait="ready", fresh=False
    )
    with ExitStack() as own:
        artifact = Artifact(Path(path), text.encode(), notes["manifest"])
        handles = {part.role: own.enter_context(open(folder / part.role, "rb")).fileno() for part in artifact.parts}
        made = plan(Opened(artifact, handles), rig=saved, store=store)
    try:
        return replace(made, drives=tuple(_drive(folder, disk, store, made) for disk in notes["disks"]))
    except BaseException:
        made.close()
        raise


def _drive(folder: Path, disk: Mapping[str, Any], store: Store, made: Plan) -> Drive:
    source, below, held = Path(disk["source"]) if disk["source"] else None, [], made.held
    image = next((drive for drive in made.load.drives if drive.name == disk["name"]), None)
    if image:
        below = list(image.below[:1])
    elif source:
        whole = over(Disk(disk["name"], source=source), store.folder(DISKS), held)
        if list(whole.identity) != disk["identity"]:
            raise Problem(f"the disk {disk['name']} lies over {source}, which is not what it was when it was saved")
        below = list(whole.below)
    for number in range(disk["layers"]):
        handle = os.open(folder / f"{disk['name']}.{number}.disk", os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, handle)
        below.append(Layer(handle, "qcow2"))
    top = overlay(disk["size"], store.folder(DISKS), held)
    if image:
        return replace(image, top=top, below=tuple(below))
    return Drive(disk["name"], disk["size"], top, tuple(below), tuple(disk["identity"]), source, disk["flash"])


def _resumed(folder: Path, notes: Mapping[str, Any], made: Plan) -> Lives:
    with open(folder / STATE, "rb") as state:
        machine = _qemu_restore.incoming(made, made.command, notes, handles=(state.fileno(),))
        try:
            if machine.version != notes["qemu"]:
                hint = "its state is understood by that version alone: `--tools` chooses where QEMU comes from"
                raise Problem(f"{folder} was saved by QEMU {notes['qemu']}, and this is {machine.version}", hint)
            machine.ask(lambda: _qemu_restore.arrive(machine, state.fileno(), ignore_shared=False))
            return Lives(made, machine, how="resumed")
        except BaseException:
            machine.close()
            raise


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """A folder beside it that takes its name when the block ends well."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Problem(f"{folder} is there already", "save into a folder that is empty, or not there")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700, parents=True)
        yield draft
        draft.rename(folder)
    except OSError as error:
        raise RigProblem(f"cannot save to {folder}: {error.strerror}", "make room, or save elsewhere") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(handle: int, path: Path) -> None:
    size, done = os.fstat(handle).st_size, 0
    with open(path, "xb") as file:
        while done < size and (count := os.sendfile(file.fileno(), handle, done, size - done)):
            done += count


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
