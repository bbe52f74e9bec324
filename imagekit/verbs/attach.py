"""Go on with the machine of a failed test, as pytest --on-failure=keep left it: a shell in it."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import attach, plugs, usage
from imagekit.errors import Problem
from imagekit.guest import Rig
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Until its shell ends."""
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


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("test", metavar="TEST", help="a test's node id, or the folder of its failure")
    verb.add_argument("--machine", default="", metavar="NAME", help="which one, of a test with several")
    verb.add_argument("--console", action="store_true", help="only show all that its console printed")
    verb.add_argument("--failures", metavar="DIR", help="where failures are kept (default: in the cache)")
    usage.tools(verb, "QEMU comes from")


VERB = Verb(run, define, ("attach 'images/web.py::test_serves[x86_64-kernel_initrd-qemu_x86_64]'",))
