"""A job for Nomad, in HCL: the image's file with its checksum, and a task for each service."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from unicodedata import is_normalized

from imagekit.errors import Problem
from imagekit.unit import Program, Unit, Wishes

NAME = re.compile(r"[A-Za-z0-9_+.-]{1,128}\Z")  # of a job, a group and a task
INTERPOLATED = re.compile(r"\$\{[A-Za-z0-9_.-]+\}")  # Nomad puts a value there, also in what HCL says is meant as is
UNSAYABLE = re.compile(
    r"[\0\r\ud800-\udfff]"
)  # HCL's scanner ends a literal at a lone CR, and takes `$${` behind it amiss
TASK_FOLDER = "${NOMAD_TASK_DIR}"
KEY = "image.pub"
ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
MIB = 1 << 20
GO = {"x86_64": "amd64", "aarch64": "arm64", "armhf": "arm"}  # the others have one name
FOREVER = (("attempts", 10), ("interval", "1m"), ("delay", "3s"), ("mode", "delay"))  # slower after ten in a minute
ONCE = (("attempts", 0), ("mode", "fail"))


class Block(NamedTuple):
    """A block of HCL."""

    kind: str
    label: str
    rows: "Sequence[Row]"


class Meant(str):
    """A text in which Nomad is to put values: `${...}` is left as it is."""

    __slots__ = ()


class Literal(str):
    """A word of a task's config, which Nomad reads a second time, as a template, when it starts the task."""

    __slots__ = ()


Value = str | int | Sequence[str]
Row = tuple[str, Value] | Block


def write(programs: Sequence[Program], wishes: Wishes) -> Mapping[str, str]:
    """NAME.nomad.hcl, one job with one group with all programs."""
    for program in programs:
        _check(program, wishes)
    first = programs[0]
    policies = {program.restart for program in programs}
    if len(policies) > 1:
        raise Problem("one Nomad job starts again always, on failure or never", "choose services with --service")
    name = first.name if len(programs) == 1 else first.image.partition(" ")[0]
    job = Block("job", name, [
        ("type", "service" if policies == {"always"} else "batch"),
        Block("constraint", "", [("attribute", Meant("${attr.kernel.name}")), ("value", "linux")]),
        *_architecture(first.arch),
        Block("group", name, [*_group(programs), *(_task(program, programs, wishes) for program in programs)]),
    ])  # fmt: skip
    about = f"# Written by imagekit from an image file whose sha256 is\n# {first.sha256}\n"
    return {f"{name}.nomad.hcl": about + "".join(_block(job, ""))}


def quoted(text: str) -> str:
    """A string of HCL that says exactly this (HCL native syntax specification, "Template Expressions")."""
    if isinstance(text, Literal):
        text = text.replace("${", "$${").replace("%{", "%%{")  # for the second reading
    begins = "" if isinstance(text, Meant) else "$%"  # of a template, where `{` follows
    return '"' + "".join(_character(c, c in begins and text[at + 1 : at + 2] == "{") for at, c in enumerate(text)) + '"'


def _character(c: str, is_special: bool) -> str:
    if c in ESCAPES:
        return ESCAPES[c]
    return c if c.isprintable() and not is_special else f"\\U{ord(c):08x}"


def _block(block: Block, indent: str) -> Iterator[str]:
    yield f"{indent}{block.kind}{f' {quoted(block.label)}' if block.label else ''} {{\n"
    width = max((len(row[0]) for row in block.rows if not isinstance(row, Block)), default=0)
    for row in block.rows:
        if isinstance(row, Block):
            yield from _block(row, f"{indent}  ")
        else:
            yield f"{indent}  {row[0]:{width}} = {_value(row[1])}\n"
    yield f"{indent}}}\n"


def _value(value: Value) -> str:
    if isinstance(value, int):
        return str(value).lower()  # numbers, true and false
    return quoted(value) if isinstance(value, str) else f"[{', '.join(map(quoted, value))}]"


def _check(program: Program, wishes: Wishes) -> None:
    if wishes.listen or wishes.credentials:
        raise Problem("Nomad opens no sockets for a program and has no credentials for it",
                      "its ports come from the image; a template block writes files")  # fmt: skip
    if program.is_bundle and wishes.volumes:
        raise Problem("a bundle takes no volumes", "take the .tar.gz, which `imagekit run` starts")
    if not NAME.match(program.name):
        raise Problem(f"{program.name!r} is no name of a Nomad job", "give one with --name")
    words = [program.file, wishes.imagekit, *program.command, *program.env.values(), *map(str, wishes.volumes)]
    for text in words:
        if UNSAYABLE.search(text) or not is_normalized("NFC", text):
            hint = "its texts are UTF-8 in normal form C, without carriage returns"
            raise Problem(f"{program.name}: a Nomad job cannot say {text!r}", hint)
    if INTERPOLATED.search(program.file):
        raise Problem(f"Nomad would put a value into {program.file}", "name another place with --at")


def _architecture(name: str) -> Iterator[Block]:
    """Only machines that it is for; Nomad has Go's names."""
    if name != "any":
        value = GO.get(name, name)
        yield Block("constraint", "", [("attribute", Meant("${attr.cpu.arch}")), ("value", value)])


def _group(programs: Sequence[Program]) -> Iterator[Block]:
    ports = sorted({program.port for program in programs if program.port})
    if ports:
        yield Block("network", "", [Block("port", f"p{port}", [("static", port)]) for port in ports])
    yield Block("restart", "", ONCE if programs[0].restart == "never" else FOREVER)
    if programs[0].restart == "never":
        yield Block("reschedule", "", [("attempts", 0)])


def _task(program: Program, programs: Sequence[Program], wishes: Wishes) -> Block:
    rows: list[Row] = [
        ("driver", "exec" if wishes.unprivileged else "raw_exec"),
        ("kill_signal", "SIGTERM"),
        ("kill_timeout", f"{round(program.stop_timeout * 1000)}ms"),
    ]
    if any(program.name in other.after for other in programs):
        rows.append(Block("lifecycle", "", [("hook", "prestart"), ("sidecar", True)]))
    if program.is_fetched:
        options = [("archive", "false"), ("checksum", f"sha256:{program.sha256}")]
        rows.append(Block("artifact", "", [
            ("source", program.file), ("destination", f"local/{_file_name(program)}"), ("mode", "file"),
            Block("options", "", options),
        ]))  # fmt: skip
    if not (program.is_bundle or wishes.trust):
        rows.append(Block("template", "", [("data", wishes.key), ("destination", f"local/{KEY}")]))
    command, *args = _command(program, wishes)
    rows.append(Block("config", "", [("command", command), ("args", args)]))
    rows.append(Block("resources", "", _resources(wishes)))
    rows += [_service(program)] if program.port else []
    return Block("task", program.name, rows)


def _command(program: Program, wishes: Wishes) -> Iterator[str]:
    """The words of the task, each of which Nomad reads as a template."""
    place = Meant(f"{TASK_FOLDER}/{_file_name(program)}") if program.is_fetched else Literal(program.file)
    if program.is_bundle:
        yield place
        yield from map(Literal, ("--bundle-exec", *program.command) if program.command else ())
        return
    yield Literal(wishes.imagekit)
    yield from ("run", "--trust", Literal(wishes.trust) if wishes.trust else Meant(f"{TASK_FOLDER}/{KEY}"))
    for name, value in program.env.items():
        yield from ("-e", Literal(f"{name}={value}"))
    for volume in wishes.volumes:
        yield from ("-v", Literal(str(volume)))
    yield from ("--user", Literal(program.user)) if program.user else ()
    if not wishes.unprivileged:  # Nomad limits what driver "exec" starts, and not what "raw_exec" does
        limits = {"--memory": wishes.memory, "--cpus": wishes.cpus, "--pids": wishes.pids}
        for option, limit in limits.items():
            yield from (option, str(limit)) if limit else ()
    yield place
    yield from map(Literal, ("--", *program.command) if program.command else ())


def _file_name(program: Program) -> str:
    """What the fetched file is called in the task's folder."""
    name = program.file.partition("?")[0].rpartition("/")[2]
    return name if NAME.match(name) and name not in (".", "..", KEY) else "image"


def _resources(wishes: Wishes) -> list[Row]:
    rows: list[Row] = []
    if wishes.memory:
        rows.append(("memory", -(-wishes.memory // MIB)))
    if wishes.cpus:
        rows.append(("cores", -int(-wishes.cpus // 1)))
    return rows


def _service(program: Program) -> Block:
    """Nomad's own record of where it answers, and the image's condition as its health."""
    kind, path = ("http", program.ready.partition("/")[1:]) if program.ready.startswith("http:") else ("tcp", ())
    asked = [("path", "".join(path) or "/")] if path else []
    check = Block("check", "", [("type", kind), *asked, ("interval", "10s"), ("timeout", "2s")])
    name = re.sub(r"[^A-Za-z0-9]+", "-", program.name).strip("-")[:63].rstrip("-")
    return Block("service", "", [("name", name), ("provider", "nomad"), ("port", f"p{program.port}"), check])


UNIT = Unit(write)
