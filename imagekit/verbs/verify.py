"""Check an artifact's signature and every byte of it, and on request what was proved of it."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence

from imagekit import artifact, deep, provenance, rebuild, tested, usage
from imagekit.artifact import Artifact
from imagekit.key import Key
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Say by whom each artifact is signed, and what its proofs say; the first thing that does not fit is a Problem."""
    keys = _asked.keys(asked.key)
    for path in asked.path:
        made = artifact.load(path)
        signer = _asked.signer(made, keys)
        made.verify(signer)
        print(f"{path}: signed by {signer.id}: {made.name} {made.manifest['version']} {made.arch} {made.format}")
        if asked.deep:
            for line in deep.check(made, key=signer, store=_asked.store(), allow_rollback=asked.allow_rollback):
                _asked.show(f"  {line}")
        for option, check in PROOFS.items():
            if getattr(asked, option):
                print("".join(f"  {line}\n" for line in check(made, keys, asked)), end="")
    return 0


PROOFS: dict[str, Callable[[Artifact, Sequence[Key], Namespace], Sequence[str]]] = {
    "provenance": lambda made, keys, _: [provenance.check(made, keys)],
    "tested": lambda made, keys, _: [tested.check(made, keys)],
    "rebuilt": lambda made, keys, asked: rebuild.check(made, keys, require=asked.require),
}


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    usage.paths(verb, "manifests, or any part of an artifact")
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
        "verify --deep out/web_1_x86_64.initrd --key imagekit.pub",
        "verify out/web_1_x86_64.img --tested --rebuilt --require 2 --key A.pub --key B.pub --key C.pub",
    ),
)
