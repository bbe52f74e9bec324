"""What a Pi's firmware makes of config.txt and of the files on a card: what it finds, and what it misses."""

import gzip

import pytest

from imagekit.disk import raspi
from imagekit.disk.card import Given
from imagekit.disk.raspi import BOARDS
from imagekit.errors import Problem

PI3, PI4 = BOARDS["raspi3b"], BOARDS["raspi4b"]
FILES = (
    *("bootcode.bin", "start.elf", "fixup.dat", "start_cd.elf", "fixup_cd.dat", "start4.elf", "fixup4.dat"),
    *("start_x.elf", "fixup_x.dat", "start4x.elf", "fixup4x.dat", "kernel8.img", "vmlinuz", "initramfs8", "second.img"),
    *("bcm2710-rpi-3-b.dtb", "bcm2837-rpi-3-b.dtb", "bcm2711-rpi-4-b.dtb", "other.dtb", "overlays/x.dtbo"),
    *("upstream/kernel8.img", "upstream/bcm2837-rpi-3-b.dtb", "half/kernel8.img", "cmdline.txt", "own.txt"),
)


def card(config: str = "arm_64bit=1\n", *, without: tuple[str, ...] = (), **texts: str) -> dict[str, Given]:
    """A boot partition with about everything on it."""
    written = {"cmdline.txt": "console=tty1 root=x\nsecond line\n", "own.txt": "own\n", "config.txt": config, **texts}
    return {name: Given(written.get(name, name).encode()) for name in (*FILES, *written) if name not in without}


@pytest.mark.parametrize(
    ("lines", "set_for_3", "set_for_4"),
    [
        ("a=1", "1", "1"),
        ("[pi3]\na=3\n[pi4]\na=4", "3", "4"),
        ("[pi4]\na=4\n[all]\na=1", "1", "1"),
        ("[pi3]\n[all]\n[pi4]\na=4", None, "4"),
        ("[none]\na=1", None, None),
        ("[pi3+]\na=1\n[pi400]\na=1", None, None),
        ("[cm4]\na=1\n[pi4]\na=4", None, "4"),
        ("[0x12345678]\na=1", None, None),  # some board's serial number
        ("[0x12345678]\n[pi3]\na=1", None, None),  # of different kinds all must fit
        ("[EDID=VSC-TD2220]\na=1\n[all]\na=2", "2", "2"),
        ("[gpio4=1]\na=1", None, None),
        ("[tryboot]\na=1", None, None),
        ("[board-type=0x11]\na=4", None, "4"),
        ("# a=1\n  a=2  \n", "2", "2"),
        ("a=1\na=2", "2", "2"),
        ("a=" + "x" * 200, "x" * 96, "x" * 96),  # the rest of the line is not read
        ("include own.txt\n", "3", "3"),
        ("include missing.txt\na=1", "1", "1"),
        ("[pi4]\ninclude own.txt\n", "3", "3"),  # [all] in there
        ("a", None, None),
        ("\xff\xfea=1\n\0a=2", "2", "2"),
    ],
)
def test_settings(lines: str, set_for_3: str | None, set_for_4: str | None) -> None:
    files = card(lines, **{"own.txt": "[all]\na=3\n"})
    assert raspi.settings(files, PI3)[0].get("a") == set_for_3
    assert raspi.settings(files, PI4)[0].get("a") == set_for_4


@pytest.mark.parametrize(
    ("board", "config", "expected"),
    [
        (PI3, "arm_64bit=1", {"kernel": "kernel8.img", "device_tree": "bcm2710-rpi-3-b.dtb", "start": "start.elf"}),
        (PI3, "kernel=kernel8.img", {"kernel": "kernel8.img"}),  # a name that it knows
        (PI4, "", {"kernel": "kernel8.img", "device_tree": "bcm2711-rpi-4-b.dtb", "fixup": "fixup4.dat"}),
        (PI3, "arm_64bit=1\nupstream_kernel=1", {"device_tree": "upstream/bcm2837-rpi-3-b.dtb"}),
        (PI3, "arm_64bit=1\nupstream_kernel=1\nkernel=vmlinuz", {"device_tree": "bcm2837-rpi-3-b.dtb"}),
        (PI3, "arm_64bit=1\nos_prefix=half/", {"kernel": "kernel8.img", "device_tree": "bcm2710-rpi-3-b.dtb"}),
        (PI3, "arm_64bit=1\ndevice_tree=other.dtb\nkernel=VMLINUZ", {"device_tree": "other.dtb", "kernel": "vmlinuz"}),
        (PI4, "cmdline=own.txt", {"cmdline": "own"}),
        (PI4, "cmdline=missing.txt", {"cmdline": ""}),
        (PI4, "", {"cmdline": "console=tty1 root=x"}),
        (PI4, "initramfs initramfs8 followkernel", {"initrds": ("initramfs8",)}),
        (PI4, "initramfs initramfs8", {"initrds": ("initramfs8",)}),
        (PI4, "ramfsfile=initramfs8,second.img", {"initrds": ("initramfs8", "second.img")}),
        (PI4, "auto_initramfs=1", {"initrds": ("initramfs8",)}),
        (PI4, "auto_initramfs=1\nkernel=vmlinuz", {"initrds": ()}),
        (PI4, "[pi3]\ninitramfs gone", {"initrds": ()}),
        (PI3, "arm_64bit=1\ngpu_mem=16", {"start": "start_cd.elf", "fixup": "fixup_cd.dat"}),
        (PI4, "start_x=1", {"start": "start4x.elf", "fixup": "fixup4x.dat"}),
        (PI4, "start_file=start.elf\nfixup_file=fixup.dat", {"start": "start.elf", "fixup": "fixup.dat"}),
        (PI4, "dtoverlay=x,param=1\ndtoverlay=\ndtoverlay=y\ndtparam=spi=on", {"overlays": ("x", "y")}),
    ],
)
def test_what_is_started(board: raspi.Board, config: str, expected: dict[str, object]) -> None:
    found = raspi.boot(card(config), board)._asdict()
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("board", "config", "without", "words"),
    [
        (PI3, "arm_64bit=1", ("bootcode.bin",), "Raspberry Pi 3 B does not start .* 'bootcode.bin' is missing"),
        (PI3, "arm_64bit=1", ("start.elf",), "'start.elf' is missing, the firmware"),
        (PI3, "arm_64bit=1", ("fixup.dat",), "'fixup.dat' is missing"),
        (PI4, "", ("start4.elf",), "Raspberry Pi 4 B does not start .* 'start4.elf' is missing"),
        (PI4, "start_debug=1", (), "'start4db.elf' is missing"),
        (PI3, "", (), "kernel of 32 bits"),
        (PI4, "arm_64bit=0", (), "kernel of 32 bits"),
        (PI4, "kernel=kernel7l.img", (), "kernel of 32 bits"),
        (PI4, "", ("kernel8.img",), "'kernel8.img' is missing, the kernel"),
        (PI4, "kernel=gone", (), "'gone' is missing, the kernel"),
        (PI4, "", ("bcm2711-rpi-4-b.dtb",), "'bcm2711-rpi-4-b.dtb' is missing, the device tree"),
        (PI4, "device_tree=", (), "turns the device tree off"),
        (PI4, "initramfs gone followkernel", (), "'gone' is missing, the initramfs"),
        (PI4, "include config.txt", (), "includes files again and again"),
        (PI4, "x" * (1 << 21), (), "are none of a text"),
    ],
)
def test_what_does_not_start(board: raspi.Board, config: str, without: tuple[str, ...], words: str) -> None:
    with pytest.raises(Problem, match=words):
        raspi.boot(card(config, without=without), board)


def test_a_card_without_config_starts_a_pi_4() -> None:
    assert raspi.boot(card(without=("config.txt",)), PI4).kernel == "kernel8.img"


IMAGE = bytes(56) + b"ARM\x64" + bytes(100)


@pytest.mark.parametrize("data", [IMAGE, gzip.compress(IMAGE, mtime=0)])
def test_a_kernel(data: bytes) -> None:
    raspi.check_kernel(data, "kernel8.img")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MZ" * 50,
        gzip.compress(b"MZ" * 50, mtime=0),
        b"\x1f\x8b\x08 and no more",
        IMAGE[:57],
        b"\x7fELF" + IMAGE[5:50],
    ],
)
def test_no_kernel(data: bytes) -> None:
    with pytest.raises(Problem, match=r"kernel8\.img is no kernel for aarch64"):
        raspi.check_kernel(data, "kernel8.img")
