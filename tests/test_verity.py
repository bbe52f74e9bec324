"""dm-verity: the same bits as veritysetup writes, for every shape of tree, and damage that is told."""

import subprocess
from uuid import UUID

import pytest

from imagekit import toolbox
from imagekit.disk import verity
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem
from imagekit.stores.directory import open_store
from imagekit.tree import Slice

BLOCK = verity.BLOCK
ID = UUID("01234567-89ab-8def-8123-456789abcdef")
SALT = bytes(range(32))
ONE = Sparse(BLOCK, (Piece(0, b"one block" * 400),))


def disk(blocks, *, pattern=b"imagekit"):
    return laid(blocks * BLOCK, [Piece(0, (pattern * BLOCK * blocks)[: blocks * BLOCK])])


SHAPES = {
    "a block": (ONE, SALT),
    "two blocks": (disk(2), SALT),
    "a full block of hashes": (disk(128), SALT),
    "a level more": (disk(129), SALT),
    "without a salt": (disk(300), b""),
    "the longest salt": (disk(3), bytes(range(256))),
    "two full levels": (laid(128 * 128 * BLOCK, [Piece(BLOCK * 5, b"not all zeros")]), SALT),
    "three levels": (laid((128 * 128 + 1) * BLOCK, [Piece(128 * 128 * BLOCK, b"the last block")]), SALT),
    "zeros, and not whole mebibytes": (laid(BLOCK * 513, []), SALT),
}


@pytest.fixture(scope="module")
def tools():
    return toolbox.tools("veritysetup", mode="tree", store=open_store())


def veritysetup(tools, *words):
    return subprocess.run(tools.argv("veritysetup", *words), env=tools.env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_bits_are_those_of_veritysetup(shape, tools, tmp_path):
    data, salt = SHAPES[shape]
    with open(tmp_path / "data", "wb") as file:
        for chunk in data.chunks():
            file.write(chunk)
    options = [f"--uuid={ID}", f"--salt={salt.hex() or '-'}"]
    done = veritysetup(tools, "format", *options, tmp_path / "data", tmp_path / "hashes")
    assert done.returncode == 0, done
    root_hash = next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("Root hash"))
    made = verity.tree(data, salt=salt, uuid=ID)
    assert made.root_hash.hex() == root_hash
    assert made.device == (tmp_path / "hashes").read_bytes()
    assert len(made.device) == verity.size(data.size // BLOCK)
    assert verity.read(made.device) == (ID, data.size // BLOCK, salt)
    verity.verify(data, made.device, root_hash=made.root_hash)


def test_veritysetup_verifies_what_we_write(tools, tmp_path):
    made = verity.tree(disk(1000), salt=SALT, uuid=ID)
    (tmp_path / "data").write_bytes(b"".join(disk(1000).chunks()))
    (tmp_path / "hashes").write_bytes(made.device)
    words = ("verify", tmp_path / "data", tmp_path / "hashes", made.root_hash.hex())
    assert veritysetup(tools, *words).returncode == 0
    with open(tmp_path / "data", "r+b") as file:
        file.write(b"damage")
    assert veritysetup(tools, *words).returncode != 0


def test_a_file_is_read_as_it_is_hashed(tmp_path):
    path = tmp_path / "root"
    path.write_bytes(b"x" * BLOCK * 700)
    data = laid(BLOCK * 700, [Piece(0, Slice(str(path), 0, BLOCK * 700))])
    assert verity.tree(data, salt=SALT, uuid=ID) == verity.tree(disk(700, pattern=b"x"), salt=SALT, uuid=ID)


MADE = verity.tree(disk(200), salt=SALT, uuid=ID)
DAMAGE = (
    ({"data": disk(200, pattern=b"imageKit")}, "block 0 is not the one that was hashed, at byte 0"),
    ({"data": laid(200 * BLOCK, disk(150).pieces)}, f"block 150 is not the one .* at byte {150 * BLOCK}"),
    ({"data": disk(201)}, f"the hash device is of {200 * BLOCK} bytes, and the root has {201 * BLOCK}"),
    ({"root_hash": bytes(32)}, f"the root hash is {MADE.root_hash.hex()}, not 00000000"),
    ({"device": MADE.device + b"x"}, f"has {len(MADE.device) + 1} bytes, not {len(MADE.device)}"),
    ({"device": MADE.device[:-1]}, f"has {len(MADE.device) - 1} bytes, not {len(MADE.device)}"),
    ({"device": MADE.device[:5000] + b"?" + MADE.device[5001:]}, "the hash device is damaged at byte 5000"),
    ({"device": b""}, "no hash device of dm-verity"),
    ({"device": MADE.device[:4095]}, "no hash device of dm-verity"),
    ({"device": bytes(BLOCK)}, "no hash device of dm-verity"),
    ({"device": MADE.device.replace(b"sha256", b"sha512")}, "of another kind: .*sha512"),
    ({"device": MADE.device[:80] + b"\xff\xff" + MADE.device[82:]}, "salt of 65535 bytes"),
    ({"device": MADE.device[:72] + b"\xff" * 8 + MADE.device[80:]}, "the hash device is of 7[0-9]* bytes"),
)


@pytest.mark.parametrize(("changed", "words"), DAMAGE)
def test_damage_is_told(changed, words):
    whole = {"data": disk(200), "device": MADE.device, "root_hash": MADE.root_hash, **changed}
    with pytest.raises(Problem, match=words):
        verity.verify(whole["data"], whole["device"], root_hash=whole["root_hash"])


@pytest.mark.parametrize(
    ("data", "salt", "words"),
    [
        (laid(BLOCK + 512, []), SALT, "a whole number of blocks of 4096 bytes, and the root has 4608 bytes"),
        (laid(0, []), SALT, "the root has 0 bytes"),
        (ONE, bytes(257), "a salt of 257 bytes"),
    ],
)
def test_what_it_cannot_hash_is_told(data, salt, words):
    with pytest.raises(Problem, match=words):
        verity.tree(data, salt=salt, uuid=ID)
