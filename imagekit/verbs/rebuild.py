"""Build an artifact again from its definition, elsewhere, and sign that it is the same, or is not."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import artifact, rebuild, usage
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Exit status 1 when it is not the same; that is signed as well."""
    made = artifact.load(asked.path)
    signer = _asked.key(asked)[0]
    by = made.signer(_asked.keys(asked.trust))
    made.verify(by)
    found = rebuild.rebuild(made, asked.definition, key=signer, store=_asked.store(), say=_asked.say,
                            folder=asked.output, tools=asked.tools, by=by)  # fmt: skip
    _asked.quiet()
    print("\n".join([*found.lines, f"signed by {signer.id}: {found.path}"]))
    return int(not found.same)


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", type=Path, metavar="ARTIFACT", help="a manifest, or any part of an artifact")
    verb.add_argument("--definition", type=Path, required=True, metavar="PATH", help="what it was built from")
    verb.add_argument("--trust", type=Path, action="append", metavar="FILE",
                      help="key that must have signed the artifact (repeatable; else your own)")  # fmt: skip
    verb.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="for the statement; default: beside the artifact"
    )
    usage.tools(verb, "the formats' programs come from")
    usage.key_option(verb, "secret key to sign the statement with")
    usage.boot_keys(verb)
    usage.mirror(verb)


VERB = Verb(
    run,
    define,
    ("rebuild out/web_1_x86_64.img --definition images/web.py --trust theirs.pub",),
)
