"""What can be typed: every verb with its options and examples."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import imagekit
from imagekit import plugs
from imagekit.arch import ARCHES
from imagekit.errors import Problem

DISKS = ("raw", "qcow2", "vhd", "vhd_dynamic", "vhdx", "vmdk", "ova", "gcp", "azure")  # what disk/containers has
Run = Callable[[argparse.Namespace], int]


class Verb(NamedTuple):
    """A verb, as a value: what it does and gives as its exit status, what it takes, and examples of that."""

    run: Run
    define: Callable[[argparse.ArgumentParser], None]
    examples: tuple[str, ...]


def parser(verbs: Mapping[str, Run], words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of these words; `verb` of what it parses is the verb's function, whose docstring is its help.

    Only a verb that is among the words gets its options: a warm build has no time for the others'.
    """
    raw = argparse.RawDescriptionHelpFormatter
    about = (
        "Build operating-system images and test them. `pytest images/` does all of it; these verbs do one step each."
    )
    top = argparse.ArgumentParser(prog="imagekit", description=about, formatter_class=raw)
    top.add_argument("--version", action="version", version=f"imagekit {imagekit.__version__}")
    every = top.add_subparsers(metavar="VERB", required=True)
    is_known = not {*verbs, *plugs.own("verbs")}.isdisjoint(words)
    for name in (*verbs, *sorted(plugs.own("verbs"))):
        if is_known and name not in words:
            every.add_parser(name)  # a name alone: nobody will see its help
            continue
        text = (verbs[name].__doc__ or "").strip().partition("\n")[0] if name in verbs else _summary(name)
        if name not in words:
            every.add_parser(name, help=text)
            continue
        run, define, examples = (verbs[name], *DEFINITIONS[name]) if name in verbs else plugs.load("verbs", name)
        shown = "\n".join(f"  imagekit {example}" for example in examples)
        verb = every.add_parser(name, help=text, description=text, epilog=f"examples:\n{shown}", formatter_class=raw)
        define(verb)
        verb.set_defaults(verb=run)
    return top


def _summary(name: str) -> str:
    """The first line of a verb's file, without importing what it needs."""
    with open(Path(__file__).parent / "verbs" / f"{name}.py", encoding="utf-8") as file:
        return file.readline().strip().strip('"')


def paths(verb: argparse.ArgumentParser, what: str, *, default: str = "") -> None:
    """One path or more."""
    if default:
        verb.add_argument("path", type=Path, metavar="PATH", help=what, nargs="*", default=[Path(default)])
    else:
        verb.add_argument("path", type=Path, metavar="PATH", help=what, nargs="+")


def plug(verb: argparse.ArgumentParser, option: str, kind: str, what: str, *, action: str) -> None:
    """An option that takes a plug's name; the name is looked up when one is given, since that may load others' code."""

    def known(name: str) -> str:
        try:
            plugs.load(kind, name)
        except Problem as problem:
            raise argparse.ArgumentTypeError(f"{problem.message} ({problem.hint})") from problem
        return name

    often = " (repeatable)" if action == "append" else ""
    shown = ", ".join(plugs.own(kind))
    verb.add_argument(option, action=action, type=known, metavar=kind[:-1].upper(), help=f"{what}{often}: {shown}")


def arches(verb: argparse.ArgumentParser, *, one: bool = False) -> None:
    """The option --arch."""
    action = "store" if one else "append"
    verb.add_argument(
        "--arch", action=action, choices=sorted(ARCHES), help="architecture" + " (repeatable)" * (not one)
    )


def key_option(verb: argparse.ArgumentParser, what: str, *, action: str = "store") -> None:
    """The option --key; "append" as its action takes several."""
    often = " (repeatable; " if action == "append" else " ("
    shown = f"{what}{often}else IMAGEKIT_KEY, [tool.imagekit], your own)"
    verb.add_argument("--key", type=Path, metavar="FILE", action=action, help=shown)


def mirror(verb: argparse.ArgumentParser) -> None:
    """The option --mirror."""
    verb.add_argument("--mirror", metavar="URL", help="package mirror (else IMAGEKIT_MIRROR, [tool.imagekit], apt's)")


def tools(verb: argparse.ArgumentParser, what: str) -> None:
    """The option --tools."""
    verb.add_argument("--tools", choices=("auto", "host", "tree"), help=f"where {what}")


def _define_lock(verb: argparse.ArgumentParser) -> None:
    paths(verb, "definitions, or folders of them (default: images)", default="images")
    verb.add_argument("--check", action="store_true", help="only say which locks are behind their definitions")
    verb.add_argument("--tools", action="store_true", help="pin imagekit's own tools instead (for its maintainers)")
    mirror(verb)


def _define_build(verb: argparse.ArgumentParser) -> None:
    paths(verb, "definitions, or folders of them (default: images)", default="images")
    arches(verb)
    plug(verb, "--format", "formats", "output format", action="append")
    verb.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    tools(verb, "the formats' programs come from; only those of `tree`, the default, write the same bytes everywhere")
    verb.add_argument("--provenance", action="store_true", help="sign from what and when it was built, beside it")
    verb.add_argument("--check", action="store_true", help="build twice, the second time elsewhere, and compare")
    key_option(verb, "secret key to sign with")
    mirror(verb)


def _define_boot(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("path", type=Path, metavar="PATH", help="a definition, or an artifact's manifest")
    arches(verb, one=True)
    plug(verb, "--target", "targets", "machine", action="store")
    verb.add_argument("--chart", action="store_true", help="measure the boot by the instruction clock and draw it")
    verb.add_argument("--memory", type=int, default=256, metavar="MIB", help="default: 256")
    firmware, media = ("direct", "bios", "uefi"), ("disk", "cd", "usb")
    what = "what starts it; default: direct, which reads the kernel out of a disk too"
    verb.add_argument("--firmware", default="direct", choices=firmware, help=what)
    verb.add_argument("--media", default="", choices=media, help="how a disk is plugged in; default: an ISO as cd")
    verb.add_argument("--append", default="", metavar="WORDS", help="kernel arguments for this boot only")
    tools(verb, "QEMU comes from")
    verb.add_argument("--accel", choices=("auto", "kvm", "tcg"), help="default: auto, which asks a probe guest")
    key_option(verb, "key to verify with")


def _define_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("path", type=Path, metavar="PATH", help="a definition, or an artifact's manifest")
    verb.add_argument("command", nargs="*", metavar="COMMAND", help="after --; default: /bin/sh")
    verb.set_defaults(arch=None, tools=None)
    key_option(verb, "key to verify with")


def _define_attach(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("test", metavar="TEST", help="a test's node id, or the folder of its failure")
    verb.add_argument("--machine", default="", metavar="NAME", help="which one, of a test with several")
    verb.add_argument("--console", action="store_true", help="only show all that its console printed")
    verb.add_argument("--failures", metavar="DIR", help="where failures are kept (default: in the cache)")
    tools(verb, "QEMU comes from")


def _define_inspect(verb: argparse.ArgumentParser) -> None:
    paths(verb, "definitions, folders of them, artifacts, or any image file, whoever made it")
    arches(verb)
    verb.add_argument("--tree", action="store_true", help="list every path of a definition's images")
    verb.add_argument("--json", action="store_true", help="what lies in a file, for programs")
    key_option(verb, "key whose signature a file should have")


def _define_convert(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", type=Path, metavar="IN", help="a file that holds a disk, known by its content")
    verb.add_argument("path", type=Path, metavar="OUT", help="what to write; its suffix names the format")
    verb.add_argument("--format", metavar="NAME", help=f"else by OUT's suffix: {', '.join(DISKS)}")


def _define_key(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("what", choices=("new", "show"))
    verb.add_argument("path", type=Path, nargs="?", metavar="FILE", help="default: your own key")
    verb.add_argument("--comment", default="", help="stands in the key's file")


def _define_doctor(verb: argparse.ArgumentParser) -> None:
    _ = verb


DEFINITIONS: Mapping[str, tuple[Callable[[argparse.ArgumentParser], None], tuple[str, ...]]] = {
    "lock": (_define_lock, ("lock images/", "lock --check images/web.py")),
    "build": (
        _define_build,
        ("build images/web.py --arch aarch64 --format kernel_initrd -o out", "build --check images/web.py"),
    ),
    "boot": (
        _define_boot,
        (
            *("boot images/shell.py", "boot --chart images/web.py"),
            *("boot out/web_1_aarch64.kernel_initrd.manifest.json", "boot --firmware uefi out/web_1_x86_64.efi.img"),
        ),
    ),
    "run": (_define_run, ("run images/web.py -- /usr/sbin/nginx -V",)),
    "attach": (_define_attach, ("attach 'images/web.py::test_serves[x86_64-kernel_initrd-qemu_x86_64]'",)),
    "inspect": (_define_inspect, ("inspect images/web.py --tree", "inspect out/web_1_aarch64.initrd")),
    "convert": (_define_convert, ("convert out/web_1_x86_64.img web.vmdk", "convert disk.vhdx disk.img --format raw")),
    "key": (_define_key, ("key new", "key show fixtures/keys/test.pub")),
    "doctor": (_define_doctor, ("doctor",)),
}
