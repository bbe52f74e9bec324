"""Say what this machine has, what is missing, and how to mend each line."""

from argparse import ArgumentParser, Namespace

from imagekit import doctor
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Exit status 1 when something is bad."""
    _ = asked
    lines = doctor.examine(_asked.store(), say=_asked.say)
    _asked.quiet()
    width = max(len(line.name) for line in lines)
    for line in lines:
        print(f"{line.state:4}  {line.name:{width}}  {line.found}")
        if line.mend:
            print(f"      {'':{width}}  mend: {line.mend}")
    return int(any(line.state == "bad" for line in lines))


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    _ = verb


VERB = Verb(run, define, ("doctor",))
