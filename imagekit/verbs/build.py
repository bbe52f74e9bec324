"""Build, sign and write the images to a folder; nothing is done for what has not changed."""

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import stamp, usage
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Exit status 1 when --check found a difference."""
    from imagekit import build, repertoire  # here: what is wrong with the words is told without it

    trim = _asked.trim()
    started, store, key, same = time.time_ns(), _asked.store(), _asked.key(asked), True
    said, read, wrote = [], [str(key[1])], []
    repertoire.recall(store, own=build.own_digest())
    for path, image in _asked.definitions(asked.path):
        pinned = build.read_lock(path)
        said += build.licences(pinned, store=store, say=_asked.say)
        outs = []
        for arch, format in _asked.combinations(asked, image):
            made = build.artifact(image, folder=path.parent, lock=pinned, arch=arch, format=format,
                                  key=key[0], store=store, say=_asked.say, tools=asked.tools)  # fmt: skip
            outs.append(out := build.publish(made, asked.output))
            wrote += [str(out.path), *(str(out.path.with_name(file.file)) for file in out.files)]
            said.append(f"{image.name} {arch} {format}  {_asked.size(made.size)}  {out.path}")
            if asked.provenance:
                from imagekit import provenance

                finished = made.path.stat().st_mtime  # a manifest is the last that is written, and once
                proof = provenance.write(out, key=key[0], started=started / 1e9, finished=finished)
                wrote.append(str(proof))
                said.append(f"{image.name} {arch} {format}  provenance  {proof}")
        read += build.inputs(image, path)
        if asked.check:
            from imagekit import borrowed, twice

            same &= twice.checked(path, outs, store=store, say=_asked.say, told=said, tools=asked.tools,
                                  key_text=borrowed.key_text(key[0], outs))  # fmt: skip
    _asked.quiet()
    print("\n".join(said))
    if not asked.check:  # asked again, that is to be done again
        stamp.record(asked.words, read=read, wrote=wrote, said=said, started_ns=started)
    trim(store)
    return int(not same)


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    usage.paths(verb, "definitions, or folders of them (default: images)", default="images")
    usage.arches(verb)
    usage.plug(verb, "--format", "formats", "output format", action="append")
    verb.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    usage.tools(
        verb, "the formats' programs come from; only those of `tree`, the default, write the same bytes everywhere"
    )
    verb.add_argument("--provenance", action="store_true", help="sign from what and when it was built, beside it")
    verb.add_argument("--check", action="store_true", help="build twice, the second time elsewhere, and compare")
    usage.key_option(verb, "secret key to sign with")
    usage.boot_keys(verb)
    usage.mirror(verb)


VERB = Verb(
    run, define, ("build images/web.py --arch aarch64 --format kernel_initrd -o out", "build --check images/web.py")
)
