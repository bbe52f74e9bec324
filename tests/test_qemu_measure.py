"""Measured boots, for real: the same bytes give the same figure, other work another one, and a failure is told."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_qemu_boot import KEY, SHELL, image

from imagekit import build, key, plugs
from imagekit.artifact import Opened
from imagekit.boot import Boot
from imagekit.guest import Console, GuestProblem, Rig
from imagekit.image import Image, Service, Step
from imagekit.rig import Disk
from imagekit.stores.directory import open_store
from imagekit.targets import _qemu_measure

SLEEPER = Service("sleeper", "/usr/bin/busybox sleep 1000000")


@contextmanager
def opened(made: Image, arch: str) -> Iterator[Opened]:
    store, signer = open_store(), key.read(KEY)
    artifact = build.artifact(made, folder=SHELL.parent, lock=build.read_lock(SHELL), arch=arch,
                              format="kernel_initrd", key=signer, store=store)  # fmt: skip
    with artifact.opened(signer) as found:
        yield found


def measure(made: Image, arch: str, **options: object) -> Boot:
    from os import environ

    with opened(made, arch) as found:
        rig = Rig(tools=environ.get("IMAGEKIT_TOOLS", "auto"), **options)  # type: ignore[arg-type]
        measured: Boot = plugs.load("targets", f"qemu_{arch}").measure(found, rig=rig, store=open_store())
        return measured


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_the_same_bytes_give_the_same_figure_and_more_work_a_larger_one(arch: str) -> None:
    made = image(network="dhcp", services=(SLEEPER,))
    first, second = measure(made, arch), measure(made, arch)
    assert first == second
    assert first.is_exact
    assert first.firmware_seconds > 0
    assert [span.name for span in first.spans] == ["firmware", "kernel", "modules", "init", "service sleeper"]
    slow = Step("slow", ("/bin/sh", "-c", "n=0; while [ $n -lt 10000 ]; do n=$((n + 1)); done"))
    slower = measure(image(network="dhcp", services=(SLEEPER,), onboot=(slow,)), arch)
    assert slower.seconds > 1.01 * first.seconds
    assert slower.growth(first)[0].endswith("onboot slow (new)")


def test_idle_time_counts_as_the_guest_sees_it_and_not_on_the_wall() -> None:
    made = image(network="none", services=(SLEEPER,), onboot=(Step("nap", "/usr/bin/busybox sleep 50"),))
    boot = measure(made, "aarch64")
    nap = next(span for span in boot.spans if span.name == "onboot nap")
    assert 50 <= nap.seconds < 50.1


def test_a_measured_boot_that_fails_says_why_with_the_console() -> None:
    made = image(network="none", services=(SLEEPER,), onboot=(Step("bad", "/usr/bin/busybox false"),))
    with pytest.raises(GuestProblem, match=r"(?s)measured: the onboot step bad failed with 1.*guest\| "):
        measure(made, "aarch64")


def test_a_console_that_is_read_late_does_not_hold_up_the_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The 16550's driver would wait for a line that takes nothing, and so would the boot."""
    made = image(network="none", services=(SLEEPER,), cmdline="loglevel=7")
    first = measure(made, "x86_64")
    feed = Console.feed
    monkeypatch.setattr(Console, "feed", lambda console, data: (time.sleep(0.03), feed(console, data))[1])
    assert measure(made, "x86_64") == first


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_with_a_disk_executed_instructions_count_and_the_spread_is_told(arch: str) -> None:
    copy = Step("copy", "/usr/bin/busybox dd if=/dev/zero of=/dev/vda bs=1M count=8 conv=fsync")
    made = image(network="none", services=(SLEEPER,), onboot=(copy,), modules=("virtio_blk",))
    boot = measure(made, arch, disks=(Disk("scratch", "16 MiB"),))
    assert (boot.clock, len(boot.runs), boot.is_exact) == ("executed", 3, False)
    assert boot.spread < 0.01
    assert boot.seconds == sorted(boot.runs)[1]
    assert "without those it waited; median of" in boot.words
    assert "onboot copy" in [span.name for span in boot.spans]
    assert [at for at, _ in boot.stages] == sorted(at for at, _ in boot.stages)


def test_instructions_are_told_by_the_count_of_an_event_from_the_kernels_start() -> None:
    stages, counts = ((1.0, "early"), (9.0, "ready")), (750_000_000, 1_000_000_000)
    assert _qemu_measure._executed(stages, counts, 0.25) == (((1.25, "early"), (1.75, "ready")), 0.25)
    assert _qemu_measure._executed(stages, counts, None) == (((1.0, "early"), (1.5, "ready")), 0.5)
