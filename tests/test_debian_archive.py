"""Signed metadata: believed only when it is signed, fresh, whole and of the suite that was asked for."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pysequoia
import pytest
from debian_archive import clear_signed, key, rfc822

from imagekit import mirror
from imagekit.errors import RigProblem
from imagekit.sources import _archive
from imagekit.store import Store
from imagekit.stores.directory import open_store

NOW = datetime.now(UTC).replace(microsecond=0)
DIGEST = "ab" * 32
TEXT = f"""\
Suite: oldstable
Codename: bookworm
Date: {rfc822(NOW - timedelta(hours=1))}
Acquire-By-Hash: yes
MD5Sum:
 d41d8cd98f00b204e9800998ecf8427e 0 main/binary-amd64/Packages
SHA256:
 {DIGEST}   123 main/binary-amd64/Packages.xz
Description: - with a dash
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    path = tmp_path / "ring.gpg"
    path.write_bytes(bytes(key().extract_certificate()))
    return path


def read(data: bytes, store: Store, keyring: Path, *, suite: str = "bookworm", now: datetime = NOW) -> _archive.Release:
    return _archive.read_release(data, archive="debian", suite=suite, keyring=keyring, store=store, now=now)


def test_a_signed_release_is_read(store: Store, keyring: Path) -> None:
    release = read(clear_signed(TEXT), store, keyring)
    assert release.files == {"main/binary-amd64/Packages.xz": (DIGEST, 123)}
    assert release.has_by_hash
    assert release.archive.signed_by == key().extract_certificate().fingerprint
    assert release.archive.date == f"{NOW - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    assert not any(" " in field for field in release.archive)  # a lock is lines of words
    assert read(clear_signed(TEXT), store, keyring, suite="oldstable").archive.suite == "oldstable"


def unsigned(data: bytes) -> bytes:
    return data[: data.index(b"-----BEGIN PGP SIGNATURE")]


def signature(text: str) -> bytes:
    data = clear_signed(text)
    return data[len(unsigned(data)) :]


def flip(word: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(word, bytes([word[0] ^ 1]) + word[1:], 1)


FRAMES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "text before": (lambda data: b"Suite: evil\n" + data, "not one signed message"),
    "text after": (lambda data: data + b"Suite: evil\n", "not one signed message"),
    "blank line after": (lambda data: data + b"\n", "not one signed message"),
    "two messages": (lambda data: data + data, "not one signed message"),
    "no signature": (unsigned, "not one signed message"),
    "only the text": (lambda _: TEXT.encode(), "not one signed message"),
    "empty": (lambda _: b"", "not one signed message"),
    "garbage": (lambda _: bytes(range(256)), "not one signed message"),
    "cut": (lambda data: data[:-60], "not one signed message"),
    "cut in the text": (lambda data: data[:200], "not one signed message"),
    "an unsigned header": (lambda data: data.replace(b"\n", b"\nSuite: evil\n", 1), "headers that are not signed"),
    "a field as a header": (lambda data: data.replace(b"\n\n", b"\nCodename: evil\n\n", 1), "headers that are not"),
    "one letter changed": (flip(b"bookworm"), "not signed by a key"),
    "one digit changed": (lambda data: data.replace(b"   123 main", b"   124 main"), "not signed by a key"),
    "a line added": (lambda data: data.replace(b"SHA256:\n", b"SHA256:\n x\n"), "not signed by a key"),
    "the signature of another text": (lambda data: unsigned(data) + signature("x\n"), "not signed by a key"),
    "the signature damaged": (lambda data: data[:-120] + bytes([data[-120] ^ 1]) + data[-119:], "not signed by a key"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), FRAMES.values(), ids=FRAMES)
def test_what_is_not_signed_as_a_whole_is_refused(
    store: Store, keyring: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    with pytest.raises(RigProblem, match=words) as caught:
        read(change(clear_signed(TEXT)), store, keyring)
    assert "suite bookworm" in caught.value.message
    assert "Stack backtrace" not in str(caught.value)
    assert store.recall(_archive.SEEN, "debian-bookworm") is None


def other_key(keyring: Path) -> bytes:
    keyring.write_bytes(bytes(key("another <other@example.org>").extract_certificate()))
    return clear_signed(TEXT)


def revoked(keyring: Path) -> bytes:
    mine = pysequoia.Tsk.generate("revoked <r@example.org>")
    signed = clear_signed(TEXT, mine)
    cert = mine.extract_certificate()
    revocation = pysequoia.Cert.from_bytes(bytes(cert) + bytes(cert.revoke(mine.certifier())))
    keyring.write_bytes(bytes(revocation))
    return signed


def empty_ring(keyring: Path) -> bytes:
    keyring.write_bytes(b"")
    return clear_signed(TEXT)


def debians_ring(keyring: Path) -> bytes:
    keyring.write_bytes(mirror.SHIPPED.read_bytes())
    return clear_signed(TEXT)


@pytest.mark.parametrize("make", [other_key, revoked, empty_ring, debians_ring])
def test_another_key_is_refused(store: Store, keyring: Path, make: Callable[[Path], bytes]) -> None:
    data = make(keyring)
    with pytest.raises(RigProblem, match=r"not signed by a key|cannot read the key ring"):
        read(data, store, keyring)


def test_an_expired_key_is_refused(store: Store, keyring: Path) -> None:
    mine = pysequoia.Tsk.generate("short <s@example.org>", validity_seconds=3600)
    signed = clear_signed(TEXT, mine)
    keyring.write_bytes(bytes(mine.extract_certificate()))
    read(signed, store, keyring)
    with pytest.raises(RigProblem, match="not signed by a key"):
        read(signed, store, keyring, now=NOW + timedelta(hours=2))


TEXTS = {
    "another suite": (TEXT.replace("bookworm", "trixie"), r"serves the metadata of 'trixie' or 'oldstable'"),
    "a suite that begins alike": (TEXT.replace("bookworm", "bookworm-security"), "serves the metadata"),
    "no suite": (re.sub("(Suite|Codename): .*\n", "", TEXT), "serves the metadata of no suite"),
    "a field twice": (TEXT + "Codename: trixie\n", "the field 'Codename' twice"),
    "no date": (re.sub("Date: .*\n", "", TEXT), "has the Date None"),
    "a strange date": (re.sub("Date: .*", "Date: yesterday", TEXT), "has the Date 'yesterday'"),
    "tomorrow": (re.sub("Date: .*", f"Date: {rfc822(NOW + timedelta(days=2))}", TEXT), "in the future"),
    "no longer valid": (TEXT + f"Valid-Until: {rfc822(NOW - timedelta(minutes=1))}\n", "was valid until"),
    "a strange validity": (TEXT + "Valid-Until: for ever\n", "Valid-Until 'for ever'"),
    "a file twice": (
        TEXT.replace("Description", f" {'cd' * 32} 5 main/binary-amd64/Packages.xz\nDescription"),
        "twice",
    ),
    **{
        name: (TEXT.replace(f"{DIGEST}   123 main/binary-amd64/Packages.xz", line), "malformed line")
        for name, line in {
            "an empty digest": "   123 main/binary-amd64/Packages.xz",
            "a digest with a blank": f" {DIGEST[1:]} 123 main/x",
            "upper case": f"{DIGEST.upper()} 123 main/x",
            "63 digits": f"{DIGEST[1:]} 123 main/x",
            "65 digits": f"{DIGEST}a 123 main/x",
            "a negative size": f"{DIGEST} -1 main/x",
            "no size": f"{DIGEST} main/x",
            "a huge size": f"{DIGEST} {10**13} main/x",
            "a path outside": f"{DIGEST} 1 main/../../x",
            "an absolute path": f"{DIGEST} 1 /etc/passwd",
            "a tab": f"{DIGEST}\t1 main/x",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize(("text", "words"), TEXTS.values(), ids=TEXTS)
def test_signed_metadata_that_cannot_be_right_is_refused(store: Store, keyring: Path, text: str, words: str) -> None:
    assert text != TEXT
    with pytest.raises(RigProblem, match=words):
        read(clear_signed(text), store, keyring)


def test_only_sha256_is_looked_at(store: Store, keyring: Path) -> None:
    weak = TEXT.replace("SHA256:", "SHA1:").replace(DIGEST, "ab" * 20)
    assert read(clear_signed(weak), store, keyring).files == {}


def test_what_is_valid_still(store: Store, keyring: Path) -> None:
    text = TEXT + f"Valid-Until: {rfc822(NOW + timedelta(days=7))}\n"
    read(clear_signed(text), store, keyring)
    with pytest.raises(RigProblem, match="clock here says"):
        read(clear_signed(text), store, keyring, now=NOW + timedelta(days=8))


def test_metadata_older_than_what_was_seen_is_a_replay(store: Store, keyring: Path) -> None:
    old, new = (re.sub("Date: .*", f"Date: {rfc822(NOW - timedelta(days=days))}", TEXT) for days in (9, 2))
    read(clear_signed(old), store, keyring)
    read(clear_signed(new), store, keyring)
    read(clear_signed(new), store, keyring)
    with pytest.raises(RigProblem, match="was seen before") as caught:
        read(clear_signed(old), store, keyring)
    assert "behind, or replays" in caught.value.hint
    _archive.read_release(
        clear_signed(old.replace("bookworm", "trixie")),
        archive="debian",
        suite="trixie",
        keyring=keyring,
        store=store,
        now=NOW,
    )  # another suite has its own dates


def test_a_torn_memory_is_no_memory(store: Store, keyring: Path) -> None:
    store.remember(_archive.SEEN, "debian-bookworm", b"20")
    read(clear_signed(TEXT), store, keyring)
    assert (store.recall(_archive.SEEN, "debian-bookworm") or b"").startswith(b"20")


def test_a_key_ring_that_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RigProblem, match="cannot read the key ring"):
        read(clear_signed(TEXT), store, tmp_path / "none.gpg")
