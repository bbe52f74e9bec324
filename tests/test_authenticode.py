"""Programs are signed as sbsigntool signs them, the same at each time; what was altered or is by others is refused."""

import random
import struct
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from toy_program import program

from imagekit import rsa, toolbox
from imagekit.bootkeys import BootKeys
from imagekit.disk import authenticode, pe
from imagekit.errors import Problem
from imagekit.store import Stored
from imagekit.stores.directory import open_store

KEYS = BootKeys(Path(__file__).parent.parent / "fixtures/keys/boot")
PAIR, OTHER = KEYS.pair("db"), KEYS.pair("KEK")
CERTIFICATE = PAIR.certificate
SECTIONS = {".linux": program("x86_64", text=b"kernel" * 999), ".cmdline": b"quiet", ".initrd": b"initrd" * 12345}
UKIS = {arch: pe.uki(program(arch), SECTIONS) for arch in ("x86_64", "aarch64")}
UKI = UKIS["x86_64"]


def signed(data: bytes, pair: rsa.Pair = PAIR) -> bytes:
    return b"".join(piece for piece in authenticode.signed([data], pair) if isinstance(piece, bytes))


SIGNED = signed(UKI)


@pytest.fixture(scope="module")
def tools() -> toolbox.Tools:
    return toolbox.tools("sbsign", "sbverify", mode="tree", store=open_store())


def run(tools: toolbox.Tools, *words: str | Path) -> subprocess.CompletedProcess[str]:
    name, *args = map(str, words)
    return subprocess.run(tools.argv(name, *args), env=tools.env, capture_output=True, text=True)


@pytest.mark.parametrize("arch", UKIS)
def test_sbsigntool_finds_our_signature_good_and_we_its_own(arch: str, tools: toolbox.Tools, tmp_path: Path) -> None:
    ours, plain, theirs = (tmp_path / name for name in ("ours.efi", "plain.efi", "theirs.efi"))
    plain.write_bytes(UKIS[arch])
    ours.write_bytes(signed(UKIS[arch]))
    done = run(tools, "sbverify", "--cert", KEYS.folder / "db.crt", ours)
    assert (done.returncode, done.stdout) == (0, "Signature verification OK\n"), done.stderr
    assert run(tools, "sbverify", "--cert", KEYS.folder / "KEK.crt", ours).returncode == 1
    own = ("--key", KEYS.folder / "db.key", "--cert", KEYS.folder / "db.crt")
    assert run(tools, "sbsign", *own, "--output", theirs, plain).returncode == 0
    found = authenticode.verify(theirs.read_bytes(), CERTIFICATE)
    assert found == authenticode.verify(ours.read_bytes(), CERTIFICATE) == authenticode.digest([UKIS[arch]])
    assert authenticode.strip(theirs.read_bytes())[:64] == UKIS[arch][:64]


def test_a_signature_is_the_same_at_each_time_and_comes_off() -> None:
    assert signed(UKI) == SIGNED
    assert authenticode.strip(SIGNED) == UKI
    assert authenticode.digest([SIGNED]) == authenticode.digest([UKI])
    assert len(SIGNED) % 8 == 0


def test_a_program_of_an_odd_size_is_signed_with_zeros() -> None:
    odd = UKI + b"behind"
    made = signed(odd)
    assert authenticode.verify(made, CERTIFICATE) == authenticode.digest([odd + bytes(-len(odd) % 8)])
    assert authenticode.strip(made) == odd + bytes(-len(odd) % 8)


def test_pieces_are_the_whole(tmp_path: Path) -> None:
    cuts = sorted(random.Random(1).sample(range(len(UKI)), 9))
    pieces: list[bytes | Stored] = [UKI[a:b] for a, b in zip([0, *cuts], [*cuts, len(UKI)], strict=True)]
    assert b"".join(map(bytes, authenticode.signed(pieces, PAIR))) == SIGNED  # type: ignore[arg-type]
    (tmp_path / "object").write_bytes(UKI)
    whole = Stored(str(tmp_path / "object"), len(UKI), sha256(UKI).hexdigest())
    assert authenticode.digest([whole]) == authenticode.digest([UKI]) == authenticode.digest(pieces)
    rest = Stored(str(tmp_path / "object"), len(UKI) - 5000, sha256(UKI[5000:]).hexdigest(), 5000)
    made = authenticode.signed([UKI[:5000], rest], PAIR)
    assert rest in made, "what is large stays where it lies"
    assert b"".join(b"".join(p.chunks()) if isinstance(p, Stored) else p for p in made) == SIGNED


def test_each_bit_counts() -> None:
    """Whichever bit is turned over, the signature no longer fits, but for the checksum, which nobody reads."""
    header = pe.read(SIGNED)
    free = range(header.optional + 64, header.optional + 68)
    places = [*range(0x3C, 0x140), *random.Random(2).sample(range(0x140, len(SIGNED)), 200)]
    places += [*range(len(UKI), len(SIGNED))]
    for at in places:
        altered = bytearray(SIGNED)
        altered[at] ^= 1 << at % 8
        if at in free:
            continue
        assert not is_good(bytes(altered)), f"byte {at} of {len(SIGNED)}"


def is_good(data: bytes) -> bool:
    try:
        return bool(authenticode.verify(data, CERTIFICATE))
    except Problem:
        return False


def with_table(change: bytes, table: bytes = SIGNED[len(UKI) :]) -> bytes:
    """The program with another certificate table."""
    whole = change or table
    at = pe.read(UKI).optional + authenticode.SECURITY
    return UKI[:at] + struct.pack("<II", len(UKI), len(whole)) + UKI[at + 8 :] + whole


def row(data: bytes, *, length: int = 0, revision: int = 0x200, kind: int = 2) -> bytes:
    padded = data + bytes(-len(data) % 8)
    return authenticode.CERTIFICATE.pack(length or 8 + len(padded), revision, kind) + padded


PKCS7 = authenticode.signature(authenticode.digest([UKI]), PAIR)
ELSE = authenticode.signature(bytes(32), PAIR)
BAD = {
    "not signed": (UKI, "is not signed"),
    "signed by another": (signed(UKI, OTHER), "by another certificate"),
    "another's signature under our name": (signed(UKI, rsa.Pair(CERTIFICATE, OTHER.signer)), "does not fit the cert"),
    "of another program": (with_table(row(ELSE)), "was altered"),
    "a table of zeros": (with_table(bytes(64)), "not one signature of PKCS #7"),
    "two rows": (with_table(row(PKCS7) + row(PKCS7)), "not one signature of PKCS #7"),
    "another revision": (with_table(row(PKCS7, revision=0x100)), "not one signature of PKCS #7"),
    "another type": (with_table(row(PKCS7, kind=1)), "not one signature of PKCS #7"),
    "a length behind the table": (with_table(row(PKCS7, length=1 << 15)), "not one signature of PKCS #7"),
    "something behind it": (with_table(row(PKCS7 + b"more")), "something follows its signature"),
    "zeros behind it": (with_table(row(PKCS7 + bytes(16))), "something follows its signature"),
    "no DER": (with_table(row(b"signature")), "its signature is damaged"),
    "another value": (with_table(row(PKCS7[4:])), "something follows its signature"),
    "cut": (SIGNED[:-8], "does not lie behind all else"),
    "something behind the table": (SIGNED + bytes(8), "does not lie behind all else"),
    "no program": (b"MZ", "no PE header"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_signed_so_is_refused(name: str) -> None:
    data, words = BAD[name]
    with pytest.raises(Problem, match=words):
        authenticode.verify(data, CERTIFICATE, what="a.efi")


def test_a_signed_program_is_not_signed_again() -> None:
    with pytest.raises(Problem, match="signed already"):
        authenticode.signed([SIGNED], PAIR)


def moved(**fields: int) -> bytes:
    """The program with other numbers in its headers."""
    header = pe.read(UKI)
    places = {"headers": header.optional + 60, "directories": header.optional + 108, "section": header.table + 20}
    made = bytearray(UKI)
    for name, number in fields.items():
        struct.pack_into("<I", made, places[name], number)
    return bytes(made)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (moved(headers=pe.read(UKI).sections[0].offset - 8), "a gap"),
        (moved(headers=pe.read(UKI).sections[0].offset + 8), "a gap"),
        (moved(directories=4), "no place for a signature"),
    ],
)
def test_a_program_that_can_be_hashed_in_two_ways_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(Problem, match=words):
        authenticode.digest([data])
