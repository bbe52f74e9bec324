"""Measured boots, for real: the same bytes give the same figure, other work another one, and a failure is told."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_qemu_boot import KEY, SHELL, image

from imagekit import build, key, plugs
from imagekit.artifact import Opened
from imagekit.boot import Boot
from imagekit.guest import GuestProblem, Rig
from imagekit.image import Image, Service, Step
from imagekit.stores.directory import open_store

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
