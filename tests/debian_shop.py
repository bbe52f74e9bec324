"""A small stocked archive, and the words to ask it: what the tests of Debian as a source share."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from debian_archive import SUITE, Archive, Item, archive, folders

from imagekit import download
from imagekit.package import Package, Pin, Request
from imagekit.sources.debian import SOURCE
from imagekit.store import Store

CALM = download.Patience(stall=20, start=60, tries=2, pause=0.01)  # so that a busy machine fails no test
HASTY = download.Patience(stall=0.3, start=60, tries=2, pause=0.01)
NGINX = b"not really nginx" * 5000


@contextmanager
def stocked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """An archive with a few packages, and everything pointed at it."""
    with archive(folder) as made:
        usr = folders("usr", "usr/bin")
        made.add("nginx", [*usr, Item("./usr/bin/nginx", NGINX, mode=0o755)], architecture="amd64",
                 fields={"Depends": "libc (>= 2), adduser"})  # fmt: skip
        made.add(
            "nginx", [*usr, Item("./usr/bin/nginx", NGINX[::-1])], architecture="arm64", fields={"Depends": "libc"}
        )
        made.add("libc", [*folders("lib"), Item("./lib/libc.so", b"libc 2")], version="2")
        made.add("libc", [*folders("lib"), Item("./lib/libc.so", b"libc 3")], version="3", part="-security")
        made.add(
            "adduser",
            [*folders("sbin"), Item("./sbin/adduser", b"#!/bin/sh\n", mode=0o755)],
            version="1-1",
            part="-updates",
        )
        made.add("runit", [*usr, Item("./usr/bin/runit", b"runit")], fields={"Depends": "missing"})
        for arch in ("amd64", "arm64"):
            image = f"linux-image-6.1.0-9-cloud-{arch}"
            made.add(f"linux-image-cloud-{arch}", architecture=arch, fields={"Depends": f"{image} (= 6.1), missing"})
            made.add(image, [Item("./boot/vmlinuz", arch.encode())], version="6.1", architecture=arch)
        made.add("blobs", [*folders("usr", "usr/lib"), Item("./usr/lib/start.elf", b"\x7fELF")],
                 component="non-free-firmware", fields={"Depends": "missing"})  # fmt: skip
        made.publish()
        made.use(monkeypatch)
        monkeypatch.setattr(download, "PATIENCE", CALM)
        yield made


def request(
    *packages: str,
    kernel: str = "",
    init: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    arch: str = "x86_64",
    firmware: tuple[str, ...] = (),
) -> Request:
    return Request(packages, kernel=kernel, init=init, without=without, suite=SUITE, arch=arch, firmware=firmware)


def resolve(store: Store, *packages: str) -> tuple[Pin, ...]:
    return SOURCE.resolve([request(*packages)], store)[0].pins


def obtain(pins: tuple[Pin, ...], store: Store) -> list[Package]:
    return SOURCE.packages(pins, store, lambda *_: None)


def check_store(store: Store) -> None:
    """Nothing in the store is wrong: every object is what its name says, and nothing lies about."""
    for path in Path(store.location).rglob("objects/*/*"):
        assert sha256(path.read_bytes()).hexdigest() == path.name
    assert list(Path(store.location).rglob("drafts/*")) == []
