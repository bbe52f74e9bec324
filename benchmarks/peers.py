"""A disk that UEFI starts, one file changed: imagekit against the usual programs, as LinuxKit's container runs them.

python benchmarks/peers.py [--rounds 5] [DEFINITION]

LinuxKit itself cannot be run where this project is developed: no package registry of Debian, Python or Node has it, its
inputs are images of a container registry, and all its disk formats but none of its archives are made in containers of
a Docker daemon or in a machine that it boots for the purpose. Its own documentation gives 1 min 35 s for a first
build and 34 to 44 s for further ones. The peer here is what its container for `raw-efi` does with the tree: pack the
initrd, join a UKI, make a FAT, copy into it, write a partition table; without the container, without reading images,
and with the tree already in the form of a cpio, which is all in the peer's favour.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from formats import KEY, PROJECT, Bench, ran

sys.path.insert(0, str(PROJECT))
SCRIPT = """
set -e
cd "$1"
gzip -6 --no-name --stdout initrd.cpio > initrd.img
objcopy --add-section .cmdline=cmdline --change-section-vma .cmdline=0x10030000 \
        --add-section .linux=kernel --change-section-vma .linux=0x12000000 \
        --add-section .initrd=initrd.img --change-section-vma .initrd=0x18000000 stub BOOTX64.EFI
size=$(( ($(stat -c %s BOOTX64.EFI) >> 20) + 4 ))
rm -f esp.img disk.img
truncate -s ${size}M esp.img
MKFS -F 32 esp.img > /dev/null
MMD -i esp.img ::/EFI ::/EFI/BOOT
MCOPY -i esp.img BOOTX64.EFI ::/EFI/BOOT/BOOTX64.EFI
truncate -s $((size + 2))M disk.img
SGDISK --clear --new=1:2048:+${size}M --typecode=1:EF00 disk.img > /dev/null
dd if=esp.img of=disk.img bs=1M seek=1 conv=notrunc status=none
sha256sum disk.img
"""


def prepared(bench: Bench, scratch: Path) -> list[str]:
    """The peer's inputs, from what imagekit wrote of the same image, and its command."""
    import shlex

    import zstandard

    from imagekit import build, definition, key, toolbox
    from imagekit.stores.directory import open_store

    path, store, place = bench.definition, open_store(), scratch / "peer"
    place.mkdir()
    image, lock = definition.load(path), build.read_lock(path)
    made = build.artifact(image, folder=path.parent, lock=lock, arch="x86_64", format="kernel_initrd",
                          key=key.read(Path(KEY)), store=store)  # fmt: skip
    files = {part.role: made.path.with_name(part.file).read_bytes() for part in made.parts}
    archives, rest = [], files["initrd"]
    while rest:
        reader = zstandard.ZstdDecompressor().decompressobj()
        archives.append(reader.decompress(rest))
        rest = reader.unused_data.lstrip(b"\0")
    tree = build.tree(image, folder=path.parent, lock=lock, arch="x86_64", store=store)
    inputs = {"initrd.cpio": b"".join(archives), "kernel": files["kernel"], "cmdline": files["cmdline"],
              "stub": tree.read("/boot/stub")}  # fmt: skip
    for name, data in inputs.items():
        (place / name).write_bytes(data)
    tools = toolbox.tools("mkfs.fat", "mcopy", "sgdisk", mode="tree", store=store)
    mcopy = without_parent(tools.argv("mcopy"))
    words = {"MKFS": without_parent(tools.argv("mkfs.fat")), "MCOPY": mcopy, "MMD": [*mcopy[:-1], "/usr/bin/mmd"],
             "SGDISK": without_parent(tools.argv("sgdisk"))}  # fmt: skip
    script = SCRIPT
    for word, argv in words.items():
        script = script.replace(word, shlex.join(argv))
    env = {**tools.env, "DEFAULT_CODEPAGE": "367"}
    return ["env", *(f"{name}={value}" for name, value in env.items()), "sh", "-c", script, "sh", str(place)]


def without_parent(argv: list[str]) -> list[str]:
    """A tool's command that does not end with this process: it is started by another one."""
    words = list(map(str, argv))
    if "--die-with" in words:
        at = words.index("--die-with")
        del words[at : at + 2]
    return words


def main() -> int:
    """Measure both in turn and print the ratio."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("definition", type=Path, nargs="?", default=PROJECT / "images" / "formats.py")
    asked.add_argument("--rounds", type=int, default=5)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options.definition.resolve(), Path(name), root="initrd")
        try:
            bench.build("raw_efi")
            peer = prepared(bench, Path(name))
            pairs = [(ran(peer), bench.build("raw_efi")) for _ in range(options.rounds)]
        finally:
            bench.forget()
    for of, what in (("seconds", "wall"), ("cpu", "processor")):
        ratio = statistics.median(getattr(theirs, of) / getattr(own, of) for theirs, own in pairs)
        theirs, own = (statistics.median(getattr(pair[n], of) for pair in pairs) * 1000 for n in (0, 1))
        print(f"the usual programs, against imagekit, {what} time: {ratio:.1f}; {theirs:.0f} ms against {own:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
