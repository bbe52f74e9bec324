"""README's table of formats is what images/ builds, checks and starts; run this file as a script to write it."""

import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest

from imagekit import plugs
from imagekit.arch import ARCHES, host
from imagekit.artifact import Job
from imagekit.checks import _oracles
from imagekit.layout import Layout
from imagekit.stores.directory import open_store

HOME = Path(__file__).parents[1]
README = HOME / "README.md"
BEGIN, END = "<!-- formats: python tests/test_readme_formats.py -->\n", "<!-- /formats -->\n"
NODE = re.compile(r"::(test_\w+)\[([^-\]]+)-([^-\]]+)(?:-([^-\]]+))?\]")
CHECKS = {"test_independent_programs_find_nothing", "test_rebuilds_identically"}  # every format, every architecture
STARTS = re.compile(r"test_answers|test_boots_as_shipped|test_serves_its_page_as_it_is_shipped")


@cache
def collected() -> dict[tuple[str, str], tuple[set[str], set[str]]]:
    """(architecture, format) -> the checks that a full run of images/ makes of it, and the machines that start it."""
    run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "images", "--full", "--collect-only", "-q"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(run, cwd=HOME, env=env, capture_output=True, text=True, check=True)
    found: dict[tuple[str, str], tuple[set[str], set[str]]] = {}
    for name, arch, format, target in NODE.findall(done.stdout):
        checks, starts = found.setdefault((arch, format), (set(), set()))
        if name in CHECKS:
            checks.add(name)
        elif target and STARTS.match(name):
            starts.add(label(target))
    return found


def checks_of(format: str) -> set[str]:
    """What a full run must make of a format: nobody but an image in two slots reads an update."""
    return CHECKS - (
        {"test_independent_programs_find_nothing"} if plugs.load("formats", format).kind == "update" else set()
    )


def label(target: str) -> str:
    """What starts an image there: its firmware, "direct" for a kernel that QEMU starts itself, "namespace"."""
    plug = plugs.load("targets", target)
    return (plug.firmware or "direct") if plug.boots else "namespace"


def oracles(format: str, folder: Path) -> tuple[str, ...]:
    """The programs that are asked about a format, by asking them about a small one."""
    from test_formats import fitting, tools

    if plugs.load("formats", format).kind == "update":
        return ("the machine that it is for",)
    asked: list[str] = []
    patch = pytest.MonkeyPatch()
    ask, own = _oracles.Bench.ask, _oracles._own
    patch.setattr(_oracles.Bench, "ask", lambda bench, tool, *words: (asked.append(tool), ask(bench, tool, *words))[1])
    patch.setattr(_oracles, "_own", lambda bench, tool, *words: (asked.append(tool), own(bench, tool, *words))[1])
    try:
        plug, store = plugs.load("formats", format), open_store(folder / "cache")
        job = Job("toy", "1", plug.arches[0], store, Layout(root="squashfs"), tools=tools)
        for role, part in plug.write(fitting(plug), job=job).items():
            path = folder / f"toy{plug.suffixes[role]}"
            path.write_bytes(store.read(part.sha256))
            _oracles._look(path, _oracles.Bench(folder, []))
    finally:
        patch.undo()
    return tuple(dict.fromkeys(asked))


def cell(arch: str, format: str, found: dict[tuple[str, str], tuple[set[str], set[str]]]) -> str:
    """What starts a format on an architecture."""
    plug = plugs.load("formats", format)
    if arch not in plug.arches:
        return ""
    if plug.kind == "update":
        return "`imagekit update`"
    starts = set(found.get((arch, format), (set(), set()))[1])
    if plug.kind == "root" and found.get((host().name, format), (set(), set()))[1]:
        starts.add("namespace")  # of a machine of that architecture
    return ", ".join(sorted(starts)) or "not yet"


def table() -> str:
    """The section of README, from BEGIN to END."""
    found = collected()
    rows = ["| format | | " + " | ".join(ARCHES) + " | read by |", "|---|---|" + "---|" * (len(ARCHES) + 1)]
    for format in sorted(plugs.own("formats")):
        with tempfile.TemporaryDirectory() as folder:
            readers = ", ".join(oracles(format, Path(folder))) or "the machine that it starts"
        what = plugs.summary("formats", format).rstrip(".")
        cells = [cell(arch, format, found) for arch in ARCHES]
        rows.append(f"| `{format}` | {what} | {' | '.join(cells)} | {readers} |")
    return f"{BEGIN}\n" + "\n".join(rows) + f"\n\n{END}"


def section() -> str:
    """What README has now."""
    text = README.read_text()
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def test_the_table_is_what_a_full_run_of_images_does():
    assert section() == table(), "python tests/test_readme_formats.py"


def test_every_format_is_built_twice_read_by_others_and_started_on_every_architecture_that_it_exists_for():
    found = collected()
    for format in plugs.own("formats"):
        for arch in plugs.load("formats", format).arches:
            checks, _ = found.get((arch, format), (set(), set()))
            assert checks == checks_of(format), f"images/ lacks {format} for {arch}, or a test of it"
            assert cell(arch, format, found) != "not yet", f"nothing in images/ starts {format} on {arch}"


if __name__ == "__main__":
    README.write_text(README.read_text().replace(section(), table()))
