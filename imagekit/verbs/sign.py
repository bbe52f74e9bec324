"""Make a signed image of a .tar.gz: verified while it streams, and a plain .tar.gz for every other program."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from imagekit import host, signing, usage
from imagekit.arch import ARCHES
from imagekit.disk.signedfile import Signed
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.key import read as read_key
from imagekit.usage import Verb
from imagekit.verbs import _asked

ANY = ("any", "armhf", "riscv64")  # beside those that images are built for


def run(asked: Namespace) -> int:
    """Say what was written, and what it says of itself."""
    key, source = _asked.key(asked)[0], asked.path
    if asked.bali:
        return _bali(asked)
    known = signing.known(source, key, [read_key(path) for path in asked.trust or ()])
    about = _about(asked, known.about._asdict() if known else {})
    out = asked.output or _beside(source, ".signed", end=signing.SUFFIXES[asked.payload] if asked.payload else "")
    found = _sign(source, out, about, key, known, is_erofs=asked.payload == "erofs")
    said = found.said
    program = f", runs {' '.join(about.arguments)}" if about.arguments else ""
    size = _asked.size(said.body + found.trailer)
    _asked.show(f"{out}: {said.name} {said.version} {said.architecture}, signed by {key.id}{program}")
    _asked.show(f"  sha256:{said.content}, {size}, {said.chunks} chunks")
    return 0


def _sign(
    source: Path, out: Path, about: signing.About, key: Key, known: signing.Known | None, *, is_erofs: bool
) -> Signed:
    if not is_erofs:
        return signing.sign(source, out, about=about, key=key, known=known)
    from functools import partial
    from tempfile import TemporaryDirectory

    from imagekit import toolbox
    from imagekit.artifact import Job
    from imagekit.disk import roots

    store = _asked.store()
    tools = partial(toolbox.tools, mode=_asked.option(Namespace(), "tools", "auto"), store=store)
    job = Job(about.name, about.version, about.architecture, store, tools=tools)
    signing.check_place(out)
    with TemporaryDirectory(dir=out.parent, prefix=".erofs-") as folder:
        copy, draft = Path(folder) / "tar", Path(folder) / "erofs"
        signing.sign(source, copy, about=about, key=key, known=known)  # what is read from now on is nobody else's
        with signing.opened(copy) as file:
            made = roots.of_tar(signing.plain(file, source.name), draft, seed=f"{about.name} {about.version}", job=job)
        return signing.sign(draft, out, about=about._replace(compressor=made), key=key)


def _about(asked: Namespace, known: Any) -> signing.About:
    """What was typed, else what a verified manifest says."""
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
            f"{asked.path} is neither a signed image nor of an artifact: it has no name of its own",
            f"say what it is: {', '.join(lacking)}",
        )
    return signing.About(**fields)


def _bali(asked: Namespace) -> int:
    from imagekit.disk import bali

    key = _asked.key(asked)[0]
    out = asked.output or _beside(asked.path, ".bali")
    signing.check_place(out)
    with signing.opened(asked.path) as file, host.draft(out) as draft:
        for piece in bali.packed(signing.plain(file, asked.path.name), key):
            draft.write(piece)
    _asked.show(f"{out}: signed by {bali.identity(key.public)}")
    return 0


def _beside(source: Path, word: str, *, end: str = "") -> Path:
    """FILE.tar.gz -> FILE.signed.tar.gz"""
    for suffix in (".tar.gz", ".tgz", ".tar", ".erofs"):
        if source.name.endswith(suffix):
            end = end or (".erofs" if suffix == ".erofs" else ".tar.gz")
            return source.with_name(source.name.removesuffix(suffix) + word + end)
    return source.with_name(source.name + word + end)


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", type=Path, metavar="FILE", help="of an artifact, or any .tar.gz, tar or EROFS; or signed")
    verb.add_argument("command", nargs="*", metavar="PROGRAM", help="after --: what it runs (default: its service)")
    verb.add_argument("-o", "--output", type=Path, metavar="OUT", help="default: FILE.signed.tar.gz")
    verb.add_argument("--name", help="of the image, where no artifact tells it")
    verb.add_argument("--version", help="the same")
    verb.add_argument("--arch", choices=sorted([*ARCHES, *ANY]), help="the same")
    verb.add_argument("-e", "--env", action="append", metavar="NAME=VALUE", help="variable (repeatable)")
    verb.add_argument("--user", metavar="UID:GID", help="who runs it (default: of its service, else 0:0)")
    verb.add_argument("--workdir", metavar="DIR", help="where it runs (default: /)")
    verb.add_argument("--payload", choices=tuple(signing.SUFFIXES), help="erofs: a file system, to be mounted in place")
    verb.add_argument("--bali", action="store_true", help="write a file for bali instead, which says nothing of itself")
    verb.add_argument("--trust", action="append", type=Path, metavar="KEY",
                      help="whose signed image FILE may be, beside one's own (repeatable)")  # fmt: skip
    usage.key_option(verb, "secret key to sign with")


VERB = Verb(
    run,
    define,
    (
        "sign out/web_1_x86_64.tar.gz -o web.tar.gz",
        "sign out/web_1_x86_64.tar.gz --payload erofs -o web.erofs",
        "sign app.tar.gz --name app --version 1.2 --arch any -e PORT=80 --user 33:33 -- /usr/bin/app --serve",
    ),
    takes_command=True,
)
