"""What can be typed: the verbs, each a file in verbs/, and the options that several of them take."""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
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
    takes_command: bool = False  # behind `--`, wherever its options stand


def parse(words: Sequence[str]) -> argparse.Namespace:
    """What was asked; ends the program where that is wrong, or help was asked for."""
    cut = words.index("--") if "--" in words else 0
    if cut and words[0] in plugs.own("verbs") and plugs.load("verbs", words[0]).takes_command:
        asked = parser(words).parse_args(words[:cut])  # argparse would take none there, once options stood before it
        asked.command = [*words[cut + 1 :]]
        return asked
    return parser(words).parse_args(words)


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of these words; `verb` of what it parses is the verb's function.

    Where the first word is a verb, that one is all there is: a warm build has no time for the others.
    """
    raw = partial(argparse.RawDescriptionHelpFormatter, width=_columns() - 2)
    about = (
        "Build operating-system images and test them. `pytest images/` does all of it; these verbs do one step each."
    )
    top = argparse.ArgumentParser(prog="imagekit", description=about, formatter_class=raw)
    top.add_argument("--version", action="version", version=f"imagekit {imagekit.__version__}")
    every = top.add_subparsers(metavar="VERB", required=True)
    names = sorted(plugs.own("verbs"))
    for name in words[:1] if words[0:1] and words[0] in names else names:
        text = _summary(name)
        if name not in words:
            every.add_parser(name, help=text)
            continue
        run, define, examples, _ = plugs.load("verbs", name)
        shown = "\n".join(f"  imagekit {example}" for example in examples)
        verb = every.add_parser(name, help=text, description=text, epilog=f"examples:\n{shown}", formatter_class=raw)
        define(verb)
        verb.set_defaults(verb=run)
    return top


def _columns() -> int:
    """The width of the terminal as shutil tells it, which costs a warm build a hundredth to import."""
    try:
        return int(os.environ.get("COLUMNS", 0)) or os.get_terminal_size(1).columns or 80
    except (ValueError, OSError):  # it is no terminal
        return 80


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


def boot_keys(verb: argparse.ArgumentParser) -> None:
    """The option --boot-keys."""
    shown = "a folder of keys for Secure Boot and sealed disks (else IMAGEKIT_BOOT_KEYS, [tool.imagekit])"
    verb.add_argument("--boot-keys", type=Path, metavar="DIR", help=shown)


def tools(verb: argparse.ArgumentParser, what: str) -> None:
    """The option --tools."""
    verb.add_argument("--tools", choices=("auto", "host", "tree"), help=f"where {what}")
