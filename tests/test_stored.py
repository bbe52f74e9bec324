"""What is stored is hashed while it is used: nothing that was made of other bytes is ever kept."""

from dataclasses import replace

import pytest
from test_disk_containers import CONTAINERS, KIB, MIB, NOISE, TEXT
from test_formats import BOOTABLE, job_of

from imagekit import build, plugs
from imagekit.disk import gcp
from imagekit.disk.sparse import Piece, Sparse, laid, one_after_the_other
from imagekit.errors import Defect
from imagekit.store import LARGE, Spoiled, flow, wary
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

BIG = BOOTABLE.override(Tree({"/srv/noise": file(NOISE[:-5], owner="noise"), "/srv/more": file(NOISE, owner="more")}))
WRITERS = {**{kind: write for kind, (write, *_) in CONTAINERS.items()}, "raw": Sparse.chunks, "gcp": gcp.chunks}
FORMATS = (
    "raw_efi",
    "raw_hybrid",
    "qcow2_efi",
    "vhd",
    "vhd_dynamic",
    "vhdx",
    "vmdk",
    "ova",
    "uki",
    "kernel_initrd",
    "iso",
)
DAMAGES = {
    "the first byte": lambda data: b"?" + data[1:],
    "a byte in the middle": lambda data: data[: len(data) // 2] + b"?" + data[len(data) // 2 + 1 :],
    "the last byte": lambda data: data[:-1] + b"?",
    "shorter": lambda data: data[:-1],
    "empty": lambda _: b"",
    "all zeros": lambda data: bytes(len(data)),
}


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "cache")


def kept(store, data=NOISE):
    return store.lay(store.write([data]))


def damage(store, digest, how):
    """As a bad disk or a neighbour does it."""
    path = store.path(digest)
    data = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(DAMAGES[how](data))


def objects(store):
    return {path.name for path in store.folder("objects").rglob("*") if path.is_file()}


def disk_of(content):
    """What is stored begins and ends within a block, and lies there twice."""
    size = len(NOISE)
    return laid(9 * MIB + 512, [Piece(9, TEXT), Piece(3 * MIB - 77, content), Piece(5 * MIB + size // 2, content)])


def test_few_bytes_are_read_at_once_and_many_when_they_are_used(store):
    assert kept(store, NOISE[: LARGE - 1]) == NOISE[: LARGE - 1]
    found = kept(store)
    assert (found.size, b"".join(flow([b"<", found, b">"]))) == (len(NOISE), b"<" + NOISE + b">")
    assert wary(store).lay(found.sha256) == NOISE
    with pytest.raises(KeyError):
        store.lay("0" * 64)


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("size", [1000, LARGE, 1 << 20])
def test_other_bytes_never_come_to_their_end(store, how, size):
    found, taken = kept(store), []
    damage(store, found.sha256, how)
    with pytest.raises(Spoiled, match="not what was stored"):
        taken.extend(found.chunks(size))
    assert sum(map(len, taken)) < found.size
    found = found._replace(path="/nowhere")
    with pytest.raises(Spoiled, match="/nowhere is not what was stored"):
        list(found.chunks())


@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_of_what_is_stored_is_that_of_its_bytes(store, kind):
    write = WRITERS[kind]
    assert store.write(write(disk_of(kept(store)))) == store.write(write(disk_of(NOISE)))
    zeros = bytes(MIB)
    assert store.write(write(disk_of(kept(store, zeros)))) == store.write(write(disk_of(zeros)))


@pytest.mark.parametrize("how", ["the first byte", "the last byte", "all zeros"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_disk_of_what_is_no_longer_what_was_stored_is_not_kept(store, kind, how):
    disk = disk_of(kept(store))
    damage(store, disk.pieces[1].content.sha256, how)
    before = objects(store)
    with pytest.raises(Spoiled):
        store.write(WRITERS[kind](disk))
    assert objects(store) == before
    assert not list(store.folder("drafts").iterdir())


def test_what_is_stored_is_read_in_order_alone(store):
    disk = one_after_the_other([b"head", kept(store)])
    assert (disk.size, disk.read(0, 4)) == (4 + len(NOISE), b"head")
    with pytest.raises(Defect):
        disk.read(0, 5)
    with pytest.raises(Defect):
        disk.part(2, 100)


def test_a_disk_that_changes_while_it_is_written_is_not_kept(store, tmp_path):
    """The table of a qcow2 tells of blocks, and they are others when it is their turn."""
    found = kept(store, bytes(64 * KIB) + NOISE)
    disk = laid(MIB, [Piece(0, found)])
    chunks = CONTAINERS["qcow2"][0](disk)
    next(chunks)
    other = tmp_path / "other"
    other.write_bytes(NOISE[: 64 * KIB] + NOISE)
    other.replace(store.path(found.sha256))
    with pytest.raises(Spoiled, match="not what it was"):
        list(chunks)


@pytest.mark.parametrize("name", FORMATS)
def test_formats_read_large_parts_once_and_mend_a_bad_one(store, name):
    plug, job = plugs.load("formats", name), job_of(store)
    first = plug.write(BIG, job=job)  # here the parts are made

    def read(digest):
        assert store.path(digest).stat().st_size < LARGE, "read whole"
        return store.read(digest)

    assert plug.write(BIG, job=replace(job, store=replace(store, read=read))) == first
    large = [digest for digest in objects(store) if is_part(store, digest)]
    assert len(large) == 2
    for digest in large:
        damage(store, digest, "the last byte")
    with pytest.raises(Spoiled):
        plug.write(BIG, job=job)
    said = []
    assert build._written(plug, BIG, replace(job, say=said.append)) == first
    assert [line.rpartition(": ")[2] for line in said] == ["writing again"]
    assert {path.name for path in (store.folder("bad")).iterdir()} == set(large)
    assert not list(store.folder("drafts").iterdir())


def is_part(store, digest):
    """Whether it is what one of the two large files was packed to: all others are smaller, or far larger."""
    data = store.read(digest)
    return len(NOISE) - KIB < len(data) < len(NOISE) + KIB and data.startswith(b"\x28\xb5\x2f\xfd")
