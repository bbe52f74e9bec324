"""Make a signed image of a .tar.gz: verified while it streams, and a plain .tar.gz for every other program."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from imagekit import host, signing, usage
from imagekit.arch import ARCHES
from imagekit.errors import Problem
from imagekit.usage import Verb
from imagekit.verbs import _asked

ANY = ("any", "armhf", "riscv64")  # beside those that images are built for


def run(asked: Namespace) -> int:
    """Say what was written, and what it says of itself."""
    key, source = _asked.key(asked)[0], asked.path
    if asked.bali:
        return _bali(asked)
    about = _about(asked, signing.about_artifact(source, key) or {})
    out = asked.output or _beside(source, ".signed")
    found = signing.sign(source, out, about=about, key=key)
    said = found.said
    program = f", runs {' '.join(about.arguments)}" if about.arguments else ""
    size = _asked.size(said.body + found.trailer)
    _asked.show(f"{out}: {said.name} {said.version} {said.architecture}, signed by {key.id}{program}")
    _asked.show(f"  sha256:{said.content}, {size}, {said.chunks} chunks")
    return 0


def _about(asked: Namespace, known: Any) -> signing.About:
    """What was typed, else what the artifact's manifest says."""
    typed = {
        "name": asked.name, "version": asked.version, "architecture": asked.arch, "user": asked.user,
        "workdir": asked.workdir, "arguments": tuple(asked.command) or None,
        "environment": tuple(sorted(asked.env)) if asked.env else None,
    }  # fmt: skip
    fields = {**known, **{name: value for name, value in typed.items() if value is not None}}
    options = {"name": "--name", "version": "--version", "architecture": "--arch"}
    lacking = [option for name, option in options.items() if name not in fields]
    if lacking:
        raise Problem(
            f"{asked.path} is no artifact that this key signed, so it has no name of its own",
            f"say what it is: {', '.join(lacking)}",
        )
    return signing.About(**fields)


def _bali(asked: Namespace) -> int:
    from imagekit.disk import bali, inflate

    key = _asked.key(asked)[0]
    out = asked.output or _beside(asked.path, ".bali")
    signing.check_place(out)
    with signing.opened(asked.path) as file, host.draft(out) as draft:
        for piece in bali.packed(inflate.plain(iter(lambda: file.read(1 << 20), b"")), key):
            draft.write(piece)
    _asked.show(f"{out}: signed by {bali.identity(key.public)}")
    return 0


def _beside(source: Path, word: str) -> Path:
    """FILE.tar.gz -> FILE.signed.tar.gz"""
    for suffix in (".tar.gz", ".tgz", ".tar", ".erofs"):
        if source.name.endswith(suffix):
            end = ".erofs" if suffix == ".erofs" else ".tar.gz"
            return source.with_name(source.name.removesuffix(suffix) + word + end)
    return source.with_name(source.name + word)


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", type=Path, metavar="FILE", help="the .tar.gz of an artifact; any .tar.gz, tar or EROFS")
    verb.add_argument("command", nargs="*", metavar="PROGRAM", help="after --: what it runs (default: its service)")
    verb.add_argument("-o", "--output", type=Path, metavar="OUT", help="default: FILE.signed.tar.gz")
    verb.add_argument("--name", help="of the image, where no artifact tells it")
    verb.add_argument("--version", help="the same")
    verb.add_argument("--arch", choices=sorted([*ARCHES, *ANY]), help="the same")
    verb.add_argument("-e", "--env", action="append", metavar="NAME=VALUE", help="variable (repeatable)")
    verb.add_argument("--user", metavar="UID:GID", help="who runs it (default: of its service, else 0:0)")
    verb.add_argument("--workdir", metavar="DIR", help="where it runs (default: /)")
    verb.add_argument("--bali", action="store_true", help="write a file for bali instead, which says nothing of itself")
    usage.key_option(verb, "secret key to sign with")


VERB = Verb(
    run,
    define,
    (
        "sign out/web_1_x86_64.tar.gz -o web.tar.gz",
        "sign app.tar.gz --name app --version 1.2 --arch any -e PORT=80 --user 33:33 -- /usr/bin/app --serve",
    ),
    takes_command=True,
)
