"""Run a program of an image: this process enters the image's root and becomes the program.

Starting Python is most of the time that this takes, so nothing is imported here that a run does not use: what an image
is, is found out by admission.py, once; after that a note tells which root of the cache was verified.
"""

# ruff: noqa: PTH100, PTH112, PTH121, PTH208 - as in namespace.py: pathlib costs as much as the rest of a start

import os

from imagekit import asked as typed
from imagekit import namespace
from imagekit.asked import Asked, Entry, Tree

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagekit.admission import Admitted

EINVAL = 22
THREADS_END = 500  # hundredths of a second
SHELL = ["/bin/sh"]
NO_NAMESPACE = "`imagekit doctor` tells how this machine can allow it"


def main(words: "Sequence[str]") -> int | None:
    """Do what was typed after `run`; None when these words need the command line's parser, its help or its errors."""
    asked = typed.parse(words)
    return None if asked is None or asked.image.endswith(".py") else start(asked)


def start(asked: Asked) -> int:
    """Become the program; returns only when that failed, the code to exit with."""
    try:
        return run(asked)
    except OSError as error:
        namespace.say(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error))
    except MemoryError:
        namespace.say("there is not enough memory")
    return namespace.FAILED


def run(asked: Asked) -> int:
    """The same, but for errors of the machine: raises OSError."""
    from imagekit import fitting

    if any(words[:1] in ("=", "") for words in asked.env):
        raise OSError(0, "-e takes NAME=VALUE")
    volumes = [fitting.volume(words) for words in asked.volumes]
    folder = fitting.keep(asked.persist) if asked.persist else ""
    found = _folder(asked) or _known(asked) or _admitted(asked)
    if found is None:
        return namespace.FAILED
    for line in found.why if asked.explain else ():
        namespace.say(line)
    if asked.memory or asked.cpus or asked.pids:
        from imagekit import limits

        limits.apply(memory=asked.memory, cpus=asked.cpus, pids=asked.pids, say=namespace.say)
    mapped = _unshare()
    shown = fitting.opened(volumes)
    is_writable = found.stage(os.open(folder, os.O_PATH | os.O_CLOEXEC) if folder else -1)
    fitting.place(shown)
    fitting.close_own()
    namespace.pivot()
    if mapped and not (is_writable and all(not is_read_only for _, _, is_read_only in shown)):
        namespace.again_as(os.getuid(), os.getgid(), flags=namespace.CLONE_NEWNS)
    return _become(asked, found.entry, mapped=mapped)


def _unshare() -> bool:
    for rest in range(THREADS_END, -1, -1):
        try:
            return namespace.unshare(inside=0)
        except OSError as error:
            if error.errno == EINVAL and rest and len(os.listdir("/proc/self/task")) > 1:
                _wait()  # threads that have unpacked are ending: user namespaces are for processes of one (unshare(2))
                continue
            raise OSError(error.errno, f"{error.strerror} ({NO_NAMESPACE})") from None
    return False


def _wait() -> None:
    import time

    time.sleep(0.01)


def _become(asked: Asked, entry: Entry, *, mapped: bool) -> int:
    """In the root: be the user, stand in the folder, and become the program."""
    from imagekit import fitting

    fitting.end_exemption()
    namespace.restore_signals()
    home, user = "/root", asked.user or entry.user
    if user not in ("", "0:0", "0"):
        home = fitting.become(user, mapped=mapped)[3]
    workdir = asked.workdir or entry.workdir
    try:
        os.chdir(workdir)
    except OSError as error:
        raise OSError(error.errno, f"--workdir {workdir}: {error.strerror}") from None
    own = {"PATH": namespace.PATH, "HOME": home}
    given = dict(words.partition("=")[::2] for words in asked.env)
    env = {**entry.env, **os.environ, **{name: entry.env.get(name, own[name]) for name in own}, **given}
    return namespace.become(asked.command or entry.argv or SHELL, env)


# --- which root -------------------------------------------------------------------------------------------------------


def _folder(asked: Asked) -> Tree | None:
    """A folder as it lies there: nobody signed it."""
    if not os.path.isdir(asked.image):
        return None
    if not asked.insecure:
        raise OSError(0, f"{asked.image} is a folder, which nobody signed: --insecure runs it all the same")
    if os.path.samefile(asked.image, "/"):
        raise OSError(0, "/ is this machine's own root: nothing can be laid over it")
    namespace.say(f"WARNING: {asked.image} is run as it lies there, nothing is verified (--insecure)")
    return Tree(os.path.abspath(asked.image), entry=Entry(), why=["a folder of this machine, below an overlay"])


def _known(asked: Asked) -> "Tree | Admitted | None":
    """What an earlier run verified, if no file has changed since: its root in the cache, and nothing else is looked at.

    Whoever could deceive the file's times would be shown the root that was verified, so nothing else can be run by it.
    """
    if asked.insecure or asked.ephemeral:
        return None
    from imagekit import roots, stamp

    cache = roots.location()
    said = None if roots.usable(cache) else stamp.unchanged(typed.stamp_words(asked))
    if not said:
        return None
    held = roots.hold(cache, said[0])
    if held is None:
        return None
    held.outlive()
    entry, why = Entry(said[1:]), ["verified by an earlier run, no file has changed since"]
    if held.has_image:
        why.append(f"mounted from the cache: {held.image}")
        return typed.Mounted(held.image, on=held.root, entry=entry, why=why)
    return Tree(held.root, entry=entry, why=[*why, f"entered in the cache: {held.root}"])


def _admitted(asked: Asked) -> "Tree | Admitted | None":
    """Find out what the image is, verify it, and have its root."""
    from imagekit import admission
    from imagekit.errors import Problem

    try:
        return admission.admit(asked)
    except Problem as problem:
        namespace.say(str(problem))
        return None
