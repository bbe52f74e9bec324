"""The command line: one function per verb.

Exit status: 0 done, 1 a Problem or a failed check, 2 wrong usage, 130 interrupted; `run` gives the program's own.
"""

import gc
import os
import sys

TYPE_CHECKING = False  # typing's own would cost a third of a no-op build

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from imagekit.artifact import Artifact
    from imagekit.image import Image
    from imagekit.key import Key
    from imagekit.progress import Lines
    from imagekit.store import Store


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
        _quiet()
        print(f"imagekit: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _quiet()
        print("imagekit: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return _deserted()
        _quiet()
        print(f"imagekit: {error.strerror}: {error.filename or 'no file named'}", file=sys.stderr)
        return 1


def _deserted() -> int:
    """The reader of our output has gone; there is nobody left to tell, nor a pipe to flush at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def lock(asked: "Namespace") -> int:
    """Pin every package of the images, for all their architectures, in a lock beside each definition."""
    from imagekit import build

    store = _store()
    if asked.tools:
        from imagekit import toolbox

        toolbox.write_locks(store, _say)
        return 0
    behind = 0
    for path, image in _definitions(asked.path):
        if asked.check:
            behind += _lock_is_behind(path, image)
        else:
            written = build.write_lock(image, path.with_suffix(".lock"), store=store, say=_say)
            for arch, pins in sorted(written.pins.items()):
                size = sum(pin.size for pin in pins)
                print(f"{path.with_suffix('.lock')}: {arch}: {len(pins)} packages, {_size(size)} to fetch")
            print("".join(f"{line}\n" for line in build.licences(written, store=store, say=_say)), end="")
    return min(behind, 1)


def build(asked: "Namespace") -> int:
    """Build, sign and write the images to a folder; nothing is done for what has not changed."""
    import time

    from imagekit import build, stamp

    started, store, key, same = time.time_ns(), _store(), _key(asked), True
    said, read, wrote = [], [str(key[1])], []
    for path, image in _definitions(asked.path):
        pinned = build.read_lock(path)
        said += build.licences(pinned, store=store, say=_say)
        outs = []
        for arch, format in _combinations(asked, image):
            made = build.artifact(image, folder=path.parent, lock=pinned, arch=arch, format=format,
                                  key=key[0], store=store, say=_say, tools=asked.tools)  # fmt: skip
            outs.append(out := build.publish(made, asked.output))
            wrote += [str(out.path), *(str(out.path.with_name(file.file)) for file in out.files)]
            said.append(f"{image.name} {arch} {format}  {_size(made.size)}  {out.path}")
        read += build.inputs(image, path)
        if asked.check:
            from imagekit import twice

            same &= twice.checked(path, outs, store=store, say=_say, told=said, tools=asked.tools)
    _quiet()
    print("\n".join(said))
    if not asked.check:  # asked again, that is to be done again
        stamp.record(asked.words, read=read, wrote=wrote, said=said, started_ns=started)
    return int(not same)


def boot(asked: "Namespace") -> int:
    """Boot an image (or a written artifact) with its console on this terminal."""
    from imagekit import matrix, plugs
    from imagekit.errors import Problem
    from imagekit.guest import Rig

    store, key = _store(), _key(asked)[0]
    made = _artifact(asked, key, store, kinds=("kernel", "disk"))
    name = asked.target or matrix.machine(made.arch, made.format)
    rig = Rig(tools=_option(asked, "tools", "auto"), memory=asked.memory, accelerator=_option(asked, "accel", "auto"),
              say=_say, cmdline=asked.append, firmware=asked.firmware, media=asked.media,
              channel=asked.firmware == "direct" or made.has_kernel)  # fmt: skip
    target = plugs.load("targets", name)
    with made.opened(key) as opened:
        if asked.chart:
            if not target.measure:
                raise Problem(f"{name} has no instruction clock", "--target names another machine")
            measured = target.measure(opened, rig=rig, store=store)
            _quiet()
            print("\n".join(measured.chart()))
            return 0
        return int(target.interact(opened, rig=rig, store=store))


def run(asked: "Namespace") -> int:
    """Run a program of an image in a mount namespace: it takes the place of this process."""
    from imagekit.targets import _namespace

    store, key = _store(), _key(asked)[0]
    made = _artifact(asked, key, store, kinds=("root",))
    with made.opened(key) as opened:
        _quiet()
        return int(_namespace.execute(opened, asked.command or ["/bin/sh"], store=store))


def attach(asked: "Namespace") -> int:
    """Go on with the machine of a failed test, as pytest --on-failure=keep left it: a shell in it."""
    from pathlib import Path

    from imagekit import attach, plugs
    from imagekit.errors import Problem
    from imagekit.guest import Rig

    store = _store()
    given = _option(asked, "failures", "")
    folder, test, targets = attach.find(Path(given) if given else store.folder("failures"), asked.test)
    kept, target, name = attach.machine(folder, targets, asked.machine)
    resume = plugs.load("targets", target).resume
    if resume is None:
        raise Problem(f"a machine of {target} cannot go on")
    with resume(kept, rig=Rig(tools=_option(asked, "tools", "auto"), say=_say), store=store) as guest:
        _quiet()
        if asked.console:
            print(guest.console.text)
            return 0
        return attach.shell(guest, f"{test}: {name}, as it was")


def inspect(asked: "Namespace") -> int:
    """Show what lies in an image: of a definition its packages, of a file its partitions, files and boot entries."""
    from imagekit import build, inspection

    for path in asked.path:
        if path.suffix != ".py" and not path.is_dir():
            inspection.show(path, key=lambda: _key(asked)[0], as_json=asked.json, put=print)
            continue
        for file, found in _definitions([path]):
            for arch in asked.arch or found.arches:
                tree = build.tree(found, folder=file.parent, lock=build.read_lock(file), arch=arch,
                                  store=_store(), say=_say)  # fmt: skip
                _quiet()
                print(f"{found.name} {found.version} {arch}: {len(tree)} paths, {_size(tree.size)}, tree {tree.digest}")
                print("\n".join(inspection.listed(tree) if asked.tree else inspection.sizes(tree)))
    return 0


def convert(asked: "Namespace") -> int:
    """Write the disk of one file in another format, without composing it again."""
    from imagekit import convert

    done = convert.convert(asked.source, asked.path, kind=asked.format or "", say=_say)
    _quiet()
    sizes = f"a disk of {_size(done.disk)} from {done.source}: {_size(done.size)}"
    print(f"{asked.path}: {done.kind}, {sizes}, sha256 {done.sha256}")
    return 0


def verify(asked: "Namespace") -> int:
    """Check an artifact's signature and every byte of it."""
    from imagekit import artifact

    key = _key(asked)[0]
    for path in asked.path:
        made = artifact.load(path)
        made.verify(key)
        print(f"{path}: signed by {key.id}: {made.name} {made.manifest['version']} {made.arch} {made.format}")
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

    lines = doctor.examine(_store(), say=_say)
    _quiet()
    width = max(len(line.name) for line in lines)
    for line in lines:
        print(f"{line.state:4}  {line.name:{width}}  {line.found}")
        if line.mend:
            print(f"      {'':{width}}  mend: {line.mend}")
    _ = asked
    return int(any(line.state == "bad" for line in lines))


def _definitions(paths: "Sequence[Path]") -> "Iterator[tuple[Path, Image]]":
    """Every definition that the paths name; a folder stands for all definitions right in it."""
    from imagekit import definition
    from imagekit.errors import Problem

    found = []
    for path in paths:
        if not path.exists():
            raise Problem(f"there is no {path}", "name a definition, as in images/web.py, or a folder of them")
        found += sorted(path.glob("*.py")) if path.is_dir() else [path]
    shown = 0
    for path in found:
        if path not in paths and not definition.looks_like_one(path):
            continue
        shown += 1
        yield path, definition.load(path)
    if not shown:
        raise Problem(f"no image is defined in {', '.join(map(str, paths))}", "a definition has `image = Image(...)`")


def _combinations(asked: "Namespace", image: "Image") -> "list[tuple[str, str]]":
    from imagekit import plugs
    from imagekit.errors import Problem

    pairs = [(a, f) for a in image.arches for f in image.formats if a in plugs.load("formats", f).arches]
    wanted = [(a, f) for a, f in pairs if a in (asked.arch or image.arches) and f in (asked.format or image.formats)]
    if not wanted:
        offered = ", ".join(f"{a} {f}" for a, f in pairs)
        raise Problem(f"image {image.name!r} is not made for what was asked", f"it is made for: {offered}")
    return wanted


def _artifact(asked: "Namespace", key: "Key", store: "Store", *, kinds: "Sequence[str]") -> "Artifact":
    """The artifact that a path names; a definition is built first, in a format of one of the kinds."""
    from imagekit import arch, artifact, build, definition, plugs
    from imagekit.errors import Problem

    if asked.path.suffix != ".py":
        return artifact.load(asked.path)
    found = definition.load(asked.path)
    fitting = [name for name in found.formats if plugs.load("formats", name).kind in kinds]
    if not fitting:
        raise Problem(f"image {found.name!r} has no format of kind {' or '.join(kinds)}", f"it has {found.formats}")
    wanted = asked.arch or (arch.host().name if arch.host().name in found.arches else found.arches[0])
    return build.artifact(found, folder=asked.path.parent, lock=build.read_lock(asked.path), arch=wanted,
                          format=fitting[0], key=key, store=store, say=_say, tools=asked.tools)  # fmt: skip


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


def _size(size: int) -> str:
    from imagekit.disk import parts

    return parts.size(size)


def _store() -> "Store":
    from imagekit.stores.directory import open_store

    return open_store()


def _option(asked: "Namespace", name: str, default: str) -> str:
    from imagekit import options

    return str(options.lookup(name, getattr(asked, name, None), default=default))


def _key(asked: "Namespace") -> "tuple[Key, Path]":
    from pathlib import Path

    from imagekit import key, options

    path = Path(options.lookup("key", asked.key, default=key.default_path()))
    return key.read(path), path


def _say(line: str) -> None:
    """A progress line on stderr: one that changes on a terminal, plain lines elsewhere."""
    _lines().say(line)


def _quiet() -> None:
    """Take the progress line away, before something else is printed."""
    _lines().clear()


def _lines() -> "Lines":
    from imagekit import progress

    if not _LINES:
        columns = os.get_terminal_size(2).columns if sys.stderr.isatty() else 0
        _LINES.append(progress.Lines(lambda text: print(text, end="", file=sys.stderr, flush=True), columns=columns))
    return _LINES[0]


_LINES: "list[Lines]" = []

VERBS = {
    "lock": lock,
    "build": build,
    "boot": boot,
    "run": run,
    "attach": attach,
    "inspect": inspect,
    "convert": convert,
    "verify": verify,
    "key": key,
    "doctor": doctor,
}

if __name__ == "__main__":
    sys.exit(main())
