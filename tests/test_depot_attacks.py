"""The attacks that TUF's specification names (1.5.2), and some on what lies below its index, on a real server.

Whoever attacks here has the place, and in some tests keys; what is refused is refused with its own words, and nothing
of it is kept.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from depot_rig import EVERY_KEY, KEYS, ONLINE, Depot, Reader, forge, made, refuse, role_key
from tuf.api.metadata import MetaFile

from imagekit.depot import head, index, roles, trust
from imagekit.depot.roles import RoleKey
from imagekit.errors import Problem, RigProblem
from imagekit.key import Key

SMALL_ORDER = (  # points of order 1, 2, 4 and 8, under which anybody can sign
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)


def metadata(depot: Depot) -> Path:
    return depot.place / "metadata"


def newest(depot: Depot, role: str) -> Path:
    if role == "timestamp":
        return metadata(depot) / "timestamp.json"
    return max(metadata(depot).glob(f"*.{role}.json"), key=lambda path: int(path.name.partition(".")[0]))


def later(depot: Depot, tmp_path: Path) -> Path:
    """Publish a second version; gives the index as it was before."""
    old = tmp_path / "old"
    shutil.copytree(metadata(depot), old)
    depot.publish(made(tmp_path / "2", version="2"))
    return old


def reissue(depot: Depot, role: str, change: Callable[[Any], object], *thief: str) -> None:
    """What somebody with the keys of these roles can do: change one, and make what names it fit."""
    change_next = change
    for name in index.REST[index.REST.index(role) :]:
        signers = KEYS[name] if name in thief else []

        def up(signed: Any, change: Callable[[Any], object] = change_next) -> None:
            signed.version += 1
            change(signed)

        old = newest(depot, name)
        number = json.loads(old.read_bytes())["signed"]["version"] + 1
        to = old if name == "timestamp" else metadata(depot) / f"{number}.{name}.json"
        data = forge(old, up, *signers, to=to)
        version = json.loads(data)["signed"]["version"]
        if to.name != f"{version}.{name}.json" and name != "timestamp":
            to = to.rename(metadata(depot) / f"{version}.{name}.json")

        def change_next(signed: Any, name: str = name, version: int = version) -> None:
            if name == "targets":
                signed.meta["targets.json"] = MetaFile(version)
            else:
                signed.snapshot_meta = MetaFile(version)


# --- the specification's list -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_arbitrary_install_by_forged_metadata(depot: Depot, reader: Reader, role: str) -> None:
    """Every role signed by keys that nobody named, the rest by the true ones."""
    reissue(depot, role, lambda _: None, *(name for name in roles.ROLES if name != role))
    refuse(reader, f"is not signed by enough of its keys: {role} was signed by 0/1 keys")


def test_arbitrary_install_by_a_changed_entry(depot: Depot, reader: Reader) -> None:
    entry = next(path for path in (depot.place / "targets").rglob("*") if path.is_file())
    entry.write_bytes(entry.read_bytes().replace(b'"web"', b'"bad"'))
    refuse(reader, "is not what the index names")


def test_arbitrary_install_by_a_changed_blob(depot: Depot, reader: Reader) -> None:
    for blob in (depot.place / "blobs").rglob("*"):
        if blob.is_file():
            blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    refuse(reader, "with the sha256", RigProblem)
    assert not list((reader.folder / "store/objects").rglob("*"))


def test_rollback_of_the_timestamp(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    old = later(depot, tmp_path)
    reader.pull()
    shutil.copy(old / "timestamp.json", metadata(depot))
    refuse(reader, "was rolled back: newer metadata was seen before")


def test_rollback_of_the_snapshot_by_who_has_the_timestamps_key(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    later(depot, tmp_path)
    reader.pull()
    reissue(depot, "timestamp", lambda signed: setattr(signed, "snapshot_meta", MetaFile(1)), "timestamp")
    refuse(reader, "was rolled back")


def test_rollback_of_the_targets_by_who_has_both_lower_keys(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    later(depot, tmp_path)
    reader.pull()
    reissue(
        depot, "snapshot", lambda signed: signed.meta.update({"targets.json": MetaFile(1)}), "snapshot", "timestamp"
    )
    refuse(reader, "was rolled back")


def test_removal_of_metadata_from_the_snapshot(depot: Depot, reader: Reader) -> None:
    reader.pull()
    reissue(depot, "snapshot", lambda signed: signed.meta.clear(), "snapshot", "timestamp")
    refuse(reader, "New snapshot is missing info for 'targets.json'")


@pytest.mark.parametrize("role", index.REST)
def test_freeze(depot: Depot, reader: Reader, role: str) -> None:
    """An index that stands still becomes one that has expired, at those who have seen it and at those who have not."""
    reader.pull()
    index.renew(depot.site, depot.held(), keys=ONLINE, days={role: 0})
    refuse(reader, "has expired: either nobody keeps it, or somebody shows an old one")
    index.renew(depot.site, depot.held(), keys=ONLINE, days={})
    reader.pull()


def test_freeze_of_the_root(depot: Depot, reader: Reader) -> None:
    index.rotate(depot.site, depot.held(), {"timestamp": KEYS["timestamp"]}, thresholds={}, keys=EVERY_KEY,
                 days={"root": 0})  # fmt: skip
    refuse(reader, r"has expired.*root.json is expired")


@pytest.mark.parametrize("ahead", [1 << 31, 10**200])
def test_recovery_from_fast_forward(depot: Depot, reader: Reader, ahead: int, tmp_path: Path) -> None:
    """A thief of the lower keys counts far ahead; new keys count from one again, and every reader follows."""
    reader.pull()
    honest = depot.held()
    reissue(depot, "snapshot", lambda signed: setattr(signed, "version", ahead), "snapshot", "timestamp")
    reissue(depot, "timestamp", lambda signed: setattr(signed, "version", ahead), "timestamp")
    reader.refresh()
    new = {role: [role_key(role, 9)] for role in ("snapshot", "timestamp")}
    mine = [*KEYS["root"], *KEYS["targets"], *new["snapshot"], *new["timestamp"]]
    index.rotate(depot.site, honest, new, thresholds={}, keys=mine, days={})
    assert reader.refresh().least == 1
    trust.refresh(depot.site, home=depot.keeper)
    depot.publish(made(tmp_path / "2", version="2"), keys=mine)
    assert reader.pull().artifact.manifest["version"] == "2"


def test_mix_and_match(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    """Old targets under a new name, old snapshot under a new one: the digests in what names them do not fit."""
    old = later(depot, tmp_path)
    for role in ("snapshot", "targets"):
        latest = newest(depot, role)
        kept = latest.read_bytes()
        shutil.copy(old / f"2.{role}.json", latest)
        refuse(reader, "does not fit together|not what its keys signed")
        latest.write_bytes(kept)
    reader.pull()


def test_mix_of_two_depots_with_the_same_keys(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    reader.pull()
    (tmp_path / "b").mkdir()
    other = Depot(tmp_path / "b")
    shutil.rmtree(metadata(depot))
    shutil.copytree(metadata(other), metadata(depot))
    refuse(reader, "rolled back|not what its keys signed|does not fit")


WRONG = ("images/db/1/x86_64/kernel_initrd", "images/web/9/x86_64/kernel_initrd", "images/web/1/aarch64/kernel_initrd",
         "images/web/1/x86_64/uki")  # fmt: skip


@pytest.mark.parametrize("path", WRONG)
def test_wrong_software(depot: Depot, reader: Reader, path: str) -> None:
    """The right entry by another name, version, architecture or format, by who has every key that is online."""
    true = head.path_of("web", "1", "x86_64", "kernel_initrd")
    target = depot.held().targets.signed.targets[true]
    to = depot.place / head.stored_at(path, target.hashes["sha256"])
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(depot.place / head.stored_at(true, target.hashes["sha256"]), to)
    listed = index.Target(target.hashes["sha256"], target.length, {})
    index.add(depot.site, depot.held(), {path: listed}, keys=ONLINE, days={})
    _, name, version, arch, format = path.split("/")
    with pytest.raises(Problem, match=r"the depot gave \w+ '[a-z0-9_]+', where [a-z0-9_]+ was asked for"):
        reader.pull(name, version=version, arch=arch, format=format)


@pytest.mark.parametrize("path", WRONG)
def test_wrong_software_with_an_entry_that_fits(depot: Depot, reader: Reader, path: str) -> None:
    """The entry says what was asked for; the manifest that the image's key signed does not."""
    _, name, version, arch, format = path.split("/")
    true = head.path_of("web", "1", "x86_64", "kernel_initrd")
    target = depot.held().targets.signed.targets[true]
    data = (depot.place / head.stored_at(true, target.hashes["sha256"])).read_bytes()
    asked = {"name": "web", "version": "1", "arch": "x86_64", "format": "kernel_initrd"}
    publish_entry(depot, head.write(head.read(data, asked=asked)._replace(
        name=name, version=version, arch=arch, format=format)), path)  # fmt: skip
    with pytest.raises(Problem, match="the manifest is of") as caught:
        reader.pull(name, version=version, arch=arch, format=format)
    assert "was asked for" in caught.value.message


def publish_entry(depot: Depot, data: bytes, path: str) -> None:
    """Name any bytes in the index, as who has the keys can."""
    target = index.Target(sha256(data).hexdigest(), len(data), {})
    depot.site.write([(head.stored_at(path, target.sha256), data)])
    index.add(depot.site, depot.held(), {path: target}, keys=ONLINE, days={})


def test_an_image_of_another_signer_under_a_true_index(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    stranger = role_key("stranger")
    depot.publish(made(tmp_path / "3", version="3", signer=stranger), key=stranger)
    refuse(reader, "signed by key")


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_root_of_too_few_signers(depot: Depot, reader: Reader) -> None:
    """Two of three keys are needed: one, and one twice, are too few; so are two new keys that the old root has not."""

    def take_over(signed: Any) -> None:
        signed.version += 1
        signed.roles["timestamp"].keyids[:] = []
        signed.add_key(RoleKey(role_key("thief")), "timestamp")

    to = metadata(depot) / "2.root.json"
    for signers in (KEYS["root"][:1], [KEYS["root"][0]] * 2, [role_key("thief"), role_key("thief", 2)]):
        forge(metadata(depot) / "1.root.json", take_over, *signers, to=to)
        refuse(reader, r"is not signed by enough of its keys: root was signed by [01]/2 keys")
    forge(metadata(depot) / "1.root.json", take_over, *KEYS["root"][:2], to=to)
    refuse(reader, "timestamp was signed by 0/1 keys")  # two of three may: and then the old timestamp is worth nothing


def test_a_root_that_is_skipped_or_repeated(depot: Depot, reader: Reader) -> None:
    for version in (1, 3):
        forge(metadata(depot) / "1.root.json", lambda signed, version=version: setattr(signed, "version", version),
              *KEYS["root"], to=metadata(depot) / "2.root.json")  # fmt: skip
        refuse(reader, "was rolled back: .*: Expected root version 2")


@pytest.mark.parametrize("role", index.REST)
def test_rotation_midway(depot: Depot, reader: Reader, role: str, tmp_path: Path) -> None:
    """Whatever part of a rotation has been written, every reader goes on: with the old root and with the new one."""
    reader.pull()
    new = {role: [role_key(role, 2)]}
    writes: list[str] = []
    late = Reader(reader.site, tmp_path / "late").trusts(depot.root)

    def write(files: Any) -> None:
        for file in files:
            depot.site.write([file])
            writes.append(file[0])
            reader.refresh()
            Reader(reader.site, tmp_path / f"new{len(writes)}").trusts(depot.root).refresh()

    index.rotate(
        replace(depot.site, write=write), depot.held(), new, thresholds={}, keys=[*EVERY_KEY, *new[role]], days={}
    )
    assert writes[-1] == "metadata/2.root.json"
    with pytest.raises(Problem, match=f"{role} needs 1 signatures, and 0 of its keys"):
        depot.publish(made(tmp_path / "2", version="2"))
    keys = [one for name in index.REST for one in new.get(name, KEYS[name])]
    depot.publish(made(tmp_path / "2", version="2"), keys=keys)
    for one in (reader, late):
        assert one.pull().artifact.manifest["version"] == "2"


def test_a_stolen_key_is_worth_nothing_once_it_was_replaced(depot: Depot, reader: Reader) -> None:
    new = {"targets": [role_key("targets", 2)]}
    index.rotate(depot.site, depot.held(), new, thresholds={}, keys=[*EVERY_KEY, *new["targets"]], days={})
    reader.pull()
    reissue(depot, "targets", lambda signed: signed.targets.clear(), *index.REST)
    refuse(reader, "targets was signed by 0/1 keys")


def test_the_roots_own_keys_rotate(depot: Depot, reader: Reader) -> None:
    new = {"root": [role_key("root", 4), role_key("root", 5), KEYS["root"][2]]}
    with pytest.raises(Problem, match="root needs 2 signatures, and 1 of its keys"):
        index.rotate(depot.site, depot.held(), new, thresholds={}, keys=new["root"], days={})
    index.rotate(depot.site, depot.held(), new, thresholds={"root": 3}, keys=[*EVERY_KEY, *new["root"]], days={})
    reader.pull()
    assert depot.held().root.signed.roles["root"].threshold == 3


@pytest.mark.parametrize("public", SMALL_ORDER)
def test_a_key_of_small_order_is_no_key(depot: Depot, reader: Reader, public: str) -> None:
    """Even if the root's own keepers name one."""
    weak = Key(b"weakweak", bytes.fromhex(public))

    def name_weak(signed: Any) -> None:
        signed.version += 1
        signed.add_key(RoleKey(weak), "timestamp")

    forge(metadata(depot) / "1.root.json", name_weak, *KEYS["root"], to=metadata(depot) / "2.root.json")
    refuse(reader, "no public key that can be trusted|is not what its keys signed")


def raw_root(depot: Depot, change: Callable[[dict[str, Any]], object]) -> None:
    """A root that its keepers signed, with what python-tuf would not write."""
    from securesystemslib.formats import encode_canonical

    whole = json.loads((metadata(depot) / "1.root.json").read_bytes())
    whole["signed"]["version"] = 2
    change(whole["signed"])
    signed = encode_canonical(whole["signed"]).encode()
    whole["signatures"] = [
        {"keyid": roles.identifier(one), "sig": one.sign_bytes(signed).hex()} for one in KEYS["root"]
    ]
    (metadata(depot) / "2.root.json").write_text(json.dumps(whole))


def twice(signed: dict[str, Any]) -> None:
    """One key by two identifiers, which would make two signatures of it."""
    key_id = signed["roles"]["timestamp"]["keyids"][0]
    signed["keys"]["f" * 64] = signed["keys"][key_id]
    signed["roles"]["timestamp"] = {"keyids": [key_id, "f" * 64], "threshold": 2}


def rsa(signed: dict[str, Any]) -> None:
    signed["keys"]["e" * 64] = {"keytype": "rsa", "scheme": "rsassa-pss-sha256", "keyval": {"public": "..."}}


def crowd(signed: dict[str, Any]) -> None:
    key_id = signed["roles"]["timestamp"]["keyids"][0]
    signed["keys"] |= {f"{n:064x}": signed["keys"][key_id] for n in range(100)}


@pytest.mark.parametrize(
    ("change", "words"),
    [(twice, "is not what its identifier says|not what its keys"), (rsa, "not ed25519"), (crowd, "more than 64")],
)
def test_keys_that_no_root_may_name(depot: Depot, reader: Reader, change: Any, words: str) -> None:
    raw_root(depot, change)
    refuse(reader, words)
