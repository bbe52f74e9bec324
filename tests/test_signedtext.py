"""The manifest of a signed image: one text has one meaning, and all others are refused."""

import random

import pytest

from imagekit.disk import signedtext
from imagekit.errors import Problem

DIGEST = "sha256:" + "0123456789abcdef" * 4
RIGHT = f"""imagekit image 1
payload: tar.gz
name: web
version: 1.2
architecture: x86_64
argument: /bin/sh
argument: -c
argument:\x20
argument: echo "$HOME" Zürich
environment: A=b c=d
environment: B=
environment: _x1=1
user: 33:4294967294
workdir: /srv
compressor: zlib 1.2.13 level 6
content: {DIGEST}
size: 2560
body: 120
chunks: 1
table: {DIGEST}
"""
WRONG = {  # values that a line cannot have
    "payload": ["", "tar", "TAR.GZ", "tar.gz ", " tar.gz", "zip"],
    "name": ["", ".web", "-web", "a/b", "a b", "wéb", "a" * 101, "a\0b", "a\tb", ".."],
    "version": ["", "~1", "1/2", "1 2", "1" * 101],
    "architecture": ["", "X86", "x86-64", "86", "_x", "a" * 33],
    "argument": ["sh", "", "/bin/sh\r", "/bin/\x1b[2Jsh", "/\x7f", "/\0", "/" + "a" * 4096],
    "environment": ["", "A", "=b", "1A=b", "A-B=b", "é=b", "B=twice", "Z=later", "A=\x7f", "A=\x1f", " A=b", "A =b"],
    "user": ["", "33", "www:www", "033:33", "33:033", "1:2:3", "-1:0", "4294967295:0", "33: 33", "+3:3", "0x1:0", ":"],
    "workdir": ["", "srv", "./srv", "/a/../b", "/..", "/a\tb"],
    "compressor": ["", "zlib\t6", "zlïb", "a" * 101],
    "content": ["", DIGEST[7:], DIGEST + "0", DIGEST[:-1], DIGEST.upper(), DIGEST.replace("256:", "256: "), "sha512:"],
    "size": ["", "-1", "+1", "01", "1.0", "1e3", "0x10", "1_0", " 1", "1 ", "1" * 16, "\u0661", "00"],
    "body": ["", "0120", "120 "],
    "chunks": ["", "01", "one"],
    "table": ["", DIGEST[7:], "md5:0"],
}


def line(word: str) -> str:
    return next(line for line in RIGHT.splitlines(keepends=True) if line.startswith(f"{word}: "))


def test_what_it_says():
    said = signedtext.read(RIGHT.encode())
    assert (said.payload, said.name, said.version, said.architecture) == ("tar.gz", "web", "1.2", "x86_64")
    assert said.arguments == (b"/bin/sh", b"-c", b"", 'echo "$HOME" Zürich'.encode())
    assert said.environment == (b"A=b c=d", b"B=", b"_x1=1")
    assert (said.uid, said.gid, said.workdir) == (33, 2**32 - 2, b"/srv")
    assert (said.content, said.table, said.compressor) == (DIGEST[7:], DIGEST[7:], "zlib 1.2.13 level 6")
    assert (said.size, said.body, said.chunks) == (2560, 120, 1)


def test_an_image_may_name_no_program_and_no_variable():
    few = "".join(one for one in RIGHT.splitlines(keepends=True) if not one.startswith(("argument", "environment")))
    said = signedtext.read(few.encode())
    assert (said.arguments, said.environment) == ((), ())


def test_arguments_and_variables_need_not_be_utf8():
    text = RIGHT.encode().replace(b"argument: -c", b"argument: \xff\x80").replace(b"A=b c=d", b"A=\xff")
    said = signedtext.read(text)
    assert (said.arguments[1], said.environment[0]) == (b"\xff\x80", b"A=\xff")


@pytest.mark.parametrize(("word", "value"), [(word, value) for word, values in WRONG.items() for value in values])
def test_a_value_that_cannot_be_is_refused(word, value):
    with pytest.raises(Problem):
        signedtext.read(RIGHT.replace(line(word), f"{word}: {value}\n", 1).encode())


@pytest.mark.parametrize("word", [word for word in WRONG if word not in signedtext.REPEATED])
def test_every_line_is_there_once(word):
    for wrong in ("", line(word) * 2):
        with pytest.raises(Problem, match=f"lines that say {word}"):
            signedtext.read(RIGHT.replace(line(word), wrong).encode())


@pytest.mark.parametrize("number", range(len(RIGHT.splitlines())))
def test_lines_are_in_order_and_whole(number):
    lines = RIGHT.splitlines(keepends=True)
    one = lines[number]
    others = [lines[:number] + lines[number + 1 :]] * 2
    rows = [
        *("".join([*lines[:number], wrong, *lines[number + 1 :]]) for wrong in (
            one.replace(": ", ":", 1), one.replace(": ", " : ", 1), one.replace(": ", ":\t", 1), one.capitalize(),
            one[:-1] + "\r\n", "\n" + one, one + "\n", " " + one, "more: x\n" + one, "# x\n" + one, "\ufeff" + one,
        ) if wrong != one),
        "".join([one, *others[0]]) if number else "".join([*others[0], one]),
    ]  # fmt: skip
    for wrong in rows:
        with pytest.raises(Problem):
            signedtext.read(wrong.encode())


@pytest.mark.parametrize("end", ["\n", " \n", "x", "\0", "\r\n", "more: x\n"])
def test_nothing_follows_the_last_line(end):
    for wrong in (RIGHT + end, RIGHT[:-1], RIGHT[:-1] + end, "", "\n"):
        if wrong != RIGHT:
            with pytest.raises(Problem):
                signedtext.read(wrong.encode())


def test_what_is_written_is_what_is_read():
    values: dict[str, list[bytes]] = {}
    for one in RIGHT.encode().splitlines()[1:]:
        word, _, value = one.partition(b": ")
        values.setdefault(word.decode(), []).append(value)
    assert signedtext.text(values) == RIGHT.encode()
    with pytest.raises(Problem, match="longer than 4096 bytes"):
        signedtext.text({**values, "argument": [b"/" + b"a" * 4090]})
    with pytest.raises(Problem, match="its environment cannot be"):
        signedtext.text({**values, "environment": [b"B=1", b"A=2"]})


def values_of(said: signedtext.Said) -> dict[str, list[bytes]]:
    """What was read, as it is written."""
    text = ("payload", "name", "version", "architecture", "compressor", "size", "body", "chunks")
    return {
        **{name: [str(getattr(said, name)).encode()] for name in text},
        "argument": [*said.arguments], "environment": [*said.environment], "workdir": [said.workdir],
        "user": [b"%d:%d" % (said.uid, said.gid)],
        "content": [b"sha256:" + said.content.encode()], "table": [b"sha256:" + said.table.encode()],
    }  # fmt: skip


def test_of_every_text_that_is_read_there_is_no_other_form():
    """Whatever is changed in a manifest: it is refused, or writing what was read gives the same bytes."""
    dice, taken = random.Random(2), 0
    pieces = [
        b"\n",
        b": ",
        b"0",
        b"9" * 15,
        b"-",
        b"\0",
        b"\xff",
        b"/../",
        b" ",
        b"environment: A=1\n",
        b"argument: /x\n",
    ]
    for _ in range(3000):
        text = bytearray(RIGHT.encode())
        for _ in range(dice.randrange(1, 3)):
            at = dice.randrange(len(text))
            text[at : at + dice.randrange(3)] = dice.choice([dice.choice(pieces), dice.randbytes(1), b""])
        try:
            said = signedtext.read(bytes(text))
        except Problem:
            continue
        assert signedtext.text(values_of(said)) == bytes(text)
        taken += 1
    assert 100 < taken < 2000
