"""A lock is read as it was written, or refused in words that say why."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from imagekit import lock
from imagekit.errors import Problem
from imagekit.lock import Lock
from imagekit.package import Archive, Pin

PIN = Pin("package", "debian", "nginx", "1.22.1-9", "amd64", 527360, "ab" * 32, "debian", "pool/main/n/nginx.deb")
LOCK = Lock(
    request="12" * 32,
    archives=(Archive("debian", "bookworm", "cd" * 32, "2026-01-01T00:00:00Z", "F" * 40),),
    pins={
        "x86_64": (PIN, PIN._replace(name="zlib1g", path="pool/main/z/zlib1g.deb")),
        "aarch64": (PIN._replace(architecture="arm64"),),
    },
)


def sealed(body: str) -> str:
    return f"{body}digest {sha256(body.encode()).hexdigest()}\n"


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "web.lock"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert lock.read(written(tmp_path, LOCK.text())) == LOCK


def test_order_leaves_no_trace() -> None:
    turned = replace(LOCK, pins={name: LOCK.pins[name][::-1] for name in reversed(LOCK.pins)})
    assert turned.text() == LOCK.text()
    assert turned.digest == LOCK.digest


def test_every_field_of_a_pin_counts() -> None:
    texts = {LOCK.text()}
    for number, field in enumerate(Pin._fields):
        value = PIN[number]
        changed = PIN._replace(**{field: value + 1 if isinstance(value, int) else value[:-1] + "x"})
        texts.add(replace(LOCK, pins={**LOCK.pins, "x86_64": (changed,)}).text())
    assert len(texts) == 1 + len(Pin._fields)


def test_a_lock_for_people_has_one_package_a_line() -> None:
    lines = LOCK.text().splitlines()
    assert lines[0].startswith("# Written by `imagekit lock`")
    assert "[aarch64]" in lines
    assert f"package debian nginx 1.22.1-9 amd64 527360 {'ab' * 32} debian pool/main/n/nginx.deb" in lines
    assert max(map(len, lines)) < 200


def test_it_lies_beside_its_definition() -> None:
    assert lock.beside(Path("images/web.py")) == Path("images/web.lock")


TEXT = LOCK.text()
BODY = TEXT.rpartition("digest ")[0]
EDITED = "was edited or cut"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TEXT.replace("1.22.1-9", "1.22.1-8"), EDITED),
        (TEXT[:-10], EDITED),
        (TEXT[: len(TEXT) // 2], EDITED),
        (TEXT + "package debian more 1 amd64 1 x debian y\n", EDITED),
        (BODY, EDITED),
        ("", EDITED),
        ("\n\n\n", EDITED),
        (b"\xff\xfe" + TEXT.encode(), "cannot read"),
        (sealed("\n"), "not a lock that this imagekit reads"),
        (sealed(BODY.replace("imagekit-lock 1", "imagekit-lock 2")), "it says 'imagekit-lock 2'"),
        (sealed(BODY.replace("request ", "request")), "not a lock that"),
        (sealed(BODY.replace(" amd64 527360", " amd64 many")), "nginx: many is no size"),
        (sealed(BODY.replace(" amd64 527360", " amd64 -1")), "nginx: -1 is no size"),
        (sealed(BODY.replace("ab" * 32, "ab" * 31)), "is not a sha256"),
        (sealed(BODY.replace("ab" * 32, "AB" * 32)), "is not a sha256"),
        (sealed(BODY.replace("pool/main/n", "/pool/main/n")), "is not a path below a mirror"),
        (sealed(BODY.replace("pool/main/n", "pool/../../n")), "is not a path below a mirror"),
        (sealed(BODY.replace("pool/main/n", "https://elsewhere")), "is not a path below a mirror"),
        (sealed(BODY.replace("[aarch64]\n", "")), "before any architecture"),
        (sealed(BODY.replace(" amd64 527360", "  amd64 527360")), "not a lock that"),
        (sealed(BODY.replace("archive debian bookworm", "archive debian")), "not a lock that"),
        (sealed(BODY.replace("[x86_64]", "[aarch64]")), "aarch64 is given twice"),
    ],
)
def test_what_is_no_lock_is_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(Problem, match=words) as caught:
        lock.read(written(tmp_path, text))
    assert "web.lock" in caught.value.message
    assert "imagekit lock" in caught.value.hint
    assert "web.py" in caught.value.hint


def test_a_missing_lock_says_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"web\.lock is missing: .*\n  hint: write it with `imagekit lock .*web\.py`"):
        lock.read(tmp_path / "web.lock")


def test_a_folder_is_no_lock(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="cannot read"):
        lock.read(tmp_path)
