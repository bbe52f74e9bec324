"""What is put into images: the shipped programs are what their sources make, and both ends speak the same."""

import os
import re
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from imagekit import channel, early
from imagekit.arch import ARCHES

INSIDE = Path(early.__file__).with_name("inside")
SOURCES = sorted(path for folder in ("", "sealed/", "slots/") for path in INSIDE.glob(f"{folder}*.[ch]"))
PROGRAMS = [f"{name}.{arch}" for name in ("agent", "attest", "boot", "sealed") for arch in ARCHES]
APART = [f"slots.{arch}" for arch in ARCHES]  # inside/slots/build.sh makes them: test_slots_build.py


def test_nothing_is_shipped_that_no_source_makes() -> None:
    assert sorted(path.name for path in (INSIDE / "bin").iterdir()) == sorted(PROGRAMS + APART)


def test_the_programs_are_what_the_sources_make(tmp_path: Path) -> None:
    if find_spec("ziglang") is None and not os.environ.get("CI"):
        pytest.skip("the compiler is not installed: pip install 'imagekit[dev]'")
    environment = {**os.environ, "PYTHON": sys.executable}
    if not os.access(Path.home(), os.W_OK):  # the compiler keeps its C library, once built
        environment["ZIG_GLOBAL_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run(
        ["sh", str(INSIDE / "build.sh"), str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    different = [n for n in PROGRAMS if (tmp_path / n).read_bytes() != (INSIDE / "bin" / n).read_bytes()]
    assert not different, f"{different} are not what the sources make: run imagekit/inside/build.sh and commit"


@pytest.mark.parametrize("program", PROGRAMS + APART)
def test_a_program_is_static_small_and_of_its_architecture(program: str) -> None:
    data = (INSIDE / "bin" / program).read_bytes()
    machine = struct.unpack_from("<H", data, 18)[0]  # ELF header: e_machine
    table, size, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    kinds = {struct.unpack_from("<I", data, table + number * size)[0] for number in range(count)}
    assert machine == ARCHES[program.partition(".")[2]].elf
    assert not kinds & {2, 3}  # PT_DYNAMIC, PT_INTERP
    assert len(data) < 128 << 10
    assert not re.search(rb"(?<!/proc/1)/(home|root|tmp|usr/src)/", data)


def enumerators(source: str) -> dict[str, int]:
    """The names and values of every enum in C."""
    found: dict[str, int] = {}
    for body in re.findall(r"enum(?: \w+)? \{([^}]*)\}", source):
        value = -1
        for item in re.sub(r"/\*.*?\*/", "", body).split(","):
            name, _, given = (part.strip() for part in item.partition("="))
            if re.fullmatch(r"[0-9]+|", given) and name:
                value = int(given) if given else value + 1
                found[name] = value
    return found


def test_both_ends_of_the_channel_have_the_same_numbers() -> None:
    theirs = enumerators((INSIDE / "agent.h").read_text())
    assert {kind.name: kind.value for kind in channel.Kind} == {k: theirs[k] for k in channel.Kind.__members__}
    for name in ("MAX_PAYLOAD", "MAX_PIECE", "MAX_REQUEST", "MAX_STREAMS"):
        assert theirs[name] == getattr(channel, name), name
    magic = re.search(r"MAGIC\[4\] = \{'(.)', '(.)', (\w+), (\w+)\}", (INSIDE / "wire.c").read_text())
    assert magic is not None
    assert bytes([ord(magic[1]), ord(magic[2]), int(magic[3], 0), int(magic[4], 0)]) == channel.MAGIC
    command = (INSIDE / "command.c").read_text()
    assert dict(re.findall(r'"(\w+)"\)\) \*env = "\1=([^"]+)"', command)) == channel.ENVIRONMENT
    assert f'FOLDER "{Path(channel.AGENT).parent.name}"' in (INSIDE / "agent.c").read_text()


def test_early_knows_what_boot_has_room_for() -> None:
    theirs = enumerators((INSIDE / "boot.h").read_text())
    for name in ("LONGEST", "MOST_WORDS", "LARGEST_SCRIPT", "MOST_SERVICES"):
        assert theirs[name] == getattr(early, name), name


def test_every_event_is_listed() -> None:
    listed = early.__doc__ or ""
    found = (words for path in SOURCES for words in re.findall(r'\bevent\("([^"]+)"', path.read_text()))
    written = {re.sub(r"^%s (new|unsealed|sealed|open)", r"DISK \1", words) for words in found}
    assert len(written) > 10
    for words in written - {"%s"}:
        first = words.replace("%s start", "start").replace("%s failed", "failed").replace("%s done", "done").split()
        assert first[0] in listed, words
        assert first[0] != "service" or re.search(rf"service [\w|]*{first[1]}", listed), words


def test_every_name_of_boot_is_known_to_it() -> None:
    known = set(re.findall(r'^    \{"(\w+)", \w+, \d\}', (INSIDE / "boot.c").read_text(), re.MULTILINE))
    assert {Path(path).name for path in early.NAMES} <= known
    assert {"step", "start", "end", "dhcp"} <= known


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_sources_are_short_and_say_what_they_are(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0].startswith("/* ")
    assert len(lines) < 400
    assert max(map(len, lines)) <= 120


def test_every_reason_for_which_a_disk_stays_shut_is_explained() -> None:
    told = (INSIDE.parent.parent / "docs/appliance.md").read_text()
    names = ("settings", "policy", "secret", "seal", "verity", "luks", "mapper", "tpm")
    texts = [(INSIDE / "sealed" / f"{name}.c").read_text() for name in names]
    reason = r'(?:return|wrong =|\?|:) (?:\w+ \? )?"([a-zA-Z][^"%\\]+)"'
    reasons = {words for text in texts for words in re.findall(reason, text)}
    assert len(reasons) > 20
    assert [words for words in reasons if f"`{words}" not in told] == []
