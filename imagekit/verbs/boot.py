"""Boot an image (or a written artifact) with its console on this terminal."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import matrix, plugs, usage
from imagekit.artifact import Artifact
from imagekit.errors import Problem
from imagekit.guest import Rig
from imagekit.rig import Tpm
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Until the machine is off."""
    store, key = _asked.store(), _asked.key(asked)[0]
    made = _asked.artifact(asked, key, store, kinds=("kernel", "disk"))
    name = asked.target or matrix.machine(made.arch, made.format)
    tools, accelerator = _asked.option(asked, "tools", "auto"), _asked.option(asked, "accel", "auto")
    firmware, tpm = machine(made, asked.firmware)
    rig = Rig(tools=tools, memory=asked.memory, accelerator=accelerator,
              say=_asked.say, cmdline=asked.append, firmware=firmware, media=asked.media, tpm=tpm,
              channel=firmware == "direct" or made.has_kernel)  # fmt: skip
    if tpm:
        _asked.note("a sealed image gets a new TPM and a copy of its disk, as at its first start; both go when it ends")
    target = plugs.load("targets", name)
    with made.opened(key) as opened:
        if asked.chart:
            if not target.measure:
                raise Problem(f"{name} has no instruction clock", "--target names another machine")
            measured = target.measure(opened, rig=rig, store=store)
            _asked.quiet()
            print("\n".join(measured.chart()))
            return 0
        return int(target.interact(opened, rig=rig, store=store))


def machine(made: Artifact, firmware: str = "") -> tuple[str, Tpm | None]:
    """(firmware, TPM) that an artifact is to be started with: one that is protected, by what that relies on."""
    parts = made.manifest["parts"]
    is_sealed, is_signed = (any(fact in part for part in parts) for fact in ("seal", "secure_boot"))
    firmware = firmware or ("uefi" if is_sealed or is_signed else "direct")
    return firmware, Tpm() if is_sealed and firmware == "uefi" else None


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", type=Path, metavar="PATH", help="a definition, or an artifact's manifest")
    usage.arches(verb, one=True)
    usage.plug(verb, "--target", "targets", "machine", action="store")
    verb.add_argument("--chart", action="store_true", help="measure the boot by the instruction clock and draw it")
    verb.add_argument("--memory", type=int, default=256, metavar="MIB", help="default: 256")
    firmware, media = ("direct", "bios", "uefi"), ("disk", "cd", "usb")
    what = "what starts it; default: direct, which reads the kernel out of a disk too, and uefi for protected images"
    verb.add_argument("--firmware", default="", choices=firmware, help=what)
    verb.add_argument("--media", default="", choices=media, help="how a disk is plugged in; default: an ISO as cd")
    verb.add_argument("--append", default="", metavar="WORDS", help="kernel arguments for this boot only")
    usage.tools(verb, "QEMU comes from")
    verb.add_argument("--accel", choices=("auto", "kvm", "tcg"), help="default: auto, which asks a probe guest")
    usage.key_option(verb, "key to verify with")
    usage.boot_keys(verb)


VERB = Verb(
    run,
    define,
    (
        *("boot images/shell.py", "boot --chart images/web.py"),
        *("boot out/web_1_aarch64.kernel_initrd.manifest.json", "boot --firmware uefi out/web_1_x86_64.efi.img"),
    ),
)
