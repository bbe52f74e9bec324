"""Name every image that holds a package, a version, a file or a licence: an index is asked, not the files."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path

from imagekit import catalogue, holdings, query, usage
from imagekit.catalogue import Catalogue
from imagekit.errors import Problem
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Exit status 1 when nothing was found, as grep has it."""
    known, left_out = _catalogue(asked)
    answer = query.ask(known, asked.question)
    (_json if asked.json else _lines)(answer, left_out)
    for line in answer.unsure:
        _asked.note(f"not sure: {line}")
    rest = f"; {len(left_out)} left out, as --json tells" * bool(left_out)
    _asked.note(f"{len(answer.found)} of {len(known)} images{rest}")
    return 0 if answer.found else 1


def _json(answer: query.Answer, left_out: Mapping[str, str]) -> None:
    found = [{"image": one.image._asdict(), "packages": [_row(*held) for held in one.packages]} for one in answer.found]
    print(json.dumps({"found": found, "unsure": answer.unsure, "left_out": left_out}, indent=1))


def _lines(answer: query.Answer, left_out: Mapping[str, str]) -> None:
    _ = left_out  # told on stderr
    for one in answer.found:
        _asked.show(f"{one.image.name} {one.image.version} {one.image.arch} {one.image.format}: {one.image.place}")
        for package, what in one.packages:
            version = f" {package.version}" if what != package.version else ""
            _asked.show(f"  {package.name}{version} {what}")


def _catalogue(asked: Namespace) -> tuple[Catalogue, dict[str, str]]:
    if asked.depot:
        from imagekit import site
        from imagekit.depot import catalogued, trust  # brings tuf, which no other search needs

        place = site.at(asked.depot)
        return catalogued.read(place, trust.refresh(place).targets, store=_asked.store()), {}
    if asked.index:
        try:
            with open(asked.index, "rb") as file:
                return catalogue.read(file.read(catalogue.LARGEST + 1)), {}
        except OSError as error:
            raise Problem(f"cannot read {asked.index}: {error.strerror}") from error
    store = _asked.store()
    folders = asked.within or [store.folder("artifacts"), *([Path("out")] if Path("out").is_dir() else [])]
    if missing := [folder for folder in folders if not folder.exists()]:
        raise Problem(f"there is no {missing[0]}", "name a folder of artifacts with --in")
    return holdings.update([folder.absolute() for folder in folders], keys=_asked.keys(asked.key), store=store)


def _row(package: catalogue.Package, what: str) -> dict[str, str]:
    return {**package._asdict(), "digest": package.digest.hex(), "found": what}


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("question", nargs="+", metavar="QUESTION", help=f"all of them must hold: {query.HOW[6:]}")
    verb.add_argument("--in", dest="within", action="append", type=Path, metavar="DIR",
                      help="folder of artifacts (repeatable; default: the cache's and out/)")  # fmt: skip
    verb.add_argument("--depot", metavar="PLACE", help="ask the catalogue of a depot that you trust, by its index")
    verb.add_argument("--index", type=Path, metavar="FILE", help="ask this catalogue instead")
    verb.add_argument("--json", action="store_true", help="as JSON")
    usage.key_option(verb, "key that must have signed the manifests", action="append")


VERB = Verb(
    run,
    define,
    (
        "search 'openssl<3.0.15'",
        "search 'openssl>=3,<3.0.15' path:/usr/bin/curl --in out",
        "search 'licence:GPL-3.0*' --json",
        "search openssl --depot https://images.example.org/depot",
    ),
)
