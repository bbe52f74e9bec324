"""Updates of a disk with two slots: what the guest's program refuses, writes, and leaves when the power is cut."""

import shutil
import subprocess
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from slots_rig import (
    KEY,
    OTHER,
    PROGRAM,
    Release,
    files,
    holds,
    install,
    keep,
    newer,
    part,
    settings,
    ship,
    ukis,
)  # fmt: skip

from imagekit import slots, toolbox
from imagekit.disk import fatfiles, updatefile
from imagekit.disk.updatefile import HEAD
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

CUT = 75  # the program's exit code where a test cuts the power
SMALL = Release(blocks=300, uki_size=70_001)
ASCENDING = (  # by `systemd-analyze compare-versions` of systemd 252
    "1.0~rc1", "1.0", "1.0-1", "1.0-1.1", "1.0^post", "1.0.B", "1.0.a", "1.0.0", "1.0.1", "1.0.1a", "1.0.9", "1.0.10",
    "1.2", "2", "02.1", "2a", "10", "2026.11.26",
)  # fmt: skip


def compare(one: str, other: str) -> int:
    """What the guest's program says."""
    return int(subprocess.run([PROGRAM, "compare", one, other], capture_output=True, check=True).stdout)


@pytest.mark.parametrize("number", range(len(ASCENDING)))
def test_versions_have_one_order_on_both_sides(number: int) -> None:
    one, analyze = ASCENDING[number], shutil.which("systemd-analyze")
    for other in ASCENDING[number + 1 :]:
        assert slots.order(one) < slots.order(other)
        assert (compare(one, other), compare(other, one)) == (-1, 1)
    for other in ASCENDING[number + 1 : number + 2] if analyze else ():
        assert subprocess.run([str(analyze), "compare-versions", one, "lt", other], check=False).returncode == 0
    assert slots.order(one) == slots.order(one)
    assert compare(one, one) == 0


@pytest.mark.parametrize("version", ["", "1+2", "1-", "-1", "1:2", "1_2", "1 2", "1/2", "\u0661", "1" * 101, "1\n"])
def test_versions_that_systemd_boot_cannot_order_are_refused(version: str) -> None:
    with pytest.raises(Problem, match="cannot be ordered by systemd-boot"):
        slots.check("web", version)


def test_ukis_come_in_the_order_in_which_they_are_started() -> None:
    names = ["web_1.efi", "web_3+0-3.efi", "web_2+1-2.efi", "web_10+3.efi", "WEB_1.1.EFI"]
    others = ["EFI/BOOT/BOOTX64.EFI", *(f"EFI/Linux/{name}" for name in ("webber_1.efi", "web_4+x.efi", "web_5.new"))]
    found = slots.of("web", [*(f"EFI/Linux/{name}" for name in names), *others])
    assert [(one.version, one.left) for one in found] == [("10", 3), ("2", 1), ("1.1", None), ("1", None), ("3", 0)]
    assert slots.uki("web", "2", tries=3) == "EFI/Linux/web_2+3.efi"


# --- what is installed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("esp", "blocks", "uki"), [(4, 300, 1_100_000), (40, 700, 9_000_001), (520, 128, 4096), (4, 0, 900_000)]
)  # FAT12, FAT16, FAT32; the last has its root in the UKI
def test_an_update_is_installed_and_kept(tmp_path: Path, esp: int, blocks: int, uki: int) -> None:
    old = Release(blocks=blocks, uki_size=uki)
    disk, folder = ship(tmp_path / "disk", old, esp=esp), settings(tmp_path / "s", old)
    for version, slot in (("2", "b"), ("3", "a"), ("3.1", "b")):
        new = newer(old, version=version)
        done = install(disk, new.update(), folder)
        assert (done.returncode, done.stderr) == (0, b"")
        where = f"{disk} in slot {slot}" if blocks else f"{disk}"
        assert done.stdout.decode() == f"web {version} is on {where}; the next start tries it\n"
        assert ukis(disk) == [f"web_{version}+3.efi", f"web_{old.version}.efi"]
        settings(folder, new)
        assert keep(disk, folder).returncode == 0
        assert ukis(disk) == [f"web_{version}.efi", f"web_{old.version}.efi"]
        assert not blocks or holds(disk, slot, new)
        old = new
    check_fat(disk, tmp_path / "esp")


def check_fat(disk: Path, to: Path) -> None:
    """Let dosfstools say that the boot partition is right."""
    with open(to, "wb") as file:
        file.writelines(part(disk, "boot").chunks())
    tools = toolbox.tools("fsck.fat", mode="tree", store=open_store())
    done = subprocess.run(tools.argv("fsck.fat", "-n", to), capture_output=True, env=tools.env, check=False)
    assert done.returncode == 0, done.stdout


def test_an_update_survives_a_power_cut_at_every_write(tmp_path: Path) -> None:
    new, named = newer(SMALL), {slots.uki("web", "0.9"): b"before", slots.uki("web", "1"): SMALL.uki}
    shipped, folder = ship(tmp_path / "shipped", SMALL, esp=1, others=named), settings(tmp_path / "s", SMALL)
    update, disk, done = new.update(), tmp_path / "disk", 0
    for writes in range(1000):
        shutil.copy(shipped, disk)
        cut = install(disk, update, folder, writes)
        assert ukis(disk) in (["web_1.efi", "web_0.9.efi"], ["web_1.efi"], ["web_2+3.efi", "web_1.efi"])
        assert holds(disk, "a", SMALL)
        assert holds(disk, "b", new) or "web_2+3.efi" not in ukis(disk)
        done = cut.returncode
        if done != CUT:
            break
        assert install(disk, update, folder).returncode == 0
        assert holds(disk, "b", new)
    assert done == 0
    assert writes > 8
    check_fat(disk, tmp_path / "esp")


def test_a_name_without_tries_survives_a_power_cut_at_every_write(tmp_path: Path) -> None:
    old, long = newer(SMALL, version="1"), "9" * 90
    new = newer(SMALL, version=long)
    for before in range(0, 90, 13):  # so that the name lies across two sectors, too
        others = {f"EFI/Linux/{'x' * 100}{n}.txt": b"" for n in range(before // 13)}
        named = {**others, slots.uki("web", long, tries=2): new.uki, slots.uki("web", "1"): old.uki}
        for writes in range(10):
            disk = ship(tmp_path / "disk", new, esp=1, others=named)
            folder = settings(tmp_path / "s", new)
            done = keep(disk, folder, writes).returncode
            started = [path for path in files(disk) if path.startswith("EFI/Linux/") and path.lower().endswith(".efi")]
            assert len(started) >= 2, started
            assert slots.uki("web", "1") in started
            if done != CUT:
                break
        assert done == 0
        assert ukis(disk) == [f"web_{long}.efi", f"web_{long}.efi", "web_1.efi"][1:]


# --- what is refused ------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "not newer": (lambda: newer(SMALL, version="1").update(), "not newer than what runs"),
    "older": (lambda: newer(SMALL, version="0.9").update(), "not newer than what runs"),
    "lower generation": (lambda: newer(SMALL, generation=4).update(), "of a lower generation"),
    "another image": (lambda: newer(SMALL, name="wet").update(), "of another image"),
    "another architecture": (lambda: newer(SMALL, arch="aarch64").update(), "for another architecture"),
    "another signer": (lambda: newer(SMALL).update(OTHER), "not signed by a key that the running image trusts"),
    "a root too large": (
        lambda: newer(SMALL, blocks=1025, generation=5).update(),
        "root does not fit into the other slot",
    ),
    "a root in the UKI": (lambda: newer(SMALL, blocks=0, generation=5).update(), "has its root elsewhere"),
    "nothing": (lambda: b"", "no update of imagekit"),
    "an image": (lambda: b"\x1f\x8b\x08\0" * 99, "no update of imagekit"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_changes_nothing(tmp_path: Path, what: str) -> None:
    update, words = REFUSED[what]
    disk, folder = (
        ship(tmp_path / "disk", SMALL, esp=1),
        settings(tmp_path / "s", newer(SMALL, version="1", generation=5)),
    )
    before = disk.read_bytes()
    done = install(disk, update(), folder)
    assert (done.returncode, done.stdout) == (1, b"")
    assert words in done.stderr.decode()
    assert done.stderr.startswith(b"imagekit-update: th")
    assert disk.read_bytes() == before


def test_an_update_whose_uki_does_not_fit_is_refused(tmp_path: Path) -> None:
    disk, folder = ship(tmp_path / "disk", SMALL, esp=1), settings(tmp_path / "s", SMALL)
    done = install(disk, newer(SMALL, uki_size=1 << 20).update(), folder)
    assert b"the boot partition has no room for it" in done.stderr
    assert (ukis(disk), holds(disk, "a", SMALL)) == (["web_1.efi"], True)


def test_an_image_that_has_not_proven_itself_takes_no_update(tmp_path: Path) -> None:
    named = {slots.uki("web", "2", tries=2): newer(SMALL).uki, slots.uki("web", "1"): SMALL.uki}
    disk, folder = ship(tmp_path / "disk", newer(SMALL), esp=1, others=named), settings(tmp_path / "s", newer(SMALL))
    before = disk.read_bytes()
    assert b"what runs has not proven itself yet" in install(disk, newer(SMALL, version="3").update(), folder).stderr
    assert disk.read_bytes() == before


def test_what_failed_is_replaced_by_the_next_update(tmp_path: Path) -> None:
    named = {"EFI/Linux/web_2+0-3.efi": newer(SMALL).uki, slots.uki("web", "1"): SMALL.uki}
    disk, folder = ship(tmp_path / "disk", SMALL, esp=1, others=named), settings(tmp_path / "s", SMALL)
    assert ukis(disk) == ["web_1.efi", "web_2+0-3.efi"]
    assert install(disk, newer(SMALL, version="2.1").update(), folder).returncode == 0
    assert ukis(disk) == ["web_2.1+3.efi", "web_1.efi"]


def test_keys_change_by_an_image_that_trusts_both(tmp_path: Path) -> None:
    disk, folder = ship(tmp_path / "disk", SMALL, esp=1), settings(tmp_path / "s", SMALL, KEY, OTHER)
    assert install(disk, newer(SMALL).update(OTHER), folder).returncode == 0


def verified(update: bytes) -> updatefile.Update:
    """What an update says, as hosts read it."""
    file = BytesIO(update)
    found = updatefile.read(file, [KEY])
    updatefile.check(file, found)
    return found


def alterations(update: bytes) -> dict[str, bytes]:
    """Updates that nobody signed, by what was done to them."""
    start = HEAD + int.from_bytes(update[8:12], "little") + int.from_bytes(update[12:16], "little")
    places = [*range(0, start, 23), start, start + (1 << 20) + 5, len(update) - 1]
    flipped = {f"byte {at}": update[:at] + bytes([update[at] ^ 1]) + update[at + 1 :] for at in places}
    cut = {
        f"cut to {size}": update[:size] for size in (HEAD - 1, HEAD, start - 1, start, start + 5000, len(update) - 1)
    }
    other = newer(SMALL, version="3").update()
    return {**flipped, **cut, "longer": update + b"x", "another body": update[:start] + other[start:]}


def test_an_altered_update_is_never_started(tmp_path: Path) -> None:
    shipped, folder = ship(tmp_path / "shipped", SMALL, esp=1), settings(tmp_path / "s", SMALL)
    disk, update = tmp_path / "disk", newer(SMALL).update()
    shutil.copy(shipped, disk)
    for what, altered in alterations(update).items():
        done = install(disk, altered, folder)
        assert (done.returncode, done.stdout) == (1, b""), what
        assert (ukis(disk), holds(disk, "a", SMALL)) == (["web_1.efi"], True), what
        with pytest.raises(Problem):
            verified(altered)
    assert verified(update).said == newer(SMALL).said


# --- hostile boot partitions ----------------------------------------------------------------------------------------


def patched(disk: Path, at: int, data: bytes) -> None:
    """Other bytes in the boot partition."""
    with disk.open("r+b") as file:
        file.seek((1 << 20) + at)
        file.write(data)


def entry(disk: Path, name: bytes) -> int:
    """Where the folder's entry of a short name lies in the boot partition."""
    return part(disk, "boot").read(0, 1 << 20).index(name.ljust(11))


def loop_of_clusters(disk: Path) -> None:
    """The UKI's second cluster leads back to the first; FAT12 packs two numbers into three bytes."""
    where = fatfiles.head(part(disk, "boot"))
    first = int.from_bytes(part(disk, "boot").read(entry(disk, b"WEB_1   EFI") + 26, 2), "little")
    first += first % 2
    for table in (512, 512 + (where.root[0] - 512) // 2):
        patched(disk, table + first * 3 // 2, ((first + 1) | first << 12).to_bytes(3, "little"))


def folder_in_itself(disk: Path) -> None:
    """EFI/Linux is EFI."""
    own = part(disk, "boot").read(entry(disk, b"EFI") + 26, 2)
    patched(disk, entry(disk, b"LINUX") + 26, own)


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a loop of clusters": (loop_of_clusters, ""),  # of a file that nobody reads: what of it is in use is known
    "a folder in itself": (folder_in_itself, "the file system of its boot partition is damaged"),
    "no sectors": (lambda disk: patched(disk, 11, b"\0\0"), "holds no FAT that is known here"),
    "clusters of none": (lambda disk: patched(disk, 13, b"\0"), "holds no FAT that is known here"),
    "more sectors than there are": (lambda disk: patched(disk, 19, b"\xff\xff"), "holds no FAT that is known here"),
    "no table": (lambda disk: patched(disk, 22, b"\0\0"), "holds no FAT that is known here"),
    "no EFI/Linux": (lambda disk: patched(disk, entry(disk, b"LINUX"), b"\xe5"), "has no EFI/Linux"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_boot_partition_is_refused_or_does_no_harm(tmp_path: Path, what: str) -> None:
    spoil, words = HOSTILE[what]
    disk, folder = ship(tmp_path / "disk", SMALL, esp=1), settings(tmp_path / "s", SMALL)
    spoil(disk)
    before = disk.read_bytes()
    done = install(disk, newer(SMALL).update(), folder)
    assert done.returncode == (1 if words else 0), done.stderr
    assert words in done.stderr.decode()
    assert not words or disk.read_bytes() == before
