"""What a verified root and a sealed disk cost until the root takes over: kernel and initrd, stage by stage.

    python benchmarks/sealed.py [--arch x86_64 --arch aarch64] [--boots 3]

Counted are the instructions that the guest's processor has executed when it tells of a stage, the median of some boots:
of images/appliance.py, and of the same image without verity, seal and slots. Kernel, initrd and arguments are those of
its UKI, and are started by QEMU itself, so that no firmware is counted; the TPM is a software TPM. PCR 11 is then as no
stub left it, and Secure Boot is off: the initrd is told so, by a signature of the tests' key.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from imagekit import bootkeys, build, definition, key, toolbox
from imagekit.arch import ARCHES
from imagekit.disk import cpio, loader, pcrsign
from imagekit.disk.sparse import Piece, laid
from imagekit.image import Image
from imagekit.stores.directory import open_store
from imagekit.tree import Slice, Tree, file

PROJECT = Path(__file__).resolve().parent.parent
APPLIANCE = PROJECT / "images" / "appliance.py"
KEYS = PROJECT / "fixtures" / "keys"
LIMIT = 0.20
MACHINES = {
    "x86_64": ("-M", "q35", "-cpu", "max", "-device", "tpm-crb,tpmdev=tpm", "-append", "console=ttyS0 nokaslr "),
    "aarch64": ("-M", "virt,dtb-randomness=off", "-cpu", "cortex-a53", "-device", "tpm-tis-device,tpmdev=tpm",
                "-append", "console=ttyAMA0 nokaslr "),
}  # fmt: skip
FIXED = ("-icount", "shift=1,sleep=on", "-rtc", "base=2024-01-01T00:00:00,clock=vm", "-seed", "1", "-no-reboot",
         "-m", "512", "-accel", "tcg", "-nodefaults", "-display", "none", "-serial", "stdio")  # fmt: skip
STAGES = {"early": "kernel", "modules": "modules", "verity": "root found", "root": "root mounted",
          "data unsealed": "key and header", "data open": "disk mounted"}  # fmt: skip
LAST = {True: "data open", False: "root"}  # sealed or not: what comes last before the root takes over
PATIENCE = 600.0


class Bench:
    """A kernel, an initrd, arguments and a disk, in a folder, and the state of a TPM."""

    def __init__(self, image: Image, arch: str, folder: Path) -> None:
        self.arch, self.folder, self.is_sealed = arch, folder, bool(image.disk.seal)
        folder.mkdir()
        store, signer = open_store(), key.read(KEYS / "test.key")
        self.tools = toolbox.tools(f"qemu-system-{arch}", "swtpm", store=store)
        wanted = {"folder": APPLIANCE.parent, "lock": build.read_lock(APPLIANCE), "arch": arch, "format": "raw_efi"}
        made = build.artifact(image, key=signer, store=store, **wanted)
        [part] = (part for part in made.parts if part.role == "disk")
        disk = made.path.parent / part.file
        found = loader.find(laid(part.size, [Piece(0, Slice(str(disk), 0, part.size))]), arch=arch)
        (folder / "kernel").write_bytes(found.kernel)
        told = cpio.archive(_told(image).items()) if self.is_sealed else b""
        (folder / "initrd").write_bytes(found.initrd + bytes(-len(found.initrd) % 4) + told)
        self.arguments = found.arguments.decode().strip("\0\n ") + " quiet"
        subprocess.run(["cp", "--sparse=always", disk, folder / "disk"], check=True)

    def boot(self) -> dict[str, float]:
        """Millions of instructions until each stage."""
        with ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            tpm = stack.enter_context(self._tpm())
            *machine, said = MACHINES[self.arch]
            files = ("-kernel", self.folder / "kernel", "-initrd", self.folder / "initrd")
            drive = f"if=none,id=disk,format=raw,cache=unsafe,file={self.folder / 'disk'}"
            argv = self.tools.argv(
                f"qemu-system-{self.arch}", *tpm, *machine, said + self.arguments, *files, *FIXED, "-drive", drive,
                "-device", "virtio-blk-pci,drive=disk", "-chardev", f"socket,id=monitor,fd={theirs.fileno()}",
                "-mon", "chardev=monitor,mode=control",
            )  # fmt: skip
            process = subprocess.Popen(
                argv, env=self.tools.env, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            theirs.close()
            return self._listen(process, ours)

    def _listen(self, process: subprocess.Popen[bytes], monitor: socket.socket) -> dict[str, float]:
        counts, last, said = dict[str, float](), LAST[self.is_sealed], list[str]()
        ask = _asking(monitor)
        for line in iter(process.stdout.readline, b"") if process.stdout else ():
            said.append(line.decode(errors="replace").strip())
            words = line.decode(errors="replace").partition("imagekit: ")[2].strip()
            for stage in STAGES:
                if re.match(rf"{stage}\b", words) and stage not in counts:
                    counts[stage] = ask("query-replay")["icount"] / 1e6
            if last in counts:
                return counts
            if re.match("data new", words):
                last = "data new"
            if last == "data new" and words == "ready":
                return {}
        raise SystemExit("the machine ended before that:\n" + "\n".join(said[-20:]))

    @contextmanager
    def _tpm(self) -> Iterator[Sequence[str]]:
        (self.folder / "tpm").mkdir(exist_ok=True)
        path = self.folder / "control"
        path.unlink(missing_ok=True)
        argv = self.tools.argv(
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder / 'tpm'}", "--ctrl",
            f"type=unixio,path={path}", "--flags", "startup-clear",
        )  # fmt: skip
        with subprocess.Popen(argv, env=self.tools.env, stderr=subprocess.DEVNULL) as process:
            try:
                end = time.monotonic() + PATIENCE
                while not path.exists() and time.monotonic() < end:
                    time.sleep(0.01)
                yield "-chardev", f"socket,id=control,path={path}", "-tpmdev", "emulator,id=tpm,chardev=control"
            finally:
                process.terminate()


def _told(image: Image) -> Tree:
    """What the initrd is told in place of what its UKI says."""
    seal, signer = image.disk.seal, bootkeys.BootKeys(KEYS / "boot").signer("pcr")
    assert seal is not None
    lines = {
        "image": image.name, "disk": seal.disk, "mount": seal.mount, "pcrs": ",".join(map(str, seal.pcrs)),
        "policy": seal.policy, "recovery": seal.recovery, "secure_boot": "off", "generation": seal.generation,
        "public": f"{signer.public.modulus:0512x}",
    }  # fmt: skip
    text = "".join(f"{name} {value}\n" for name, value in lines.items())
    signature = pcrsign.signature(bytes(32), pcrsign.Approval(signer, seal.generation))
    return Tree(
        {"/etc/imagekit/seal": file(text.encode()), "/.extra/tpm2-pcr-signature.json": file(signature)}
    ).complete()


def _asking(monitor: socket.socket):  # type: ignore[no-untyped-def]
    stream = monitor.makefile("rw")
    stream.readline()

    def ask(command: str):  # type: ignore[no-untyped-def]
        stream.write(json.dumps({"execute": command}) + "\n")
        stream.flush()
        while "return" not in (answer := json.loads(stream.readline())):
            pass  # an event
        return answer["return"]

    ask("qmp_capabilities")
    return ask


def examine(arch: str, boots: int) -> bool:
    """Boot both, print every stage, and say whether the promise is kept."""
    sealed = definition.load(APPLIANCE)
    plain = replace(sealed, disk=replace(sealed.disk, verity=None, seal=None, slots=1))
    with TemporaryDirectory() as folder:
        counts = []
        for name, image in (("plain", plain), ("sealed", sealed)):
            bench = Bench(image, arch, Path(folder) / name)
            if bench.is_sealed:
                bench.boot()  # the first one
            runs = [bench.boot() for _ in range(boots)]
            counts.append({stage: median(run[stage] for run in runs) for stage in STAGES if stage in runs[0]})
    for name, stages in zip(("plain", "sealed"), counts, strict=True):
        before = 0.0
        for stage, count in stages.items():
            print(f"{arch} {name:6} {STAGES[stage]:16} {count - before:8.1f} M instructions")
            before = count
    added = counts[1][LAST[True]] / counts[0][LAST[False]] - 1
    print(f"{arch}: sealed adds {added:.1%} ({'within' if added <= LIMIT else 'OVER'}: {LIMIT:.0%})", flush=True)
    return added <= LIMIT


def main() -> int:
    """Measure, print, and end with 1 when the promise is not kept."""
    os.environ["IMAGEKIT_BOOT_KEYS"] = str(KEYS / "boot")
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--arch", action="append", choices=sorted(ARCHES))
    asked.add_argument("--boots", type=int, default=3)
    options = asked.parse_args()
    kept = [examine(arch, options.boots) for arch in options.arch or sorted(ARCHES)]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
