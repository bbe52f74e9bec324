"""Slots, for real: a machine installs an update, tries it and keeps it; another one goes back to what it had."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, PIPE
from threading import Timer

from slots_rig import ukis

from imagekit import Image, Layout, Service, Verity, build, host, key, supply, toolbox, updating
from imagekit.stores.directory import open_store

HOME = Path(__file__).parents[1]
FORMATS = HOME / "images/formats.py"
KEY = key.read(HOME / "fixtures/keys/test.key")
FIRMWARE = {"x86_64": ("ovmf-code", "ovmf-vars"), "aarch64": ("aavmf-code", "aavmf-vars")}
MACHINE = {"x86_64": ("q35", "max"), "aarch64": ("virt", "cortex-a53")}
PATIENCE = 500  # seconds, after which a machine that hangs is ended
INSTALLS = (  # what lies on a second disk, behind its length
    "/usr/bin/sh", "-c",
    "exec > /dev/console 2> /dev/console; "
    "if [ -b /dev/vdb ] && read size < /dev/vdb && tail -c +513 /dev/vdb | head -c $size | imagekit-update -; "
    "then /usr/sbin/reboot; fi; exec sleep 999999",
)  # fmt: skip


def image(version: str, *services: Service) -> Image:
    return Image(
        "web", version=version, kernel="debian:linux-image-cloud", network="none", services=services,
        disk=Layout(root="erofs", verity=Verity(), slots=2), formats=("raw_efi", "update"),
    )  # fmt: skip


def built(made: Image, arch: str, format: str, folder: Path) -> Path:
    """A copy of what a format writes, with the packages of an image that is there for tests."""
    lock = build.read_lock(FORMATS)
    lock = replace(lock, request=supply._request_digest(made))
    whole = build.artifact(made, folder=folder, lock=lock, arch=arch, format=format, key=KEY, store=open_store())
    (part,) = whole.parts
    copy = folder / part.file
    copy.write_bytes((whole.path.parent / part.file).read_bytes())
    return copy


@contextmanager
def console(arch: str, *disks: Path) -> Iterator[Iterator[str]]:
    """The lines that a machine shows that its firmware starts from a disk, and that starts again by itself."""
    program, (code, variables), (machine, cpu) = f"qemu-system-{arch}", FIRMWARE[arch], MACHINE[arch]
    tools = toolbox.tools(program, code, variables, mode="tree", store=open_store())
    store = disks[0].with_suffix(".vars")
    store.write_bytes(Path(tools.path(variables)).read_bytes())
    flash = (f"if=pflash,format=raw,readonly=on,file={tools.path(code)}", f"if=pflash,format=raw,file={store}")
    drives = [*flash, *(f"if=none,id=d{number},format=raw,file={disk}" for number, disk in enumerate(disks))]
    argv = tools.argv(
        program, "-machine", machine, "-cpu", cpu, "-m", "384", "-nodefaults", "-display", "none", "-serial", "stdio",
        "-boot", "menu=on,splash-time=0", *(word for drive in drives for word in ("-drive", drive)),
        *(w for n, _ in enumerate(disks) for w in ("-device", f"virtio-blk-pci,drive=d{n},bootindex={n}")),
    )  # fmt: skip
    process = host.launch(argv, env=tools.env, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    late = Timer(PATIENCE, host.kill, [process])
    late.start()
    try:
        assert process.stdout
        yield (line.decode("utf-8", "replace").rstrip() for line in process.stdout)
    finally:
        late.cancel()
        host.end(process)


def until(lines: Iterator[str], words: str) -> list[str]:
    """What imagekit says on the console, up to a line with these words; fails where it ends before."""
    seen = []
    for line in lines:
        seen.append(line)
        if words in line:
            return [line.partition("imagekit: ")[2] for line in seen if "imagekit: " in line]
    raise AssertionError(f"nobody said {words!r}: " + "\n".join(seen[-40:]))


def test_a_machine_installs_an_update_tries_it_and_keeps_it(tmp_path: Path) -> None:
    services = (Service("install", INSTALLS),)
    disk = built(image("1", *services), "x86_64", "raw_efi", tmp_path)
    update = built(image("1.1", *services), "x86_64", "update", tmp_path).read_bytes()
    second = tmp_path / "second"
    second.write_bytes(f"{len(update)}\n".encode().ljust(512, b"\0") + update + bytes(-len(update) % 512))
    with console("x86_64", disk, second) as lines:
        first = until(lines, "web 1.1 is on /dev/vda in slot b; the next start tries it")
        assert any(line.startswith("verity root-a ") for line in first)
        assert not any(line.startswith("slot ") for line in first), "it was shipped as one that needs no trial"
        again = until(lines, "slot kept web_1.1")
        assert any(line.startswith("verity root-b ") for line in again)
        assert "slot trying web_1.1: 2 tries left" in again
    assert ukis(disk) == ["web_1.1.efi", "web_1.efi"]


def test_a_machine_leaves_an_update_whose_service_does_not_come_up(tmp_path: Path) -> None:
    disk = built(image("1"), "aarch64", "raw_efi", tmp_path)
    broken = image("2", Service("broken", "/usr/bin/false", ready="tcp:80"))
    update = built(broken, "aarch64", "update", tmp_path)
    told = updating.on_disk(update, disk, said=updating.verified(update, [KEY]), keys=[KEY])
    assert told == f"web 2 is on {disk} in slot b; the next start tries it"
    leave_one_try(disk)
    with console("aarch64", disk) as lines:
        tried = until(lines, "slot failed web_2: a service failed")
        assert "slot trying web_2: 0 tries left" in tried
        assert any(line.startswith("verity root-b ") for line in tried)
        back = until(lines, "imagekit: ready")
        assert any(line.startswith("verity root-a ") for line in back)
        assert not any(line.startswith("slot ") for line in back)
    assert ukis(disk) == ["web_1.efi", "web_2+0-1.efi"]


def leave_one_try(disk: Path) -> None:
    """As two failed starts would, but for how many there were: they all end alike."""
    data = disk.read_bytes()
    three, one = ("".join(f"{letter}\0" for letter in f"+{tries}.efi").encode() for tries in (3, 1))
    assert data.count(three) == 1
    disk.write_bytes(data.replace(three, one))
