"""The signed image file: what is signed comes out, and nothing else ever does."""

import os
import random
from hashlib import sha256
from struct import pack

import pytest
from signed_rig import ABOUT, KEY, OTHER, SMALL, handle_of, large, read, signed, taken

from imagekit import signing
from imagekit.disk import gzip, signedchunks, signedfile
from imagekit.errors import Problem
from imagekit.key import Key


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    return signed(tmp_path_factory.mktemp("small"), SMALL).read_bytes()


@pytest.fixture(scope="module")
def tall(tmp_path_factory) -> bytes:
    return signed(tmp_path_factory.mktemp("tall"), large()).read_bytes()


def again(data: bytes, *, manifest=None, table=None, body=None, by: Key = KEY) -> bytes:
    """The image with other parts, rightly signed as a whole by somebody: only the reader's rules may refuse it."""
    found = read(data)
    body = data[: found.said.body] if body is None else body
    text = found.manifest if manifest is None else manifest
    if table is not None:
        text = text.replace(found.said.table.encode(), signedfile._sha256(table).encode())
    else:
        table = found.table
    return body + signedfile.members(text, table, by.number, signing.signatures(text, by))


def rows(data: bytes) -> list[bytes]:
    table = read(data).table
    return [table[at : at + 40] for at in range(0, len(table), 40)]


def bodies(data: bytes) -> list[bytes]:
    return [data[at : at + packed] for at, packed, _, _ in read(data).chunks]


def test_what_was_signed_comes_out(small, tall):
    assert taken(small) == SMALL
    assert taken(tall) == large()
    said = read(small).said
    assert (said.name, said.version, said.architecture, said.payload) == ("web", "1.2", "x86_64", "tar.gz")
    assert (said.arguments, said.environment) == ((b"/bin/sh", b"-c", b"exit 7"), (b"A=b c", b"PATH=/usr/bin:/bin"))
    assert (said.uid, said.gid, said.workdir, said.compressor) == (33, 33, b"/", gzip.VERSION)
    assert len(read(tall).chunks) > 5


def test_every_bit_that_is_changed_is_refused(small):
    changed = bytearray(small)
    for bit in range(len(small) * 8):
        changed[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(Problem):
            taken(bytes(changed))
        changed[bit >> 3] ^= 1 << (bit & 7)


def test_every_truncation_is_refused(small):
    for length in range(len(small)):
        for part in (small[:length], small[length + 1 :] if length else small[1:]):
            with pytest.raises(Problem):
                taken(part)


def test_ten_thousand_bits_of_a_large_image(tall):
    """Of each, the trailer or the chunk that it lies in is looked at, as a reader does that comes to it."""
    dice, found = random.Random(10_000), read(tall)
    body, held = found.said.body, 0
    for number, (begin, packed, _, _) in enumerate(found.chunks):
        chunk = bytearray(tall[begin : begin + packed])
        for at, bit in ((dice.randrange(packed), 1 << dice.randrange(8)) for _ in range(9_000 // len(found.chunks))):
            chunk[at] ^= bit
            with pytest.raises(Problem, match="not the one that was signed"):
                signedfile.checked(chunk, found, number)
            chunk[at] ^= bit
            held += 1
        assert signedfile.checked(chunk, found, number)
    while held < 10_000:
        trailer = bytearray(tall[body:])
        trailer[dice.randrange(len(trailer))] ^= 1 << dice.randrange(8)
        with pytest.raises(Problem):
            signedfile.parse(bytes(trailer), [KEY])
        held += 1
    assert len(found.chunks) == 11


def trailer(data: bytes) -> bytes:
    return data[read(data).said.body :]


STRUCTURES = {  # (image, another image of the same key) -> a file that is neither
    "a byte before": lambda one, _: b"\0" + one,
    "a byte after": lambda one, _: one + b"\0",
    "an empty member before": lambda one, _: EMPTY + one,
    "an empty member after": lambda one, _: one + EMPTY,
    "an empty member between body and trailer": lambda one, _: one[: -len(trailer(one))] + EMPTY + trailer(one),
    "an empty member in the trailer": lambda one, _: one[: -signedfile.END] + EMPTY + one[-signedfile.END :],
    "trailer twice": lambda one, _: one + trailer(one),
    "two images": lambda one, other: other + one,
    "the same twice": lambda one, _: one + one,
    "trailer of another": lambda one, other: one[: -len(trailer(one))] + trailer(other),
    "table of another": lambda one, other: again(one, table=read(other).table),
    "table of another, as it is": lambda one, other: one[: read(one).said.body] + signedfile.members(
        read(one).manifest, read(other).table, KEY.number, read(one).signatures
    ),
    "signatures of another": lambda one, other: one[: read(one).said.body] + signedfile.members(
        read(one).manifest, read(one).table, KEY.number, read(other).signatures
    ),
    "signatures swapped": lambda one, _: one[: read(one).said.body] + signedfile.members(
        read(one).manifest, read(one).table, KEY.number, read(one).signatures[::-1]
    ),
    "comment's signature over something else": lambda one, _: one[: read(one).said.body] + signedfile.members(
        read(one).manifest, read(one).table, KEY.number,
        (read(one).signatures[0], KEY.sign_bytes(read(one).signatures[0] + b"imagekit image sha256:" + b"0" * 64)),
    ),
    "other metadata": lambda one, _: one[: read(one).said.body] + signedfile.members(
        read(one).manifest.replace(b"name: web", b"name: wob"), read(one).table, KEY.number, read(one).signatures
    ),
    "nothing": lambda *_: b"",
    "the end only": lambda one, _: one[-signedfile.END :],
    "the trailer only": lambda one, _: trailer(one),
}  # fmt: skip
EMPTY = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x03\0" + bytes(8)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("other")
    return signed(folder, SMALL.replace(b"nothing", b"another"), about=ABOUT._replace(name="wab")).read_bytes()


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_is_put_together_otherwise_is_refused(small, other, name):
    with pytest.raises(Problem):
        taken(STRUCTURES[name](small, other))


def swapped(parts: list[bytes]) -> list[bytes]:
    return [*parts[:1], parts[2], parts[1], *parts[3:]]


CHUNKS = {  # what becomes of the list of chunks, and of the list of their rows
    "swapped": (swapped, None),
    "swapped with their rows": (swapped, swapped),
    "repeated": (lambda parts: [*parts[:2], *parts[1:]], None),
    "repeated with its row": (lambda parts: [*parts[:2], *parts[1:]], lambda parts: [*parts[:2], *parts[1:]]),
    "missing": (lambda parts: parts[:2] + parts[3:], None),
    "missing with its row": (lambda parts: parts[:2] + parts[3:], lambda parts: parts[:2] + parts[3:]),
    "rows swapped": (None, swapped),
    "a row missing": (None, lambda parts: parts[:-1]),
    "no rows": (None, lambda parts: parts[:0]),
}


@pytest.mark.parametrize("name", CHUNKS)
@pytest.mark.parametrize("is_signed", [False, True])
def test_chunks_that_are_not_where_they_were_are_refused(tall, name, is_signed):
    """Also where somebody signs such a table: lengths and sums, gzip's header and CRC and the sha256 of all tell."""
    body, row = CHUNKS[name]
    data = b"".join(body(bodies(tall)) if body else bodies(tall))
    table = b"".join(row(rows(tall)) if row else rows(tall))
    found = read(tall)
    made = (
        again(tall, body=data, table=table)
        if is_signed
        else data + signedfile.members(found.manifest, table, KEY.number, found.signatures)
    )
    with pytest.raises(Problem):
        taken(made)


@pytest.mark.parametrize(
    ("packed", "size"), [(0, 1), (1, 0), (2**21 + 1, 1), (1, 2**22 + 1), (2**32 - 1, 2**32 - 1), (0, 0)]
)
def test_lengths_that_no_chunk_has_are_refused(small, packed, size):
    with pytest.raises(Problem, match="a length that none can have"):
        read(again(small, table=pack("<II", packed, size) + read(small).table[8:]))


def test_a_manifest_that_is_not_as_it_must_be_is_refused_whoever_signed_it(small):
    manifest = read(small).manifest.replace(b"name: web", b"name: a/b")
    with pytest.raises(Problem, match="its name cannot be"):
        read(again(small, manifest=manifest))
    with pytest.raises(Problem, match="not trusted"):  # nothing of it is read before
        read(again(small, manifest=manifest, by=OTHER))


def test_only_keys_that_are_trusted_count(small):
    liar = Key(KEY.number, OTHER.public)
    weak = [Key(KEY.number, bytes([first, *bytes(31)])) for first in (0, 1)] + [
        Key(KEY.number, b""),
        Key(KEY.number, b"x" * 33),
    ]
    for keys, words in (([], "not trusted"), ([OTHER], "not trusted"), ([liar], "forgery"), (weak, "forgery")):
        with pytest.raises(Problem, match=words):
            read(small, keys)
    assert read(small, [liar, *weak, OTHER, KEY]).key == KEY
    assert read(small, None).key is None
    with pytest.raises(Problem, match="not trusted"):
        read(again(small, by=OTHER))


def test_a_signature_under_a_weak_key_fits_nothing(small):
    """R = identity, S = 0 is what OpenSSL takes for anybody's signature under a key of small order."""
    weak, nothing = Key(KEY.number, b"\1" + bytes(31)), b"\1" + bytes(63)
    found = read(small)
    data = small[: found.said.body] + signedfile.members(found.manifest, found.table, weak.number, (nothing, nothing))
    with pytest.raises(Problem, match="forgery"):
        read(data, [weak])


BODIES = {  # (head, deflate, tail) of a body of one chunk, and what it is made to
    "no flush at the end": lambda head, inner, tail: head + inner[:-4] + bytes(4) + tail,
    "a last block in it": lambda head, inner, tail: head + inner[:-5] + b"\1" + inner[-4:] + tail,
    "more than its row says": lambda head, inner, tail: head + inner + inner + tail,
    "less than its row says": lambda head, inner, tail: head + b"\0" + inner[-4:] + tail,
    "no block of deflate": lambda head, inner, tail: head + b"\7" + inner[1:] + tail,
    "a name in the header": lambda head, inner, tail: head[:3] + b"\x08" + head[4:] + inner + tail,
    "a time in the header": lambda head, inner, tail: head[:4] + b"\1" + head[5:] + inner + tail,
    "another size at the end": lambda head, inner, tail: head + inner + tail[:-4] + bytes(4),
    "another CRC at the end": lambda head, inner, tail: head + inner + tail[:2] + bytes(4) + tail[-4:],
    "another last block": lambda head, inner, tail: head + inner + b"\1\0\0\xff\xff" + tail[2:],
    "only a head and a tail": lambda head, _, tail: head + tail,
    "almost nothing": lambda head, *_: head[:1],
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_not_as_it_must_be_is_refused_whoever_signed_it(small, name):
    found = read(small)
    whole = small[: found.said.body]
    body = BODIES[name](whole[:10], whole[10:-10], whole[-10:])
    manifest = found.manifest.replace(b"body: %d" % len(whole), b"body: %d" % len(body))
    table = pack("<II", len(body), found.said.size) + sha256(body).digest()
    made = again(small, manifest=manifest, table=table, body=body)
    assert read(made).said.body == len(body)
    with pytest.raises(Problem):
        taken(made)


def test_a_bundle_has_a_launcher_before_its_image(small):
    with handle_of(bytes(4096) + small) as handle:
        found = signedfile.read(handle, [KEY], in_bundle=True)
        assert b"".join(signedchunks.pieces(handle, found)) == SMALL
        with pytest.raises(Problem, match="4096 bytes stand before"):
            signedfile.read(handle, [KEY])


def test_an_image_that_is_rewritten_while_it_is_read_is_refused_at_that_chunk(tall):
    with handle_of(tall) as handle:
        found = signedfile.read(handle, [KEY])
        pieces = signedchunks.pieces(handle, found, threads=2)
        first = next(pieces)
        os.pwrite(handle, b"evil", found.chunks[-2][0] + 7)
        with pytest.raises(Problem, match=f"chunk {len(found.chunks) - 2} of"):
            list(pieces)
        os.ftruncate(handle, 100)
        with pytest.raises(Problem):
            signedfile.chunk(handle, found, 0)
    assert first == large()[: len(first)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_pieces_come_in_order(tall, threads):
    with handle_of(tall) as handle:
        found = signedfile.read(handle, [KEY])
        assert b"".join(signedchunks.pieces(handle, found, threads=threads)) == large()


def test_a_file_system_is_signed_as_it_is(tmp_path):
    data = random.Random(1).randbytes((1 << 20) + 512)
    data = data[:1024] + signing.EROFS[1] + data[1028:]
    made = signed(tmp_path, data, name="image.erofs").read_bytes()
    found = read(made)
    assert (found.said.payload, found.said.compressor, len(found.chunks)) == ("erofs", "unknown", 2)
    assert made.startswith(data)
    assert taken(made) == data
    with pytest.raises(Problem, match="whole block"), handle_of(bytes(512) + made) as handle:
        signedfile.read(handle, [KEY], in_bundle=True)
