"""Keys and signatures are minisign's: what it wrote is read, what it signed is what we sign; the rest is refused."""

import os
import pickle
from base64 import b64decode, b64encode
from pathlib import Path

import pytest

from imagekit import key
from imagekit.errors import Problem

# Written by minisign 0.11: `minisign -G -W`, then `minisign -S -l -m hello -t "made by minisign"`.
MINISIGN_SECRET = """untrusted comment: minisign encrypted secret key
RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA46zEQf6rvgwDpKeXe7WepiU+Eciq9SMEJi/H2n0HJ3CHg/\
AwsnL0qcfsVav7Az2kRAgJ4KLto2hizLUdC2dv5G20O0WK3njeAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
"""
MINISIGN_PUBLIC = """untrusted comment: minisign public key CBEABFE41C4ACE3
RWTjrMRB/qu+DMfsVav7Az2kRAgJ4KLto2hizLUdC2dv5G20O0WK3nje
"""
MINISIGN_SIGNATURE = """untrusted comment: signature from minisign secret key
RWTjrMRB/qu+DDDiDryirPTqTps4sambrgOeHy0XQkmWk7aDVQw7hguhZVfV1DDusQI7iN7R+gv/VxEJVBonchKL8k3nUzHtogM=
trusted comment: made by minisign
6acOU2GXOh9L9294AcdLJ/a08J0aosyzkbrzpLRo0qPJzZsAegqAcXEqxaz5t+3iCP6dJ33Xrt1PRDCun3iUBw==
"""
MINISIGN_WITH_PASSWORD = """untrusted comment: minisign encrypted secret key
RWRTY0Iy7/WEEsvwxswiQS635pf1gzepkyXJ1uu9PlpUH7fVgqgAAAACAAAAAAAAAEAAAAAA/4YlLoZrdIB822Clb4qNmOE2Ksgm/L1SZgL/rR0LN9v/oo\
ghmWrKyQba1nzrvJ7mACUMAHWFZhGieGLvP5th9NWR0LFlssoocqVSNwiv6StFB9XthGa+fgJ9MSYTcxiD3IXSJTjeS5k=
"""
HELLO = b"hello\n"
FIXTURE = Path(__file__).parent.parent / "fixtures/keys/test.key"


@pytest.fixture
def signer() -> key.Key:
    return key.from_seed(bytes(range(32)))


def changed(text: str, line: int, at: int) -> str:
    """A text of base64 lines with one bit of one byte of one line turned over."""
    lines = text.splitlines()
    raw = bytearray(b64decode(lines[line]))
    raw[at] ^= 1
    lines[line] = b64encode(raw).decode()
    return "\n".join(lines) + "\n"


def test_minisign_keys_and_signatures_are_read() -> None:
    secret, public = key.parse(MINISIGN_SECRET), key.parse(MINISIGN_PUBLIC)
    assert secret == public
    assert public.id == "0CBEABFE41C4ACE3"
    assert secret.seed is not None
    assert public.seed is None
    assert public.verify(HELLO, MINISIGN_SIGNATURE) == "made by minisign"


def test_a_signature_is_the_one_that_minisign_makes() -> None:
    made = key.parse(MINISIGN_SECRET).sign(HELLO, comment="made by minisign")
    assert made.splitlines()[1:] == MINISIGN_SIGNATURE.splitlines()[1:]


def test_rfc_8032_test_vector() -> None:
    seed = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")  # section 7.1, TEST 2
    made = key.from_seed(seed)
    assert made.public.hex() == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    first = b64decode(made.sign(b"\x72", comment="").splitlines()[1])[10:]
    assert first.hex().startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")


@pytest.mark.parametrize("line", [1, 3])
@pytest.mark.parametrize("at", [0, 2, 9, 10, 41, 63])
def test_one_bit_of_a_signature_is_enough(signer: key.Key, line: int, at: int) -> None:
    with pytest.raises(Problem):
        signer.verify(HELLO, changed(signer.sign(HELLO, comment="c"), line, at))


SIGNED = key.from_seed(bytes(range(32))).sign(HELLO, comment="web 1 x86_64")


@pytest.mark.parametrize(
    ("data", "signature", "words"),
    [
        (b"hello", SIGNED, "does not fit"),
        (b"", SIGNED, "does not fit"),
        (HELLO, SIGNED.replace("web 1", "web 2"), "does not fit"),
        (HELLO, MINISIGN_SIGNATURE, "signed by key 0CBEABFE41C4ACE3, not by"),
        (HELLO, "", "four lines"),
        (HELLO, SIGNED + "more\n", "four lines"),
        (HELLO, SIGNED.replace("trusted comment", "Trusted comment"), "four lines"),
        (HELLO, "a\n!!\ntrusted comment: c\n!!\n", "not a signature"),
        (HELLO, "a\nAAAA\ntrusted comment: c\nAAAA\n", "not a signature of the kind Ed"),
        (HELLO, SIGNED.replace("\nRWQ", "\nRUQ").replace("\nRWR", "\nRUR"), "not a signature of the kind Ed"),
    ],
)
def test_what_is_not_signed_is_refused(signer: key.Key, data: bytes, signature: str, words: str) -> None:
    with pytest.raises(Problem, match=words):
        signer.verify(data, signature)


def test_a_weak_public_key_verifies_nothing() -> None:
    weak = key.Key(bytes(8), bytes(32))  # the point of order 4: lax verifiers take R=0, S=0 for any message
    forged = b64encode(b"Ed" + bytes(8) + bytes(64)).decode()
    with pytest.raises(Problem, match="does not fit"):
        weak.verify(HELLO, f"untrusted comment: x\n{forged}\ntrusted comment: \n{b64encode(bytes(64)).decode()}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a key: 0 bytes"),
        ("untrusted comment: x\n", "not a key"),
        ("comment\nRWTjrMRB/qu+DMfs\n", "not a key: 12 bytes"),
        ("comment\nnot base64!\n", "not a key"),
        ("comment\n" + b64encode(b"ED" + bytes(40)).decode(), "not a key: 42 bytes"),
        (MINISIGN_WITH_PASSWORD, "is encrypted"),
        (changed(MINISIGN_SECRET, 1, 70), "is damaged"),
        (changed(MINISIGN_SECRET, 1, 100), "is damaged"),
        (changed(FIXTURE.read_text(), 1, 70), "is damaged"),
        (changed(FIXTURE.read_text(), 1, 130), "is damaged"),
    ],
)
def test_what_is_no_key_is_refused(text: str, words: str) -> None:
    with pytest.raises(Problem, match=words):
        key.parse(text, name="some.key")


def test_a_saved_key_is_private_and_never_overwritten(tmp_path: Path, signer: key.Key) -> None:
    path = tmp_path / "keys" / "own.key"
    umask = os.umask(0)
    try:
        key.save(signer, path)
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert key.read(path) == key.read(path.with_suffix(".pub")) == signer
    assert key.read(path).seed == signer.seed
    assert signer.seed not in path.with_suffix(".pub").read_bytes()
    before = path.read_bytes()
    with pytest.raises(Problem, match="never overwritten"):
        key.save(key.new(), path)
    assert path.read_bytes() == before


def test_a_key_that_others_can_read_is_refused_unless_everybody_has_it(tmp_path: Path, signer: key.Key) -> None:
    key.save(signer, tmp_path / "own.key")
    (tmp_path / "own.key").chmod(0o640)
    with pytest.raises(Problem, match=r"can be read by others \(mode 0640\)\n  hint: chmod 600"):
        key.read(tmp_path / "own.key")
    shared = key.from_seed(bytes(32), comment=key.TEST_MARK)
    key.save(shared, tmp_path / "test.key")
    (tmp_path / "test.key").chmod(0o644)
    assert key.read(tmp_path / "test.key").is_for_tests
    assert key.read(tmp_path / "test.pub").is_for_tests


def test_the_key_of_the_fixtures_is_marked() -> None:
    assert key.read(FIXTURE).is_for_tests
    assert key.read(FIXTURE).seed is not None
    assert key.read(FIXTURE.with_suffix(".pub")) == key.read(FIXTURE)


@pytest.mark.parametrize("name", ["missing.key", "folder", "noise.key"])
def test_an_unreadable_key_is_a_problem(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "noise.key").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Problem, match=name):
        key.read(tmp_path / name)


@pytest.mark.parametrize(("place", "words"), [("/dev/zero", "no file"), ("pipe", "no file"), ("large", "larger than")])
def test_what_has_no_end_is_no_key(tmp_path: Path, place: str, words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * (key.MAX_FILE + 1))
    with pytest.raises(Problem, match=words):
        key.read(tmp_path / place)


def test_a_public_key_cannot_sign_or_be_saved(tmp_path: Path) -> None:
    public = key.parse(MINISIGN_PUBLIC)
    with pytest.raises(Problem, match="cannot sign"):
        public.sign(b"", comment="")
    with pytest.raises(Problem, match="no secret key"):
        key.save(public, tmp_path / "x.key")


def test_a_secret_shows_nowhere(signer: key.Key) -> None:
    assert signer.seed is not None
    for text in (repr(signer), str(signer), signer.public_text()):
        assert signer.seed.hex() not in text
        assert repr(signer.seed) not in text
        assert b64encode(signer.seed).decode()[:20] not in text
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(signer)


def test_new_keys_differ() -> None:
    assert key.new().id != key.new().id
