"""Show what lies in an image: of a definition its packages, of a file its partitions, files and boot entries."""

from argparse import ArgumentParser, Namespace

from imagekit import build, inspection, usage
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Exit status 1 when something is damaged."""
    is_whole = True
    for path in asked.path:
        if path.suffix != ".py" and not path.is_dir():
            is_whole &= inspection.show(path, key=lambda: _asked.key(asked)[0], as_json=asked.json, put=print)
            continue
        for file, found in _asked.definitions([path]):
            for arch in asked.arch or found.arches:
                tree = build.tree(found, folder=file.parent, lock=build.read_lock(file), arch=arch,
                                  store=_asked.store(), say=_asked.say)  # fmt: skip
                _asked.quiet()
                sizes = f"{len(tree)} paths, {_asked.size(tree.size)}"
                print(f"{found.name} {found.version} {arch}: {sizes}, tree {tree.digest}")
                print("\n".join(inspection.listed(tree) if asked.tree else inspection.sizes(tree)))
    return int(not is_whole)


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    usage.paths(verb, "definitions, folders of them, artifacts, or any image file, whoever made it")
    usage.arches(verb)
    verb.add_argument("--tree", action="store_true", help="list every path of a definition's images")
    verb.add_argument("--json", action="store_true", help="what lies in a file, for programs")
    usage.key_option(verb, "key whose signature a file should have")


VERB = Verb(run, define, ("inspect images/web.py --tree", "inspect out/web_1_aarch64.initrd"))
