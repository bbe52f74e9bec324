"""Wheels that lie: archives that readers would see in two ways, records that do not fit, commands that are none."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from wheel_index import packed, record, wheel

from imagekit.errors import Problem
from imagekit.sources import _python, _wheel, _zip
from imagekit.stores.directory import open_store

PYTHON = _python.of("3.11", "x86_64", "bookworm")
INFO = "lib-1.0.dist-info"


def points(text: str) -> dict[str, str]:
    return {f"{INFO}/entry_points.txt": text}


def without(path: str) -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.pop(path)  # type: ignore[return-value]


def with_file(path: str, data: bytes = b"x") -> Callable[[dict[str, bytes]], None]:
    return lambda files: files.update({path: data})


def row(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        assert old in files[f"{INFO}/RECORD"]
        files[f"{INFO}/RECORD"] = files[f"{INFO}/RECORD"].replace(old, new)

    return change


EMPTY = b"a.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0"
MAIN = "[console_scripts]\na = lib:x\n"
WHEELS = {  # the bytes, and what is said of them
    "one more file": (wheel("lib", change=with_file("more.py")), "RECORD does not list 'more.py'"),
    "one less": (wheel("lib", change=without("lib/__init__.py")), "RECORD lists 'lib/__init__.py', which it lacks"),
    "another file": (wheel("lib", change=with_file("lib/__init__.py")), "'lib/__init__.py'"),
    "a weak hash": (wheel("lib", change=row(b"sha256=", b"md5=")), "no hash that counts"),
    "no hash": (wheel("lib", files={"a.py": ""}, change=row(EMPTY, b"a.py,,")), "a.py"),
    "listed twice": (wheel("lib", change=row(b"lib/__init__.py,", b"lib/__init__.py,,\nlib/__init__.py,")), "twice"),
    "no record": (wheel("lib", change=without(f"{INFO}/RECORD")), "has no .*RECORD"),
    "no metadata": (wheel("lib", change=without(f"{INFO}/METADATA")), "has no .*METADATA"),
    "of another project": (wheel("lib", more={f"{INFO}/METADATA": "Name: other\nVersion: 1.0\n"}), "is of other 1.0"),
    "of another version": (wheel("lib", more={f"{INFO}/METADATA": "Name: lib\nVersion: 2\n"}), "is of lib 2"),
    "two names": (wheel("lib", more={f"{INFO}/METADATA": "Name: lib\nName: b\nVersion: 1.0\n"}), "2 fields Name"),
    "no text": (wheel("lib", more={f"{INFO}/METADATA": b"\xff\xfe"}), "malformed"),
    "a later format": (wheel("lib", more={f"{INFO}/WHEEL": "Wheel-Version: 2.0\nTag: py3-none-any\n"}), "format '2.0'"),
    "other tags": (wheel("lib", more={f"{INFO}/WHEEL": "Wheel-Version: 1.0\nTag: py2-none-any\n"}), "its name has not"),
    "two infos": (wheel("lib", files={"b-1.0.dist-info/METADATA": "x", "lib.py": ""}), "2 folders"),
    "unknown data": (wheel("lib", files={"lib-1.0.data/etc/passwd": "x"}), "lies in no folder of a wheel"),
    "another's data": (wheel("lib", files={"other-1.0.data/data/x": "x"}), "lies in no folder of a wheel"),
    "a command that is a path": (wheel("lib", more=points("[console_scripts]\n../sh = lib:main\n")), "is no command"),
    "a command that is code": (wheel("lib", more=points("[console_scripts]\na = lib:a;b\n")), "is no command"),
    "a command without a function": (wheel("lib", more=points("[console_scripts]\na = lib\n")), "is no command"),
    "a broken list of commands": (wheel("lib", more=points("[console_scripts\n")), "entry_points.txt is malformed"),
    "a command twice": (
        wheel("lib", more=points("[console_scripts]\na = lib:x\n[gui_scripts]\na = lib:y\n")), "'a' twice",
    ),
    "a script that is a command": (
        wheel("lib", files={"lib-1.0.data/scripts/a": "#!python\n"}, more=points(MAIN)), "twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "told"), WHEELS.values(), ids=WHEELS)
def test_a_wheel_that_is_not_what_it_says_is_refused(data: bytes, told: str, tmp_path: Path) -> None:
    store = open_store(tmp_path)
    digest = store.write([data])
    with pytest.raises(Problem, match=told):
        _wheel.convert(data, "lib-1.0-py3-none-any.whl", PYTHON, digest=digest, store=store)
    assert [path.name for path in tmp_path.rglob("objects/*/*")] == [digest]
    assert not list(tmp_path.rglob("drafts/*"))


NAMES = {
    "lib-1.0-cp312-cp312-manylinux_2_17_x86_64.whl": "is for cp312-cp312",
    "lib-1.0-cp311-cp311-manylinux_2_17_aarch64.whl": "aarch64",
    "lib-1.0-cp311-cp311-manylinux_2_39_x86_64.whl": "over glibc 2.36",
    "lib-1.0-cp311-cp311-musllinux_1_2_x86_64.whl": "musllinux",
    "lib-1.0-cp311-cp311-win_amd64.whl": "win_amd64",
    "lib-1.0.whl": "no name of a wheel",
    "../lib-1.0-py3-none-any.whl": "no name of a wheel",
    "lib-x.y-py3-none-any.whl": "no name of a wheel",
}


@pytest.mark.parametrize(("name", "told"), NAMES.items(), ids=NAMES)
def test_a_wheel_for_others_is_refused(name: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=told):
        _wheel.convert(wheel("lib"), name, PYTHON, digest="0" * 64, store=open_store(tmp_path))


PLAIN = packed({"a/b.py": b"b" * 100, "c.sh": b"c"})
CENTRAL = PLAIN.index(b"PK\1\2")
END = len(PLAIN) - 22


def at(offset: int, form: str, value: object, data: bytes = PLAIN) -> bytes:
    packed_value = struct.pack(form, value)
    return data[:offset] + packed_value + data[offset + len(packed_value) :]


def named(name: bytes, size: int = 6) -> bytes:
    """The first member under another name of the same length, in both headers."""
    assert len(name) == size
    return PLAIN.replace(b"a/b.py", name)


ARCHIVES = {
    "nothing": (b"", "no zip archive"),
    "cut short": (PLAIN[:-1], "cut short"),
    "cut in the middle": (PLAIN[: len(PLAIN) // 2], "no zip archive"),
    "something behind it": (PLAIN + b"\0", "something follows its end"),
    "something before it": (b"MZ" + PLAIN, "does not lie where its end record says"),
    "a comment": (at(END + 20, "<H", 3) + b"abc", "no zip archive, is cut short|comment"),
    "another disk": (at(END + 4, "<H", 1), "other disks"),
    "more entries than said": (at(END + 8, "<HH"[:2], 1), "other disks|more entries"),
    "a huge count": (at(END + 10, "<H", 0xFFFF, at(END + 8, "<H", 0xFFFF)), "more than"),
    "upward": (named(b"../b.p"), "no plain relative path"),
    "absolute": (named(b"/b.pyy"), "no plain relative path"),
    "a backslash": (named(b"a\\b.py"), "no plain relative path"),
    "a drive and a line end": (named(b"a:\nbpy"), "no plain relative path"),
    "a null": (named(b"a\0b.py"), "no plain relative path"),
    "dots": (named(b"a/./py"), "no plain relative path"),
    "not ASCII": (named(b"a/\xffb.p"), "no known encoding"),
    "two of one name": (packed({"a": b"1", "b": b"2"}).replace(b"b", b"a"), "'a' twice"),
    "below a file": (packed({"a": b"1", "abc": b"2"}).replace(b"abc", b"a/c"), "lies below the file 'a'"),
    "encrypted": (at(6, "<H", 1, at(CENTRAL + 8, "<H", 1)), "encrypted"),
    "another method": (at(8, "<H", 12, at(CENTRAL + 10, "<H", 12)), "method 12"),
    "a symlink": (at(CENTRAL + 38, "<L", 0o120777 << 16), "neither file nor folder"),
    "a device": (at(CENTRAL + 38, "<L", 0o020666 << 16), "neither file nor folder"),
    "another name inside": (PLAIN.replace(b"a/b.py", b"a/c.py", 1), "another one in the directory"),
    "another method inside": (at(8, "<H", 0), "another one in the directory"),
    "another size inside": (at(22, "<L", 99), "another size or sum"),
    "larger than it is": (at(22, "<L", 99, at(CENTRAL + 24, "<L", 99)), "unpacks to more than the 99"),
    "smaller than it is": (at(22, "<L", 101, at(CENTRAL + 24, "<L", 101)), "not what its header says"),
    "another sum": (at(14, "<L", 1, at(CENTRAL + 16, "<L", 1)), "not what its header says"),
    "a size in 64 bits that is nowhere": (at(CENTRAL + 24, "<L", 0xFFFFFFFF), "size twice, or nowhere"),
    "a bomb": (at(22, "<L", 1 << 30, at(CENTRAL + 24, "<L", 1 << 30)), "would unpack to"),
    "overlapping": (at(CENTRAL + 42, "<L", 1), "does not begin where"),
}


@pytest.mark.parametrize(("data", "told"), ARCHIVES.values(), ids=ARCHIVES)
def test_an_archive_of_two_meanings_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(Problem, match=told):
        contents(data)


def contents(data: bytes) -> dict[str, bytes]:
    return {member.name: _zip.read(data, member) for member in _zip.members(data)}


def test_an_archive_that_is_changed_anywhere_is_refused_or_the_same() -> None:
    """A bit of every byte: whatever is read then has the same names and bytes, or there is one message."""
    expected = contents(PLAIN)
    refused = 0
    for place in range(len(PLAIN)):
        for bit in (0, 3, 7):
            data = PLAIN[:place] + bytes([PLAIN[place] ^ 1 << bit]) + PLAIN[place + 1 :]
            try:
                found = contents(data)
            except Problem:
                refused += 1
            else:
                assert found == expected, place
    assert refused > len(PLAIN)


def test_a_good_wheel_is_laid_out_with_its_commands_and_data(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    files = {
        "lib/__init__.py": "def main(): ...\n",
        "lib/tool.sh": "#!/bin/sh\n",
        "lib-1.0.data/scripts/old": b"#!pythonw -x\nprint()\n",
        "lib-1.0.data/data/share/lib/x.txt": "x",
        "lib-1.0.data/headers/lib.h": "h",
        "lib-1.0.data/purelib/pure.py": "p",
    }
    said = "License-Expression: MIT OR Apache-2.0\n"
    data = wheel("lib", files=files, extra=said, more=points("[console_scripts]\nlib = lib:main.run [x]\n"))
    made = _wheel.convert(data, "lib-1.0-py3-none-any.whl", PYTHON, digest=store.write([data]), store=store)
    library = "/usr/local/lib/python3.11/dist-packages"
    shown = {path: oct(entry.mode)[-3:] for path, entry in made.tree.items() if entry.kind == "file"}
    assert shown == {
        "/usr/local/bin/lib": "755",
        "/usr/local/bin/old": "755",
        "/usr/local/include/python3.11/lib/lib.h": "644",
        f"{library}/lib-1.0.dist-info/METADATA": "644",
        f"{library}/lib-1.0.dist-info/INSTALLER": "644",
        f"{library}/lib-1.0.dist-info/RECORD": "644",
        f"{library}/lib-1.0.dist-info/WHEEL": "644",
        f"{library}/lib-1.0.dist-info/entry_points.txt": "644",
        f"{library}/lib/__init__.py": "644",
        f"{library}/lib/tool.sh": "755",
        f"{library}/pure.py": "644",
        "/usr/local/share/lib/x.txt": "644",
    }
    assert made.tree.read("/usr/local/bin/old").startswith(b"#!/usr/bin/python3.11\n")
    assert b"from lib import main\n" in made.tree.read("/usr/local/bin/lib")
    assert b"sys.exit(main.run())" in made.tree.read("/usr/local/bin/lib")
    assert (made.licence, made.origin.source) == ("MIT OR Apache-2.0", "lib")
    written = made.tree.read(f"{library}/lib-1.0.dist-info/RECORD")
    assert b"../../../bin/lib,sha256=" in written
    assert record({"x": b""}, INFO).splitlines()[-1] in written
