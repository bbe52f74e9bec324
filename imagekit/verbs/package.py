"""Make a plain package from a package.toml, show what one says of itself, or verify its file."""

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import host, usage
from imagekit.arch import ARCHES
from imagekit.errors import Problem
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Whichever of the three was typed."""
    return {"build": _build, "show": _show, "verify": _verify}[asked.what](asked)


def _build(asked: Namespace) -> int:
    from imagekit import making, plain, recipe

    found, store, key = recipe.read(asked.path), _asked.store(), _asked.key(asked)[0]
    wanted = asked.arch or [one for one in found.architectures if not found.build or one in ("all", os.uname().machine)]
    if not wanted:
        raise Problem(
            f"{found.name} is made for {', '.join(found.architectures)}, by steps, and this is {os.uname().machine}",
            "build it on such a machine: nothing of another architecture is run",
        )
    for arch in wanted:
        made = making.make(found, arch, key=key, store=store, say=_asked.say)
        asked.output.mkdir(parents=True, exist_ok=True)
        place = asked.output / plain.file_name(made.package)
        with host.draft(place) as file:
            for piece in making.file_of(made, key=key):
                file.write(piece)
        _asked.quiet()
        tree = made.package.tree
        print(f"{place}  {_asked.size(place.stat().st_size)}, {len(tree)} paths, tree {tree.digest}")
    return 0


def _show(asked: Namespace) -> int:
    """Nothing is run, fetched or unpacked for it."""
    from imagekit import plain, recipe

    if asked.path.suffix == plain.SUFFIX:
        made, by = plain.read_head(asked.path, _asked.keys(asked.key))
        rows = {
            "name": made.name, "version": made.version, "architecture": made.architecture, "licence": made.licence,
            "source": " ".join(made.origin), "tree": made.digest, "signed by": by.id,
            "made from": "\n".join(f"{place} sha256 {digest}" for place, digest in made.sources),
            "setuid": "\n".join(made.setuid), "notes": "\n".join(made.notes),
        }  # fmt: skip
    else:
        found = recipe.read(asked.path)
        steps = "\n".join(" ".join(step) for step in found.build.steps) if found.build else ""
        rows = {
            "name": found.name, "version": found.version, "architecture": ", ".join(found.architectures),
            "licence": found.licence, "source": " ".join(found.origin),
            "made from": "\n".join(f"{one.place} sha256 {one.sha256 or '(not pinned)'}" for one in found.sources),
            "build image": found.build.image if found.build else "", "steps": steps,
            "files": "\n".join(sorted(found.files)), "setuid": "\n".join(found.setuid), "notes": "\n".join(found.notes),
        }  # fmt: skip
    for name, text in rows.items():
        for number, line in enumerate(text.split("\n") if text else []):
            _asked.show(f"{name if not number else '':12}  {line}")
    return 0


def _verify(asked: Namespace) -> int:
    from imagekit import plain

    store, keys = _asked.store(), _asked.keys(asked.key)
    taken = plain.take(asked.path, keys, store=store)
    made = taken.label
    _asked.show(
        f"{asked.path.name}: {made.name} {made.version} {made.architecture}, signed by {taken.by.id}, every byte"
    )
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    each = verb.add_subparsers(dest="what", metavar="build|show|verify", required=True)
    build = each.add_parser("build", help="make the package of a package.toml, for each architecture that it names")
    build.add_argument("path", type=Path, metavar="PATH", help="a package.toml, or the folder that holds one")
    build.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    build.add_argument(
        "--arch", action="append", choices=[*sorted(ARCHES), "all"], help="one of those that it names (repeatable)"
    )
    usage.key_option(build, "secret key to sign with")
    show = each.add_parser("show", help="what a package.toml or a package says; nothing is run")
    show.add_argument("path", type=Path, metavar="PATH", help="a package.toml, its folder, or a .ikp")
    usage.key_option(show, "key that is trusted", action="append")
    verify = each.add_parser("verify", help="hash and read every byte of a package, by keys that are trusted")
    verify.add_argument("path", type=Path, metavar="FILE", help="a .ikp")
    usage.key_option(verify, "key that is trusted", action="append")


VERB = Verb(run, define, ("package build hello -o out", "package show hello", "package verify out/hello_1.0_all.ikp"))
