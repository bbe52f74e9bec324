"""Boot keys are made, judged when they are read, and sign what the independent library finds well signed."""

import os
import shutil
import stat
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.asymmetric import rsa as other_rsa

from imagekit import bootkeys, cli, der, options, rsa
from imagekit.bootkeys import BootKeys
from imagekit.errors import Problem, RigProblem

FIXTURE = Path(__file__).parent.parent / "fixtures/keys/boot"
SIGNED = sha256(b"what is signed").digest()
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
Change = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the test keys, to be spoilt."""
    return shutil.copytree(FIXTURE, tmp_path / "keys")


def private(key: object, encryption: serialization.KeySerializationEncryption | None = None) -> bytes:
    whole = key.private_bytes(PEM, PKCS8, encryption or serialization.NoEncryption())  # type: ignore[attr-defined]
    assert isinstance(whole, bytes)
    return whole


def put(name: str, text: bytes, mode: int = 0o600) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(text)
        (folder / name).chmod(mode)

    return change


def certificate_of(begins: int, ends: int) -> bytes:
    """A certificate of the test key "db" that is valid from the one year to the other."""
    by = BootKeys(FIXTURE).signer("db")
    first, last = (datetime(year, 1, 1, tzinfo=UTC) for year in (begins, ends))
    return rsa.pem("CERTIFICATE", rsa.self_signed(by, name="db", begins=first, ends=last)).encode()


def of_a_curve() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "db")])
    begins, ends = datetime(2000, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, ends)
    return made.sign(key, hashes.SHA256()).public_bytes(PEM)


def unmarked(folder: Path) -> bytes:
    """The test key without the line that says so."""
    return (folder / "db.key").read_bytes().partition(b"\n")[2]


def test_a_signature_is_one_to_another_library_and_the_other_way_round() -> None:
    by = BootKeys(FIXTURE).signer("pcr")
    made = by.sign(SIGNED)
    own = serialization.load_pem_private_key((FIXTURE / "pcr.key").read_bytes(), None)
    assert isinstance(own, other_rsa.RSAPrivateKey)
    own.public_key().verify(made, b"what is signed", padding.PKCS1v15(), hashes.SHA256())
    assert made == own.sign(b"what is signed", padding.PKCS1v15(), hashes.SHA256()) == by.sign(SIGNED)
    assert by.public.pem.encode() == own.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert by.public == BootKeys(FIXTURE).public("pcr")


@pytest.mark.parametrize(
    "signature",
    [b"", bytes(256), b"\xff" * 256, BootKeys(FIXTURE).signer("pcr").sign(SIGNED)[:-1],
     BootKeys(FIXTURE).signer("db").sign(SIGNED), BootKeys(FIXTURE).signer("pcr").sign(bytes(32))],
    ids=["none", "zeros", "above the modulus", "cut", "of another key", "of something else"],
)  # fmt: skip
def test_a_wrong_signature_is_none(signature: bytes) -> None:
    assert not BootKeys(FIXTURE).public("pcr").verify(SIGNED, signature)


def test_the_private_operation_may_be_elsewhere_and_is_not_believed() -> None:
    here, asked = BootKeys(FIXTURE).signer("db"), []

    def device(digest: bytes) -> bytes:
        asked.append(digest)
        return here.private(digest)

    assert rsa.Signer(here.public, device).sign(SIGNED) == here.sign(SIGNED)
    assert asked == [SIGNED]
    other = BootKeys(FIXTURE).signer("KEK")
    with pytest.raises(Problem, match="not one of the key that was asked for"):
        rsa.Signer(here.public, other.private).sign(SIGNED)


def test_keys_are_made_for_their_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "new"
    assert cli.main(["boot-keys", str(made), "--name", "Example Ltd"]) == 0
    said = capsys.readouterr().out
    assert [line.endswith("no build needs it") for line in said.splitlines()] == [True, True, False, False, False]
    names = {"PK.key", "PK.crt", "KEK.key", "KEK.crt", "db.key", "db.crt", "pcr.key", "pcr.pub", "owner"}
    assert {path.name for path in made.iterdir()} == names
    assert {stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()} == {0o600}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    keys = BootKeys(made)
    assert keys.pair("PK").certificate.name == "CN=Example Ltd PK"
    assert keys.owner in said
    for name in ("PK", "KEK", "db"):
        found = x509.load_pem_x509_certificate((made / f"{name}.crt").read_bytes())
        found.verify_directly_issued_by(found)
        assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert cli.main(["boot-keys", str(made)]) == 1
    assert "none is overwritten" in capsys.readouterr().err


def test_a_certificate_of_the_first_version_says_none() -> None:
    found = BootKeys(FIXTURE).certificate("db")
    body, *rest = der.only(found.whole).parts()
    _, *fields, _ = body.parts()  # the version, and extensions, which the first has not
    first = der.make(der.SEQUENCE, *(each.whole for each in fields))
    whole = der.make(der.SEQUENCE, first, *(each.whole for each in rest))
    made = rsa.certificate(rsa.pem("CERTIFICATE", whole).encode())
    assert (made.issuer, made.serial, made.public) == (found.issuer, found.serial, found.public)


ROWS: dict[str, tuple[Change, str]] = {
    "a curve": (put("db.key", private(ec.generate_private_key(ec.SECP256R1()))), "key of EC\n.*RSA-2048"),
    "ed25519": (put("db.key", private(ed25519.Ed25519PrivateKey.generate())), "a key of Ed25519"),
    "RSA-1024": (put("db.key", private(other_rsa.generate_private_key(65537, 1024))), "a key of RSA-1024"),
    "exponent 3": (put("db.key", private(other_rsa.generate_private_key(3, 2048))), "exponent 3"),
    "encrypted": (
        put("db.key", private(ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"x"))),
        "db.key is encrypted\n.*openssl pkey",
    ),
    "no PEM": (put("db.key", b"TEST KEY"), "db.key is no private key in PEM"),
    "public where private": (put("db.key", (FIXTURE / "pcr.pub").read_bytes()), "db.key is no private key in PEM"),
    "others may read it": (lambda at: put("db.key", unmarked(at), 0o640)(at), r"read by others \(mode 0640\)\n.*chmod"),
    "of another certificate": (lambda at: shutil.copy(at / "KEK.crt", at / "db.crt"), "do not belong together"),
    "a curve's certificate": (put("db.crt", of_a_curve()), "db.crt is a key of EC"),
    "no certificate": (put("db.crt", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "no X.509"),
    "expired": (put("db.crt", certificate_of(2001, 2002)), "expired on 2002-01-01\n.*docs/secure-boot.md"),
    "not yet valid": (put("db.crt", certificate_of(2098, 2099)), "not valid before 2098-01-01"),
    "no key": (lambda at: (at / "db.key").unlink(), "no boot key .*db.key\n.*there: KEK.crt, KEK.key, PK.crt"),
    "no folder": (lambda at: shutil.rmtree(at), "no boot key .*\n.*`imagekit boot-keys .*keys` makes"),
    "a fifo": (lambda at: ((at / "db.key").unlink(), os.mkfifo(at / "db.key")), "it is no file"),
    "a folder": (lambda at: ((at / "db.key").unlink(), (at / "db.key").mkdir()), "db.key"),
    "a large file": (put("db.key", b"TEST KEY" + bytes(1 << 17)), "larger than one can be"),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_what_is_wrong_with_a_key_is_told(folder: Path, row: str) -> None:
    change, words = ROWS[row]
    assert BootKeys(folder).pair("db").certificate.name == "CN=imagekit TEST KEY db"
    change(folder)
    with pytest.raises(Problem, match=words):
        BootKeys(folder).pair("db")


def test_whoever_has_no_cryptography_is_told_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    public, signature = BootKeys(FIXTURE).public("pcr"), BootKeys(FIXTURE).signer("pcr").sign(SIGNED)
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(RigProblem, match=r"need the package cryptography: .*\n.*imagekit\[uefi\]"):
        BootKeys(FIXTURE).signer("pcr")
    assert public.verify(SIGNED, signature), "what checks needs nothing"


@pytest.mark.parametrize(
    ("text", "words"),
    [(b"me", "is no GUID"), (b"\xff", "is no GUID"), (b"8BE4DF61-93CA-11D2-AA0D-00E098032B8C\n", "")],
)
def test_an_owner_is_a_guid(folder: Path, text: bytes, words: str) -> None:
    (folder / "owner").write_bytes(text)
    if not words:
        assert BootKeys(folder).owner == text.decode().strip().lower()
        return
    with pytest.raises(Problem, match=words):
        assert BootKeys(folder).owner


@pytest.mark.parametrize("text", [b"", (FIXTURE / "db.key").read_bytes(), b"-----BEGIN PUBLIC KEY-----\nAA==\n"])
def test_a_public_key_is_one(folder: Path, text: bytes) -> None:
    (folder / "pcr.pub").write_bytes(text)
    with pytest.raises(Problem, match=r"pcr.pub is no public key in PEM"):
        BootKeys(folder).public("pcr")


def test_the_digest_is_of_what_is_public(folder: Path) -> None:
    whole = BootKeys(folder).digest
    for name in ("PK.key", "KEK.key", "db.key", "pcr.key"):  # they are where keys are kept
        (folder / name).unlink()
    assert BootKeys(folder).digest == whole
    shutil.copy(folder / "db.crt", folder / "db-next.crt")
    assert BootKeys(folder).digest != whole
    assert len(BootKeys(folder).db) == 2


def test_boot_keys_are_an_option_like_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("IMAGEKIT_BOOT_KEYS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem, match=r"no boot keys: .*\n.*--boot-keys DIR, IMAGEKIT_BOOT_KEYS"):
        bootkeys.chosen()
    (tmp_path / "pyproject.toml").write_text('[tool.imagekit]\nboot-keys = "of-the-project"\n')
    options.project.cache_clear()
    assert bootkeys.chosen().folder == Path("of-the-project")
    monkeypatch.setenv("IMAGEKIT_BOOT_KEYS", "of-a-variable")
    assert bootkeys.chosen().folder == Path("of-a-variable")
    assert bootkeys.chosen("typed").folder == Path("typed")
    options.project.cache_clear()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cut"),
        (b"\x30", "cut"),
        (b"\x30\x01", "behind the end"),
        (b"\x30\x80\0\0", "shortest"),
        (b"\x30\x81\x01\0", "shortest"),
        (b"\x30\x85\0\0\0\0\1\0", "shortest"),
        (b"\x30\x82\x01", "shortest"),
        (b"\x1f\x81\x01\0", "several bytes"),
        (b"\x05\0\0", "not one value"),
    ],
)
def test_what_is_no_der_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        der.only(data)


@pytest.mark.parametrize("number", [0, 1, 127, 128, 255, 256, 1 << 2047])
def test_an_integer_comes_back(number: int) -> None:
    assert der.natural(der.only(der.integer(number))) == number


@pytest.mark.parametrize("content", [b"", b"\x80", b"\0\x7f"])
def test_an_integer_has_one_form(content: bytes) -> None:
    with pytest.raises(ValueError, match="negative, or not the shortest"):
        der.natural(der.only(der.make(der.INTEGER, content)))
