"""Sealed: what an appliance with a sealed disk does in a state that it was not built for.

Its first boot is done once; each boot after that is a machine of its own, of copies of what the first one left: disk,
TPM and variables. A refusal is told by what the machine says: firmware of what it does not start, the kernel of a block
that is not the one that was hashed, the initrd of a disk that stays shut. Silence is a failure, and no refusal.
"""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from imagekit.artifact import Opened
from imagekit.checks.tamper import Parts, Tamper
from imagekit.console import escape
from imagekit.disk import containers, eventlog
from imagekit.disk.altered import Altered
from imagekit.disk.sparse import Sparse
from imagekit.errors import GuestProblem, Problem
from imagekit.guest import Guest, Kept, Target
from imagekit.rig import Rig, Tpm
from imagekit.store import Store

SAYS = {  # who refuses -> what is on the console then, with its reason
    "the disk {disk}": rb"imagekit: {disk} sealed: ([^\r\n]+)",
    "the root": rb"imagekit: verity (?!root-)([^\r\n]+)",
    "the kernel": rb"device-mapper: verity: ([^\r\n]* is corrupted)",
    "the loader": rb"(Error registering initrd: [^\r\n]+)",
    "the firmware": rb"(Access Denied|Access denied|Security Violation)",
}
PCR = re.compile(rb"imagekit: pcr (\d{1,2}) ([0-9a-f]{64})")


@dataclass(frozen=True)
class First:
    """The first boot of an image on a machine, and what it left."""

    opened: Opened = field(repr=False)
    target: Target = field(repr=False)
    rig: Rig
    store: Store = field(repr=False)
    base: Sparse = field(repr=False)  # the image's disk
    kept: Kept
    log: bytes = field(repr=False)
    console: str = field(repr=False)
    folder: Path = field(repr=False)  # for as long as the fixture

    @property
    def parts(self) -> Parts:
        """The machine as it left it, switched off."""
        disk = Altered(self.base, self.kept.altered)
        data = seal(self.opened.artifact.manifest)["disk"]
        tpm, variables = Tpm(self.kept.tpm), self.kept.variables
        return Parts(disk, tpm, variables, self.rig, data, self.folder, lambda: self.another)

    @cached_property
    def another(self) -> Kept:
        """What the first boot of another machine left."""
        return _first(self.opened, self.target, rig=self.rig, store=self.store)[0]


@dataclass(frozen=True)
class Outcome:
    """What a boot came to."""

    opened: bool
    refusal: str  # who refused, and why: "the disk data: another TPM"; "" where the disk was opened
    console: str = field(repr=False)
    pcrs: Mapping[int, bytes] = field(repr=False)  # as its TPM had them when that was said
    changed: tuple[str, ...]  # what was measured otherwise than at the first boot, by name
    guest: Guest = field(repr=False)  # alive where the disk was opened; its power is cut otherwise


class Sealed:
    """A factory of such boots: `sealed.boot(tamper.other_tpm())`; all are stopped when the test ends."""

    def __init__(self, first: First, held: ExitStack) -> None:
        self.first, self._held = first, held

    def boot(self, *tampers: Tamper) -> Outcome:
        """Start a machine that was tampered with so, and wait until its disk is open, or somebody refuses."""
        first, parts = self.first, self.first.parts
        for tamper in tampers:
            parts = tamper.change(parts)
        late = next((tamper.opens for tamper in tampers if tamper.opens), "")
        opens = late or f"imagekit: {parts.data} open"
        decisive = "|".join([f"({opens})", *_said(parts.data)])
        rig = replace(parts.rig, altered=parts.disk.clusters, tpm=parts.tpm, variables=parts.variables)
        awaited = f"(?#a disk {parts.data} that is open, or who refuses)"
        rig = replace(rig, wait=f"console:{awaited}(?:{decisive})[^\r\n]*[\r\n]")
        guest = self._held.enter_context(first.target.start(first.opened, rig=rig, store=first.store))
        return self._outcome(guest, opens, parts.data, has_tpm=parts.tpm is not None)

    def refuses(self, *tampers: Tamper) -> Outcome:
        """Boot it so; raises GuestProblem unless it is refused in the words that the first tamper expects."""
        outcome = self.boot(*tampers)
        wanted = tampers[0].words
        if outcome.opened or not re.search(wanted, outcome.refusal):
            said = "its disk was opened" if outcome.opened else f"refused by {outcome.refusal}"
            raise GuestProblem(f"{tampers[0].name}: expected to be refused with /{wanted}/, and {said}{_told(outcome)}")
        return outcome

    def opens(self, *tampers: Tamper) -> Outcome:
        """Boot it so; raises GuestProblem unless its disk is opened."""
        outcome = self.boot(*tampers)
        if not outcome.opened:
            raise GuestProblem(f"expected to be opened, and refused by {outcome.refusal}{_told(outcome)}")
        return outcome

    def later(self, guest: Guest) -> "Sealed":
        """The same, of what a further boot left; the guest is stopped for that."""
        guest.power.cut()
        return Sealed(replace(self.first, kept=guest.kept()), self._held)

    def _outcome(self, guest: Guest, opens: str, data: str, *, has_tpm: bool) -> Outcome:
        console = bytes(guest.console.head + guest.console.tail)
        refusal = refused(console, data)
        is_opened = not refusal and re.search(opens.encode(), console) is not None
        pcrs = guest.tpm.pcrs() if has_tpm else {}
        changed = tuple(map(str, differences(self.first.log, guest))) if has_tpm else ()
        if not is_opened:
            guest.power.cut()
        return Outcome(is_opened, refusal, guest.console.text, pcrs, changed, guest)


def provisioned(opened: Opened, target: Target, *, rig: Rig, store: Store, held: ExitStack) -> First:
    """Boot an image for the first time on a machine with a new TPM; raises Problem where it has no sealed disk."""
    seal(opened.artifact.manifest)
    _, base = held.enter_context(containers.opened(Path(f"/proc/self/fd/{opened.handles['disk']}")))
    alone = replace(rig, channel=False)
    kept, log, text = _first(opened, target, rig=alone, store=store)
    folder = Path(held.enter_context(TemporaryDirectory(prefix="imagekit-")))
    return First(opened, target, alone, store, base, kept, log, text, folder)


def _first(opened: Opened, target: Target, *, rig: Rig, store: Store) -> tuple[Kept, bytes, str]:
    """(what it left, event log, console) of a first boot."""
    disk = seal(opened.artifact.manifest)["disk"]
    with target.start(opened, rig=replace(rig, tpm=Tpm(), wait="ready"), store=store) as guest:
        text = guest.console.text
        if f"imagekit: {disk} new" not in text or f"imagekit: {disk} open" not in text:
            raise GuestProblem(f"its first boot made no disk {disk}\n{guest.console.end()}")
        return guest.kept(), guest.tpm.log(), text


def seal(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a manifest says of the sealed disk; raises Problem for an image without one."""
    found = next((part["seal"] for part in manifest["parts"] if part.get("seal")), None)
    if not found:
        raise Problem("this image has no sealed disk", "Layout(seal=Seal()) gives it one")
    return dict(found)


def refused(console: bytes, data: str) -> str:
    """Who refused first, and why: "the disk data: signature"; "" where nobody did."""
    found = []
    for who, said in zip(SAYS, _said(data), strict=True):
        if match := re.search(said.encode(), console):
            found.append((match.start(), f"{who.format(disk=data)}: {escape(match[1])}"))
    return min(found)[1] if found else ""


def differences(first: bytes, guest: Guest) -> list[eventlog.Difference]:
    """What a guest measured otherwise than the first boot did; nothing where it came not that far."""
    try:
        there = guest.tpm.log()
    except GuestProblem:
        return []
    expected, found = (eventlog.parse(log).measurements() for log in (first, there))
    return eventlog.differences(expected, found)


def _said(data: str) -> list[str]:
    return [said.decode().replace("{disk}", re.escape(data)) for said in SAYS.values()]


def _told(outcome: Outcome) -> str:
    changed = "\n".join(outcome.changed) or "nothing"
    return f"\nmeasured otherwise than at the first boot: {changed}\n{outcome.guest.console.end()}"
