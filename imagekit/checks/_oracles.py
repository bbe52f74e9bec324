"""Which independent program looks at what, and what it says; oracles.py tells why."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from imagekit import bootkeys, host, options, toolbox
from imagekit.artifact import Artifact
from imagekit.disk import containers, loader, outline
from imagekit.disk.sparse import Sparse, of_file
from imagekit.stores.directory import open_store

SECTOR = 512
HYBRID = b"hybrid MBR"  # sgdisk calls it a risk; a format that has one means it
DISKS = {b"QFI\xfb": "qcow2", b"vhdxfile": "vhdx", b"KDMV": "vmdk", b"conectix": "vpc"}  # to qemu-img's names
CHECKED = ("qcow2", "vhdx", "vmdk")  # qemu-img has no check for VHD: it is converted
TAR_KINDS = (".oci.tar", ".docker.tar")


class Bench(NamedTuple):
    """Where the oracles work."""

    folder: Path
    said: list[str]

    def ask(self, tool: str, *words: str | Path) -> bytes:
        """What a tool says; what it complains of is noted."""
        tools = _tools(tool)
        done = host.run(tools.argv(tool, *words), env=tools.env, ok=None, timeout=600)
        if done.code:
            self.said.append(f"{tool}: {host.printable((done.stdout + done.stderr)[-1000:]).strip()}")
        return bytes(done.stdout)


def complaints(artifact: Artifact) -> list[str]:
    """What independent programs find wrong with the parts of an artifact, a line each."""
    said: list[str] = []
    signers = {part["file"]: part["secure_boot"] for part in artifact.manifest["parts"] if "secure_boot" in part}
    with TemporaryDirectory(prefix="imagekit-oracles-") as folder:
        for part in artifact.parts:
            bench = Bench(Path(folder), [])
            _look(artifact.path.parent / part.file, bench)
            if signer := signers.get(part.file):
                _signatures(artifact.path.parent / part.file, signer, bench)
            said += [f"{part.file}: {line}" for line in bench.said]
    return said


def _tools(*names: str) -> toolbox.Tools:
    mode = options.lookup("tools", None, default="auto")
    return toolbox.tools(*names, mode=mode, store=open_store())


def _look(path: Path, bench: Bench) -> None:
    driver = _driver(path)
    if driver:
        _virtual(path, driver, bench)
    elif path.name.endswith(TAR_KINDS):
        _container(path, bench)
    else:
        kind = _kind(of_file(str(path), path.stat().st_size))
        JUDGES.get(kind, _nothing)(path, bench)


def _signatures(path: Path, signer: str, bench: Bench) -> None:
    """What sbsigntool says of the programs that firmware is to start, by the certificate that the manifest names."""
    found = [each for each in bootkeys.chosen().db if sha256(each.whole).hexdigest() == signer]
    if not found:
        bench.said.append(f"sbverify: none of the boot keys is the certificate {signer}")
        return
    certificate, program = bench.folder / "db.crt", bench.folder / "program.efi"
    certificate.write_text(found[0].pem)
    for name, data in _programs(path).items():
        program.write_bytes(data)
        if bench.ask("sbverify", "--cert", certificate, program) != b"Signature verification OK\n":
            bench.said.append(f"sbverify does not find {name} well signed")


def _programs(path: Path) -> dict[str, bytes]:
    """The programs for UEFI of a file that is one, or of a disk."""
    with path.open("rb") as file:
        if file.read(2) == b"MZ":
            return {path.name: path.read_bytes()}
    with containers.opened(path) as (_, disk):
        return loader.programs(disk)


def _driver(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(8)
        file.seek(-min(SECTOR, path.stat().st_size), 2)
        tail = file.read(8)
    return next((name for magic, name in DISKS.items() if magic in (head[: len(magic)], tail[: len(magic)])), "")


def _kind(disk: Sparse) -> str:
    return next((kind.name for kind in outline.KINDS if kind.knows(disk)), "")


def _virtual(path: Path, driver: str, bench: Bench) -> None:
    """A disk for virtual machines: checked where qemu-img can, and what it holds is looked at as a raw disk."""
    if driver in CHECKED:
        bench.ask("qemu-img", "check", "-f", driver, path)
    raw = bench.folder / "raw.img"
    bench.ask("qemu-img", "convert", "-f", driver, "-O", "raw", path, raw)
    if raw.exists():
        _look(raw, bench)
        raw.unlink()


def _gpt(path: Path, bench: Bench) -> None:
    bench.ask("sfdisk", "--verify", path)
    said = bench.ask("sgdisk", "--verify", path)
    if b"No problems found" not in said and HYBRID not in said:
        bench.said.append(f"sgdisk: {host.printable(said[-600:]).strip()}")
    _partitions(path, bench)


def _mbr(path: Path, bench: Bench) -> None:
    bench.ask("sfdisk", "--verify", path)
    _partitions(path, bench)


def _partitions(path: Path, bench: Bench) -> None:
    """What lies in the partitions, by sfdisk's word for where they are."""
    import json

    told = json.loads(bench.ask("sfdisk", "--json", path) or b"{}").get("partitiontable", {})
    for number, partition in enumerate(told.get("partitions", ()), 1):
        cut = bench.folder / f"partition-{number}"
        part = of_file(str(path), path.stat().st_size).part(partition["start"] * SECTOR, partition["size"] * SECTOR)
        if _kind(part) in JUDGES:
            with open(cut, "wb") as file:
                file.writelines(part.chunks())
            JUDGES[_kind(part)](cut, bench)
            cut.unlink()


def _iso(path: Path, bench: Bench) -> None:
    said = bench.ask("xorriso", "-indev", path, "-report_el_torito", "plain", "-toc")
    if b"El Torito" not in said:
        bench.said.append(f"xorriso finds nothing that a machine would start: {host.printable(said[-300:]).strip()}")


def _container(path: Path, bench: Bench) -> None:
    kind = "oci-archive" if path.name.endswith(".oci.tar") else "docker-archive"
    bench.ask("skopeo", "inspect", f"{kind}:{path}")


def _fat(path: Path, bench: Bench) -> None:
    bench.ask("fsck.fat", "-n", path)


def _squashfs(path: Path, bench: Bench) -> None:
    bench.ask("unsquashfs", "-lln", path)


def _erofs(path: Path, bench: Bench) -> None:
    bench.ask("fsck.erofs", path)


def _ext(path: Path, bench: Bench) -> None:
    bench.ask("e2fsck", "-f", "-n", path)


def _gzip(path: Path, bench: Bench) -> None:
    """A compressed archive, listed to its end by GNU tar."""
    _own(bench, "tar", "--list", "--gzip", "--file", path)


def _tar(path: Path, bench: Bench) -> None:
    """An archive: listed by GNU tar, and the disk in it looked at."""
    listed = _own(bench, "tar", "--list", "--file", path)
    for name in listed.decode("utf-8", "replace").splitlines():
        if name.endswith(".vmdk"):
            _own(bench, "tar", "--extract", "--file", path, "--directory", bench.folder, name)
            _look(bench.folder / name, bench)


def _own(bench: Bench, program: str, *words: str | Path) -> bytes:
    done = host.run([host.look_up(program) or program, *words], ok=None, timeout=600)
    if done.code or done.stderr:
        bench.said.append(f"{program}: {host.printable((done.stderr)[-1000:]).strip()}")
    return bytes(done.stdout)


def _nothing(path: Path, bench: Bench) -> None:
    """Of kernels, initrds and arguments no other program says more than the machine that they start."""
    _ = path, bench


JUDGES: Mapping[str, Callable[[Path, Bench], None]] = {
    "GPT disk": _gpt,
    "MBR disk": _mbr,
    "ISO 9660": _iso,
    "FAT": _fat,
    "squashfs": _squashfs,
    "erofs": _erofs,
    "ext4": _ext,
    "gzip": _gzip,
    "tar": _tar,
}
