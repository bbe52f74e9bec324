"""Enrolment: the variable store of a machine whose firmware believes some boot keys, as a virtual machine is given one.

virt-firmware writes it, as a program in a process of its own; what it wrote is kept, by the keys and by what it began
with. Real machines are enrolled by their own menu, with the files of imagekit/efivars.
"""

import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from imagekit import host
from imagekit.bootkeys import BootKeys
from imagekit.errors import RigProblem, unknown
from imagekit.store import Store

STATES = {  # of Secure Boot: what is asked of virt-firmware beyond the keys, one time after the other
    "on": (("--sb",),),
    "off": (("--sb",), ("--set-false", "SecureBootEnable")),  # the keys are there, and nothing is checked
}
Steps = tuple[tuple[str, ...], ...]
NOTE, FORM = "uefi-variables", "1"
PROGRAM = "virt.firmware.vars"
MOST = 4 << 20  # bytes of a flash memory in which variables lie; behind them it is blank
GRAIN = 4096
PATIENCE = 120.0  # seconds


def variables(template: Path, keys: BootKeys, *, state: str = "on", store: Store) -> bytes:
    """The beginning of a flash memory, as far as it is not blank: the template with the keys enrolled.

    Raises Problem when a key is not fit to be, RigProblem when virt-firmware is not there.
    """
    if state not in STATES:
        raise unknown("state of Secure Boot", state, STATES)
    begin = blank(template)
    believed = {name: keys.certificate(name).pem for name in ("PK", "KEK")}
    spare = {f"db{number}": each.pem for number, each in enumerate(keys.db)}
    made_of = (FORM, sha256(begin).hexdigest(), keys.owner, believed, spare, STATES[state])
    key = sha256(repr(made_of).encode()).hexdigest()
    with host.once(store.folder("locks"), f"{NOTE}-{key}"):
        known = store.recall(NOTE, key)
        if known and store.has(digest := known.decode()):
            try:
                return store.read(digest)
            except KeyError:  # it was bad, and is set aside
                pass
        made = _written(begin, {**believed, **spare}, owner=keys.owner, steps=STATES[state])
        store.remember(NOTE, key, store.write([made]).encode())
        return made


def blank(template: Path) -> bytes:
    """The variables that a firmware is shipped with: none, in the form that it wants."""
    with template.open("rb") as file:
        begin = file.read(MOST).rstrip(b"\0")
    if not begin:  # Debian 12's, which its firmware formats when it starts
        raise RigProblem(f"{template} is blank: nothing can be enrolled in it", "--tools=tree brings another")
    return begin + bytes(-len(begin) % GRAIN)


def _written(begin: bytes, certificates: dict[str, str], *, owner: str, steps: Steps) -> bytes:
    """What virt-firmware makes of a store and certificates; these are the ones that were looked at."""
    with TemporaryDirectory(prefix="imagekit-") as name:
        folder = Path(name)
        store = folder / "store"
        store.write_bytes(begin)
        options: list[str | Path] = []
        for role, text in certificates.items():
            (folder / role).write_text(text)
            options += [{"PK": "--set-pk", "KEK": "--add-kek"}.get(role, "--add-db"), owner, folder / role]
        for number, words in enumerate(steps):
            argv = [sys.executable, "-P", "-m", PROGRAM, "--inplace", store, *words, *(() if number else options)]
            done = host.run(argv, ok=None, timeout=PATIENCE)
            if done.code:
                said = host.printable(done.stderr).strip().rpartition("\n")[2]
                raise RigProblem(f"virt-firmware enrols no keys: {said}", "pip install 'imagekit[uefi]' brings it")
        return store.read_bytes()
