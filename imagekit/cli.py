"""The command line: it finds the verb, a file in verbs/, and tells its errors.

Exit status: 0 done, 1 a Problem or a failed check, 2 wrong usage, 130 interrupted; `run` gives the program's own.
"""

import gc
import os
import sys

TYPE_CHECKING = False  # typing's own would cost a third of a no-op build

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def main(argv: "Sequence[str] | None" = None) -> int:
    """Run one command line and give its exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words[:1] == ["run"]:
        from imagekit import runner

        code = runner.main(words[1:])
        return _run(words) if code is None else code
    if words[:1] == ["build"]:
        from imagekit import stamp

        said = stamp.unchanged(words)
        if said is not None:
            print("\n".join(said))
            return 0
        gc.disable()  # a build makes values and ends: looking for circles among them costs it a twentieth
        if argv is None:
            _leave(_main(words))
    return _main(words)


def _run(words: "Sequence[str]") -> int:
    """Whoever runs a program has to tell its exit status from our own failures: those are 125 there."""
    try:
        return {1: 125, 2: 125}.get(code := _main(words), code)
    except SystemExit as end:
        if end.code == 2:
            return 125
        raise


def _main(words: "Sequence[str]") -> int:
    from imagekit import usage
    from imagekit.errors import Problem
    from imagekit.verbs import _asked

    asked = usage.parse(words)
    asked.words = words
    if getattr(asked, "mirror", None):
        os.environ["IMAGEKIT_MIRROR"] = asked.mirror  # where mirror.py looks, in processes that we start too
    if getattr(asked, "boot_keys", None):
        os.environ["IMAGEKIT_BOOT_KEYS"] = str(asked.boot_keys.absolute())  # likewise bootkeys.py
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


def _leave(code: int) -> "NoReturn":
    """End this process without taking its modules apart, which costs a build another twentieth."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = _deserted()
    os._exit(code)


def _deserted() -> int:
    """The reader of our output has gone; there is nobody left to tell, nor a pipe to flush at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


if __name__ == "__main__":
    sys.exit(main())
