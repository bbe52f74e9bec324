"""Write what runs an image's services under a supervisor: a systemd service and socket, or a Nomad job."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from hashlib import file_digest
from pathlib import Path
from typing import TYPE_CHECKING

from imagekit import plugs, unit, usage
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.unit import Program, Wishes
from imagekit.usage import Verb
from imagekit.verbs import _asked

if TYPE_CHECKING:
    from imagekit.disk.signedfile import Signed


def run(asked: Namespace) -> int:
    """On stdout, as `systemctl cat` shows them, or into a folder."""
    kind = plugs.load("units", asked.unit)
    key = _asked.key(asked)[0]
    programs = _of_definition(asked, key) if asked.path.suffix == ".py" else [_of_file(asked, key)]
    texts = kind.write(programs, _wishes(asked, key))
    for name, text in texts.items():
        if asked.output:
            asked.output.mkdir(parents=True, exist_ok=True)
            (asked.output / name).write_text(text, encoding="utf-8")
            _asked.show(str(asked.output / name))
        else:
            print(f"# {name}\n{text}")
    return 0


def _of_definition(asked: Namespace, key: Key) -> list[Program]:
    """The services of a definition, and the signed file of its image."""
    from imagekit import definition

    if asked.command:
        raise Problem("a definition says itself what its services start", "choose some with --service")
    if not asked.file:
        raise Problem("a definition is no file that could be started", "name the signed image of it with --file")
    found, (signed, digest) = definition.load(asked.path), _verified(asked.file, key)
    made, wanted = (signed.said.name, signed.said.version), (found.name, found.version)
    if made != wanted:
        raise Problem(f"{asked.file} is {' '.join(made)}, the definition is of {' '.join(wanted)}", "sign that image")
    return unit.of_definition(found, asked.service, file=_program(asked, asked.file, signed, digest))


def _of_file(asked: Namespace, key: Key) -> Program:
    """What a signed file or a bundle starts by itself, or the command that was given."""
    if asked.service or asked.file:
        raise Problem("--service and --file go with a definition", "name that, or a command behind --")
    signed, digest = _verified(asked.path, key)
    if not (asked.command or signed.said.arguments):
        raise Problem(f"{asked.path} does not say which program it starts", "name one behind --")
    return replace(_program(asked, asked.path, signed, digest), command=tuple(asked.command))


def _verified(path: Path, key: Key) -> "tuple[Signed, str]":
    """What a signed file or bundle says, when all of it is what the key signed; and its sha256."""
    from imagekit import bundle

    try:
        with open(path, "rb") as file:
            return bundle.check(file.fileno(), [key]), file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    except Problem as problem:
        raise type(problem)(f"{path}: {problem.message}", problem.hint) from problem


def _program(asked: Namespace, path: Path, signed: "Signed", digest: str) -> Program:
    said = signed.said
    place, about = asked.at or str(path.absolute()), f"{said.name} {said.version}"
    if not (place.startswith("/") or unit.URL.match(place)):
        raise Problem(f"--at {place} is no place", "an absolute path on the machine, or a URL")
    return Program(asked.name or said.name, about, said.architecture, place, signed.start > 0, digest)


def _wishes(asked: Namespace, key: Key) -> Wishes:
    return Wishes(
        key=key.public_text(),
        trust=asked.trust or "",
        imagekit=asked.imagekit,
        listen=tuple(asked.listen),
        volumes=tuple(map(unit.volume, asked.volume)),
        credentials=tuple(map(unit.credential, asked.credential)),
        memory=unit.size(asked.memory) if asked.memory else 0,
        cpus=asked.cpus,
        pids=asked.pids,
        unprivileged=asked.unprivileged,
    )


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("unit", choices=plugs.names("units"), help="the supervisor")
    verb.add_argument("path", type=Path, metavar="IMAGE", help="a definition, a signed image file, or a bundle")
    verb.add_argument("command", nargs="*", metavar="COMMAND", help="after --; default: what the image starts")
    add = verb.add_argument
    add("-o", "--output", type=Path, metavar="FOLDER", help="write files there (else to stdout)")
    add("--file", type=Path, metavar="FILE", help="of a definition, its signed image file")
    add("--service", action="append", default=[], metavar="NAME", help="of a definition (repeatable; else all)")
    add(
        "--at",
        metavar="PLACE",
        help="where the file will lie: a path on the machine, or a URL (else where it lies here)",
    )
    add("--name", metavar="NAME", help="of the unit (else the image's)")
    add("--trust", metavar="FILE", help="on the machine, the public key to verify with (else --key's, in the unit)")
    add("--listen", action="append", default=[], metavar="ADDRESS", help="systemd opens it: 80, [::1]:80 (repeatable)")
    add("--unprivileged", action="store_true", help="as a user who is nobody, without root's rights")
    add(
        "-v", "--volume", action="append", default=[], metavar="SOURCE:TARGET[:ro]", help="as `run` has it (repeatable)"
    )
    add("--credential", action="append", default=[], metavar="NAME:FILE", help="that systemd hands over (repeatable)")
    add("--memory", metavar="SIZE", help="at most, as 512M")
    add("--cpus", type=float, default=0, metavar="N", help="at most, as 1.5")
    add("--pids", type=int, default=0, metavar="N", help="processes and threads at most")
    add("--imagekit", default="imagekit", metavar="PROGRAM", help="on the machine (default: %(default)s)")
    usage.key_option(verb, "key that signed the image")


EXAMPLES = (
    "unit systemd web.tar.gz -o /etc/systemd/system",
    "unit systemd app --listen 80 --unprivileged",
    "unit nomad images/web.py --file web.tar.gz --at https://example.org/web.tar.gz",
)
VERB = Verb(run, define, EXAMPLES, takes_command=True)
