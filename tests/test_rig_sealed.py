"""Boots of a sealed appliance: its parts as values, and what counts as a refusal; images/appliance.py really boots."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imagekit import host, sealed, toolbox
from imagekit.checks import tamper
from imagekit.checks.tamper import Tamper
from imagekit.console import Console
from imagekit.disk import qcow2
from imagekit.disk.altered import CLUSTER, Altered
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import GuestProblem, Problem
from imagekit.guest import Kept
from imagekit.rig import Rig, Tpm
from imagekit.sealed import First, Sealed
from imagekit.stores.directory import open_store

TOOLS = os.environ.get("IMAGEKIT_TOOLS", "auto")
MIB = 1 << 20
BASE = laid(20 * CLUSTER, [Piece(5, b"five"), Piece(CLUSTER * 2 - 2, b"over"), Piece(19 * CLUSTER, b"last")])


def whole(disk: Sparse) -> bytes:
    return b"".join(disk.chunks())


def changed() -> tuple[Altered, bytes]:
    """A disk after some writes, and what it is then."""
    disk, expected = Altered(BASE), bytearray(whole(BASE))
    writes = [(0, b"x"), (CLUSTER - 1, bytes(3)), (3 * CLUSTER, b"y" * CLUSTER), (5 * CLUSTER + 7, b"z" * 2 * CLUSTER),
              (20 * CLUSTER - 1, b"!"), (2 * CLUSTER, b"")]  # fmt: skip
    for offset, data in writes:
        disk = disk.write(offset, data)
        expected[offset : offset + len(data)] = data
    return disk, bytes(expected)


def test_a_disk_is_altered_as_a_value() -> None:
    disk, expected = changed()
    assert whole(disk.disk()) == expected
    assert whole(Altered(BASE).disk()) == whole(BASE)
    for offset, size in [(0, 1), (CLUSTER - 3, 9), (3 * CLUSTER - 1, CLUSTER + 2), (0, 20 * CLUSTER), (7, 0)]:
        assert disk.read(offset, size) == expected[offset : offset + size]
    assert disk.flip(5, 3).read(5, 1) == bytes([expected[5] ^ 8])
    assert disk.read(5, 1) == expected[5:6]


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (20 * CLUSTER, 1), (0, 20 * CLUSTER + 1), (5, -1)])
def test_a_disk_has_no_more(offset: int, size: int) -> None:
    with pytest.raises(Problem, match=f"the disk has {20 * CLUSTER} bytes"):
        Altered(BASE).read(offset, size)


def test_qemu_lays_the_same_over_a_disk(tmp_path: Path) -> None:
    disk, expected = changed()
    below, above, result = (tmp_path / name for name in ("below", "above", "result"))
    below.write_bytes(whole(BASE))
    above.write_bytes(b"".join(qcow2.layer(disk.size, disk.clusters)))
    img = toolbox.tools("qemu-img", mode=TOOLS, store=open_store())
    host.run(img.argv("qemu-img", "rebase", "-u", "-b", str(below), "-F", "raw", str(above)))
    host.run(img.argv("qemu-img", "convert", "-O", "raw", str(above), str(result)))
    assert result.read_bytes() == expected
    host.run(img.argv("qemu-img", "check", str(above)))


def test_what_an_overlay_holds_is_read_back(tmp_path: Path) -> None:
    disk, _ = changed()
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_bytes(b"".join(qcow2.layer(disk.size, disk.clusters)))
    assert dict(qcow2.clusters(ours)) == disk.clusters
    assert any(data == bytes(CLUSTER) for data in Altered(BASE).write(0, bytes(9)).clusters.values())
    ours.write_bytes(whole(BASE))
    img = toolbox.tools("qemu-img", mode=TOOLS, store=open_store())
    host.run(img.argv("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(ours), str(theirs)))
    found = dict(qcow2.clusters(theirs))
    assert {number: data for number, data in found.items() if any(data)} == {
        offset // CLUSTER: data for offset, data in BASE.filled(CLUSTER)
    }


@pytest.mark.parametrize("more", [("-o", "cluster_size=4096"), ("-c",)])
def test_an_overlay_that_is_not_ours(more: tuple[str, ...], tmp_path: Path) -> None:
    raw, theirs = tmp_path / "raw", tmp_path / "theirs"
    raw.write_bytes(b"x" * MIB)
    img = toolbox.tools("qemu-img", mode=TOOLS, store=open_store())
    host.run(img.argv("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *more, str(raw), str(theirs)))
    with pytest.raises(Problem, match=r"its clusters have 4096 bytes|it has a compressed cluster"):
        list(qcow2.clusters(theirs))


@pytest.mark.parametrize(
    ("console", "refusal"),
    [
        (b"[    1.2] imagekit: data sealed: state: PCR 7, 11\r\n", "the disk data: state: PCR 7, 11"),
        (b"imagekit: data sealed: another TPM\r\nimagekit: verity none fits\r\n", "the disk data: another TPM"),
        (b"imagekit: verity none fits\r\n", "the root: none fits"),
        (b"imagekit: verity root-a 2f23cc29\r\nimagekit: data open\r\n", ""),
        (
            b"[ 2.0] device-mapper: verity: 254:0: data block 7 is corrupted\r\n",
            "the kernel: 254:0: data block 7 is corrupted",
        ),
        (b'BdsDxe: failed to load Boot0001 "UEFI" from PciRoot(0x0): Access Denied\r\n', "the firmware: Access Denied"),
        (b"Error loading \\EFI\\Linux\\a.efi: Access denied\r\n", "the firmware: Access denied"),
        (b"Error registering initrd: Already started\r\n", "the loader: Error registering initrd: Already started"),
        (b"imagekit: other sealed: no TPM\r\n", ""),
        (b"imagekit: data sealed: \x1b[2J\r\n", "the disk data: \\x1b[2J"),
        (b"", ""),
    ],
)
def test_who_refuses(console: bytes, refusal: str) -> None:
    assert sealed.refused(console, "data") == refusal


MANIFEST = {"parts": [{"role": "disk", "seal": {"disk": "data"}}]}


class Machines:
    """A target whose machines print what they are told to, and note what they were started with."""

    def __init__(self, *consoles: bytes) -> None:
        self.consoles, self.rigs, self.cut = list(consoles), list[Rig](), 0

    def start(self, _opened: Any, *, rig: Rig, store: Any) -> Any:
        _ = store
        self.rigs.append(rig)
        console = Console()
        console.feed(self.consoles.pop(0))
        return Machine(self, console)


class Machine:
    """One of them."""

    def __init__(self, machines: Machines, console: Console) -> None:
        self.console, self._machines = console, machines
        self.tpm = SimpleNamespace(pcrs=lambda: {7: bytes(32)}, log=self._log)
        self.power = SimpleNamespace(cut=self._cut)

    def kept(self) -> Kept:
        return Kept({1: b"k" * CLUSTER}, b"tpm", b"variables")

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _cut(self) -> None:
        self._machines.cut += 1

    def _log(self) -> bytes:
        raise GuestProblem("there is no event log")


@pytest.fixture
def made() -> Iterator[Callable[..., tuple[Sealed, Machines]]]:
    """A `sealed` whose further boots print these."""
    opened: Any = SimpleNamespace(artifact=SimpleNamespace(manifest=MANIFEST))
    with ExitStack() as held:

        def make(*consoles: bytes) -> tuple[Sealed, Machines]:
            machines: Any = Machines(*consoles)
            first = First(
                opened, machines, Rig(memory=300), open_store(), BASE, Kept({}, b"tpm", b"vars"), b"", "", Path()
            )
            return Sealed(first, held), machines

        yield make


def test_a_refusal_in_other_words_is_none(made: Callable[..., tuple[Sealed, Machines]]) -> None:
    is_open, sealed = b"imagekit: data open\r\n", b"imagekit: data sealed: "
    boots, machines = made(sealed + b"another TPM\r\n", is_open, is_open, sealed + b"header\r\n")
    first = boots.refuses(tamper.other_tpm())
    assert (first.opened, first.refusal) == (False, "the disk data: another TPM")
    assert machines.cut == 1
    assert machines.rigs[0].tpm == Tpm()
    assert (machines.rigs[0].variables, machines.rigs[0].memory) == (b"vars", 300)
    assert boots.opens().opened
    with pytest.raises(GuestProblem, match=r"other-tpm: expected .* another TPM/, and its disk was opened") as told:
        boots.refuses(tamper.other_tpm())
    assert "measured otherwise than at the first boot: nothing\nguest| imagekit: data open" in told.value.message
    with pytest.raises(GuestProblem, match="expected to be opened, and refused by the disk data: header"):
        boots.opens()
    assert machines.cut == 2


def test_a_tamper_whose_refusal_comes_after_the_disk_is_open(made: Callable[..., tuple[Sealed, Machines]]) -> None:
    late = Tamper("late", lambda parts: parts, "the kernel", opens="imagekit: ready")
    boots, machines = made(b"imagekit: data open\r\n[1.0] device-mapper: verity: 254:0: data block 1 is corrupted\r\n")
    assert boots.refuses(late).refusal.startswith("the kernel: ")
    assert "imagekit: ready" in machines.rigs[0].wait


@pytest.mark.parametrize(
    ("manifest", "console", "words"),
    [
        ({"parts": [{"role": "disk"}]}, b"", "this image has no sealed disk"),
        (MANIFEST, b"imagekit: data open\r\n", "its first boot made no disk data"),
        (MANIFEST, b"imagekit: data new\r\n", "its first boot made no disk data"),
    ],
)
def test_a_first_boot_that_makes_no_disk(manifest: Any, console: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    machines: Any = Machines(console)
    with open(tmp_path / "disk", "rb") as disk, ExitStack() as held:
        opened: Any = SimpleNamespace(artifact=SimpleNamespace(manifest=manifest), handles={"disk": disk.fileno()})
        with pytest.raises(Problem, match=words):
            sealed.provisioned(opened, machines, rig=Rig(), store=open_store(), held=held)
