"""Check the signature and every byte of an artifact or a signed image, and on request what was proved of it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from imagekit import artifact, bundle, deep, provenance, rebuild, signing, tested, usage
from imagekit.artifact import Artifact
from imagekit.disk.signedfile import Signed
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Say by whom each artifact is signed, and what its proofs say; the first thing that does not fit is a Problem."""
    if asked.bali:
        return _bali(asked)
    keys = _asked.keys(asked.key)
    for path in asked.path:
        if path.is_file() and signing.is_signed(path):
            _signed(path, keys, asked)
            continue
        if asked.export:
            raise Problem(f"{path} is no signed image: there is nothing in it to export", "`imagekit sign` makes one")
        made = artifact.load(path)
        signer = made.signer(keys)
        made.verify(signer)
        print(f"{path}: signed by {signer.id}: {made.name} {made.manifest['version']} {made.arch} {made.format}")
        if asked.deep:
            for line in deep.check(made, key=signer, store=_asked.store(), allow_rollback=asked.allow_rollback):
                _asked.show(f"  {line}")
        for option, check in PROOFS.items():
            if getattr(asked, option):
                print("".join(f"  {line}\n" for line in check(made, keys, asked)), end="")
    return 0


def _signed(path: Path, keys: Sequence[Key], asked: Namespace) -> None:
    """A signed image or a bundle, every chunk of it, and the launcher."""
    from imagekit.disk import signedfile

    wanted = [f"--{name}" for name in ("deep", *PROOFS) if getattr(asked, name)]
    if wanted:
        raise Problem(f"{path} is a signed image, which has no {wanted[0]}", "the artifact that it was made of may")
    found = _whole(path, keys)
    said = found.said
    _asked.show(
        f"{path}: signed by {signedfile.id_of(found.number)}: {said.name} {said.version} {said.architecture} "
        f"{said.payload}, {said.chunks} chunks, sha256:{said.content}"
    )
    if asked.export:
        for written in signing.export(found, path):
            print(f"  {written}")


def _whole(path: Path, keys: Sequence[Key]) -> Signed:
    try:
        with signing.opened(path) as file:
            return bundle.check(file.fileno(), keys)
    except Problem as problem:
        raise Problem(f"{path}: {problem.message}", problem.hint) from problem


def _bali(asked: Namespace) -> int:
    """Files of bali, by the identities that are trusted."""
    from imagekit.disk import bali

    publics = [bali.public_of(text) for text in asked.bali]
    for path in asked.path:
        with signing.opened(path) as file:
            try:
                by = bali.signer(file, publics)
            except Problem as problem:
                raise Problem(f"{path}: {problem.message}", problem.hint) from problem
        _asked.show(f"{path}: signed by {bali.identity(by)}, all of the tar")
    return 0


PROOFS: dict[str, Callable[[Artifact, Sequence[Key], Namespace], Sequence[str]]] = {
    "provenance": lambda made, keys, _: [provenance.check(made, keys)],
    "tested": lambda made, keys, _: [tested.check(made, keys)],
    "rebuilt": lambda made, keys, asked: rebuild.check(made, keys, require=asked.require),
}


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    usage.paths(verb, "manifests, any part of an artifact, or signed images")
    verb.add_argument(
        "--export",
        action="store_true",
        help="of a signed image: write FILE.manifest and FILE.manifest.minisig, for minisign and signify",
    )
    verb.add_argument("--bali", action="append", metavar="IDENTITY",
                      help="files of bali, signed by this identity (repeatable)")  # fmt: skip
    verb.add_argument("--deep", action="store_true", help="every file of the tree and every package, too")
    verb.add_argument("--allow-rollback", action="store_true",
                      help="deep: take an image that is older than one that was seen")  # fmt: skip
    verb.add_argument("--provenance", action="store_true", help="there must be a signed provenance that fits it")
    verb.add_argument("--tested", action="store_true", help="a signed test run must have passed it (pytest --attest)")
    verb.add_argument("--rebuilt", action="store_true", help="others must have built it again, the same")
    verb.add_argument("--require", type=int, default=1, metavar="N", help="of so many of the keys (default: 1)")
    usage.key_option(verb, "key that must have signed", action="append")


VERB = Verb(
    run,
    define,
    (
        "verify out/web_1_aarch64.initrd --key imagekit.pub",
        "verify web.tar.gz --key imagekit.pub --export",
        "verify --deep out/web_1_x86_64.initrd --key imagekit.pub",
        "verify out/web_1_x86_64.img --tested --rebuilt --require 2 --key A.pub --key B.pub --key C.pub",
    ),
)
