"""The command line: it finds the verb and tells its errors. Verbs are files in verbs/, and functions here.

Exit status: 0 done, 1 a Problem or a failed check, 2 wrong usage, 130 interrupted; `run` gives the program's own.
"""

import gc
import os
import sys

from imagekit.verbs import _asked

TYPE_CHECKING = False  # typing's own would cost a third of a no-op build

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence
    from pathlib import Path

    from imagekit.image import Image


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command line and give its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["build"]:
        from imagekit import stamp

        said = stamp.unchanged(words)
        if said is not None:
            print("\n".join(said))
            return 0
        gc.disable()  # a build makes values and ends: looking for circles among them costs it a twentieth
    return _main(words)


def _main(words: "Sequence[str]") -> int:
    from imagekit import usage
    from imagekit.errors import Problem

    asked = usage.parser(VERBS, words).parse_args(words)
    asked.words = words
    if getattr(asked, "mirror", None):
        os.environ["IMAGEKIT_MIRROR"] = asked.mirror  # where mirror.py looks, in processes that we start too
    try:
        return int(asked.verb(asked))
    except Problem as problem:
        _asked.quiet()
        print(f"imagekit: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _asked.quiet()
        print("imagekit: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return _deserted()
        _asked.quiet()
        print(f"imagekit: {error.strerror}: {error.filename or 'no file named'}", file=sys.stderr)
        return 1


def _deserted() -> int:
    """The reader of our output has gone; there is nobody left to tell, nor a pipe to flush at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def lock(asked: "Namespace") -> int:
    """Pin every package of the images, for all their architectures, in a lock beside each definition."""
    from imagekit import build

    store = _asked.store()
    if asked.tools:
        from imagekit import toolbox

        toolbox.write_locks(store, _asked.say)
        return 0
    behind = 0
    for path, image in _asked.definitions(asked.path):
        if asked.check:
            behind += _lock_is_behind(path, image)
        else:
            written = build.write_lock(image, path.with_suffix(".lock"), store=store, say=_asked.say)
            for arch, pins in sorted(written.pins.items()):
                size = sum(pin.size for pin in pins)
                print(f"{path.with_suffix('.lock')}: {arch}: {len(pins)} packages, {_asked.size(size)} to fetch")
            print("".join(f"{line}\n" for line in build.licences(written, store=store, say=_asked.say)), end="")
    return min(behind, 1)


def build(asked: "Namespace") -> int:
    """Build, sign and write the images to a folder; nothing is done for what has not changed."""
    import time

    from imagekit import build, stamp

    started, store, key, same = time.time_ns(), _asked.store(), _asked.key(asked), True
    said, read, wrote = [], [str(key[1])], []
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
            from imagekit import twice

            same &= twice.checked(path, outs, store=store, say=_asked.say, told=said, tools=asked.tools)
    _asked.quiet()
    print("\n".join(said))
    if not asked.check:  # asked again, that is to be done again
        stamp.record(asked.words, read=read, wrote=wrote, said=said, started_ns=started)
    return int(not same)


def boot(asked: "Namespace") -> int:
    """Boot an image (or a written artifact) with its console on this terminal."""
    from imagekit import matrix, plugs
    from imagekit.errors import Problem
    from imagekit.guest import Rig

    store, key = _asked.store(), _asked.key(asked)[0]
    made = _asked.artifact(asked, key, store, kinds=("kernel", "disk"))
    name = asked.target or matrix.machine(made.arch, made.format)
    tools, accelerator = _asked.option(asked, "tools", "auto"), _asked.option(asked, "accel", "auto")
    rig = Rig(tools=tools, memory=asked.memory, accelerator=accelerator,
              say=_asked.say, cmdline=asked.append, firmware=asked.firmware, media=asked.media,
              channel=asked.firmware == "direct" or made.has_kernel)  # fmt: skip
    target = plugs.load("targets", name)
    with made.opened(key) as opened:
        if asked.chart:
            if not target.measure:
                raise Problem(f"{name} has no instruction clock", "--target names another machine")
            measured = target.measure(opened, rig=rig, store=store)
            _asked.quiet()
            print("\n".join(measured.chart()))
            return 0
        return int(target.interact(opened, rig=rig, store=store))


def run(asked: "Namespace") -> int:
    """Run a program of an image in a mount namespace: it takes the place of this process."""
    from imagekit.targets import _namespace

    store, key = _asked.store(), _asked.key(asked)[0]
    made = _asked.artifact(asked, key, store, kinds=("root",))
    with made.opened(key) as opened:
        _asked.quiet()
        return int(_namespace.execute(opened, asked.command or ["/bin/sh"], store=store))


def attach(asked: "Namespace") -> int:
    """Go on with the machine of a failed test, as pytest --on-failure=keep left it: a shell in it."""
    from pathlib import Path

    from imagekit import attach, plugs
    from imagekit.errors import Problem
    from imagekit.guest import Rig

    store = _asked.store()
    given = _asked.option(asked, "failures", "")
    folder, test, targets = attach.find(Path(given) if given else store.folder("failures"), asked.test)
    kept, target, name = attach.machine(folder, targets, asked.machine)
    resume = plugs.load("targets", target).resume
    if resume is None:
        raise Problem(f"a machine of {target} cannot go on")
    with resume(kept, rig=Rig(tools=_asked.option(asked, "tools", "auto"), say=_asked.say), store=store) as guest:
        _asked.quiet()
        if asked.console:
            print(guest.console.text)
            return 0
        return attach.shell(guest, f"{test}: {name}, as it was")


def inspect(asked: "Namespace") -> int:
    """Show what lies in an image: of a definition its packages, of a file its partitions, files and boot entries."""
    from imagekit import build, inspection

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


def convert(asked: "Namespace") -> int:
    """Write the disk of one file in another format, without composing it again."""
    from imagekit import convert

    done = convert.convert(asked.source, asked.path, kind=asked.format or "", say=_asked.say)
    _asked.quiet()
    sizes = f"a disk of {_asked.size(done.disk)} from {done.source}: {_asked.size(done.size)}"
    print(f"{asked.path}: {done.kind}, {sizes}, sha256 {done.sha256}")
    return 0


def key(asked: "Namespace") -> int:
    """Make a signing key, or show a key's public half."""
    from imagekit import key

    path = asked.path or key.default_path()
    if asked.what == "new":
        key.save(key.new(comment=asked.comment), path)
        print(f"secret key {path}\npublic key {path.with_suffix('.pub')}")
    print(key.read(path).public_text(), end="")
    return 0


def doctor(asked: "Namespace") -> int:
    """Say what this machine has, what is missing, and how to mend each line."""
    from imagekit import doctor

    lines = doctor.examine(_asked.store(), say=_asked.say)
    _asked.quiet()
    width = max(len(line.name) for line in lines)
    for line in lines:
        print(f"{line.state:4}  {line.name:{width}}  {line.found}")
        if line.mend:
            print(f"      {'':{width}}  mend: {line.mend}")
    _ = asked
    return int(any(line.state == "bad" for line in lines))


def _lock_is_behind(path: "Path", image: "Image") -> bool:
    from imagekit import build
    from imagekit.errors import Problem

    try:
        build.check_lock(image, build.read_lock(path))
    except Problem as problem:
        print(f"{path}: {problem}")
        return True
    print(f"{path}: the lock is up to date with its definition")
    return False


VERBS = {
    "lock": lock,
    "build": build,
    "boot": boot,
    "run": run,
    "attach": attach,
    "inspect": inspect,
    "convert": convert,
    "key": key,
    "doctor": doctor,
}

if __name__ == "__main__":
    sys.exit(main())
