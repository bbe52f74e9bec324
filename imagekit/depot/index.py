"""The index of a depot as its keepers write it: TUF metadata, by python-tuf.

Every change is made under the site's lock: what is there is verified, then targets, snapshot and root are written under
names that nobody reads yet, and the timestamp last, which makes all of it visible at once.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, NamedTuple, TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from imagekit import strict
from imagekit.depot import roles
from imagekit.errors import Problem, unknown
from imagekit.key import Key
from imagekit.site import Missing, Site

LIMITS = {"root": 512_000, "targets": 5_000_000, "snapshot": 2_000_000, "timestamp": 16_384}  # bytes, python-tuf's own
TIMESTAMP = "metadata/timestamp.json"
REST = ("targets", "snapshot", "timestamp")  # each is named by the one behind it
ROTATIONS = 256  # roots that are followed at a time
PLAIN = JSONSerializer(compact=True, validate=True)
Kind = TypeVar("Kind", Root, Targets, Snapshot, Timestamp)


class Held(NamedTuple):
    """An index whose signatures were verified."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]


class Target(NamedTuple):
    """A file that the index answers for."""

    sha256: str
    size: int
    about: Mapping[str, Any]  # what the index says of it beside


def create(
    site: Site, keys: Mapping[str, Sequence[Key]], *, thresholds: Mapping[str, int], days: Mapping[str, int]
) -> bytes:
    """A new, empty index; gives the root that is to be handed to everybody who shall trust it."""
    with site.lock():
        if is_at(site):
            raise Problem(f"{site.place} is a depot already", "`imagekit depot keys` shows who keeps it")
        root = Metadata(Root(expires=_until("root", days), consistent_snapshot=True))
        for role in roles.ROLES:
            _assign(root.signed, role, keys[role], thresholds.get(role, 1))
        held = Held(root, Metadata(Targets()), Metadata(Snapshot()), Metadata(Timestamp()))
        available = [key for some in keys.values() for key in some]
        text = _signed(root, "root", available, need=[root.signed])
        site.write([("metadata/1.root.json", text)])
        _write(site, held, REST, keys=available, days=days, step=0)
    return text


def is_at(site: Site) -> bool:
    """Whether a site has an index, whoever keeps it."""
    try:
        site.read(TIMESTAMP, LIMITS["timestamp"])
    except Missing:
        return False
    return True


def load(site: Site, trusted: bytes, *, least: int = 0, had: bytes = b"") -> Held:
    """The index as it is, verified but not asked whether it has expired: keepers are those who mend that.

    least: the version of the newest timestamp that this keeper has seen; had: targets metadata that this keeper had,
    which is not read again if the snapshot says that it is still the newest.
    """
    try:
        root = _newest_root(site, trusted)
        timestamp: Metadata[Timestamp] = _verified(site, TIMESTAMP, "timestamp", root.signed)
        meta = timestamp.signed.snapshot_meta
        snapshot: Metadata[Snapshot] = _verified(
            site, f"metadata/{meta.version}.snapshot.json", "snapshot", root.signed, meta
        )
        meta = snapshot.signed.meta["targets.json"]
        targets: Metadata[Targets] = _verified(
            site, f"metadata/{meta.version}.targets.json", "targets", root.signed, meta, had
        )
    except (RepositoryError, KeyError, ValueError) as error:
        raise Problem(f"the index of {site.place} is not what its keys signed: {error}") from error
    if timestamp.signed.version < least:
        raise Problem(
            f"{site.place} was rolled back: its timestamp is {timestamp.signed.version}, and {least} was seen before"
        )
    return Held(root, targets, snapshot, timestamp)


def add(
    site: Site, held: Held, targets: Mapping[str, Target], *, keys: Sequence[Key], days: Mapping[str, int]
) -> bytes:
    """The index with these files too, signed and written; to be called under the site's lock. Gives its targets."""
    signed = held.targets.signed
    for path, target in targets.items():
        about = {"custom": {**target.about, "since": signed.version + 1}}
        signed.targets[path] = TargetFile(target.size, {"sha256": target.sha256}, path, about)
    return _write(site, held, REST, keys=keys, days=days)[0]


def renew(site: Site, held: Held, *, keys: Sequence[Key], days: Mapping[str, int]) -> tuple[str, ...]:
    """The same index, signed anew before it expires: the timestamp, and what above it the keys are at hand for."""
    root, has = held.root.signed, set(map(roles.identifier, keys))
    able = [role for role in REST if len(has & set(root.roles[role].keyids)) >= root.roles[role].threshold]
    renewed = REST if len(able) == len(REST) else REST[1:] if "snapshot" in able else REST[2:]
    _write(site, held, renewed, keys=keys, days=days)
    return renewed


def remove(site: Site, held: Held, paths: Sequence[str], *, keys: Sequence[Key], days: Mapping[str, int]) -> None:
    """The index without these files; their blobs stay, for other images may have them too."""
    for path in paths:
        if held.targets.signed.targets.pop(path, None) is None:
            raise unknown("file of the index", path, held.targets.signed.targets)
    _write(site, held, REST, keys=keys, days=days)


def rotate(
    site: Site, held: Held, new: Mapping[str, Sequence[Key]], *, thresholds: Mapping[str, int], keys: Sequence[Key],
    days: Mapping[str, int]
) -> None:  # fmt: skip
    """Roles in the hands of other keys: a root more, signed by the old root's keys and by the new one's.

    Where enough of the old keys are at hand, what they said is signed by old and new ones beforehand, so that no
    reader, whichever root it has, finds it unsigned. Where they are not (they were stolen), the root comes first.
    """
    old = held.root.signed
    root = Metadata(Root.from_dict(deepcopy(old.to_dict())))
    for role, some in new.items():
        for key_id in list(old.roles[role].keyids):
            root.signed.revoke_key(key_id, role)
        _assign(root.signed, role, some, thresholds.get(role, old.roles[role].threshold))
    root.signed.version += 1
    root.signed.expires = _until("root", days)
    text = _signed(root, "root", keys, need=[old, root.signed])
    following, has = held._replace(root=root), set(map(roles.identifier, keys))
    stolen = {role for role in new if len(has & set(old.roles[role].keyids)) < old.roles[role].threshold}
    changed = next((REST[at:] for at, role in enumerate(REST) if role in new), ())
    if changed and not stolen:
        _write(site, following, changed, keys=keys, days=days, also=old)
    site.write([(f"metadata/{root.signed.version}.root.json", text)])
    site.settle()
    if changed and stolen:
        _restart(following, stolen)
        _write(site, following, changed, keys=keys, days=days)


def custom(target: TargetFile) -> Mapping[str, Any]:
    """What the index says of a file beside its size and digest."""
    return target.custom if isinstance(target.custom, dict) else {}


def listed(targets: bytes) -> dict[str, Target]:
    """Every file of targets metadata that was verified before."""
    signed = Metadata[Targets].from_bytes(targets).signed
    return {path: Target(one.hashes["sha256"], one.length, custom(one)) for path, one in signed.targets.items()}


def _restart(held: Held, stolen: set[str]) -> None:
    """Count from the beginning again where a thief may have run ahead (specification, 5.3.11).

    What pins a role's version at readers is the metadata below it, which they drop with the stolen key.
    """
    for role, pinned_by in (("targets", "snapshot"), ("snapshot", "timestamp"), ("timestamp", "timestamp")):
        if pinned_by in stolen and not (role == "targets" and "targets" not in stolen):
            getattr(held, role).signed.version = 0


def _assign(root: Root, role: str, keys: Sequence[Key], threshold: int) -> None:
    distinct = {roles.identifier(key): key for key in keys}
    if not 0 < threshold <= len(distinct):
        raise Problem(f"{role}: {threshold} signatures are to be needed, and there are {len(distinct)} keys")
    for key in distinct.values():
        root.add_key(roles.RoleKey(key), role)
    root.roles[role].threshold = threshold


def _newest_root(site: Site, trusted: bytes) -> Metadata[Root]:
    """The last of the roots that follow from the trusted one, each signed by its predecessor's keys and its own."""
    root: Metadata[Root] = _parsed(trusted, "root")
    root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    for _ in range(ROTATIONS):
        version = root.signed.version + 1
        try:
            following: Metadata[Root] = _parsed(site.read(f"metadata/{version}.root.json", LIMITS["root"]), "root")
        except Missing:
            break
        for judge in (root.signed, following.signed):
            judge.verify_delegate("root", following.signed_bytes, following.signatures)
        if following.signed.version != version:
            raise ValueError(f"{version}.root.json has version {following.signed.version}")
        root = following
    return root


def _verified(site: Site, path: str, role: str, root: Root, meta: MetaFile | None = None, had: bytes = b"") -> Any:
    is_it = meta is not None and (meta.hashes or {}).get("sha256") == sha256(had).hexdigest()
    data = had if is_it else site.read(path, LIMITS[role])
    if meta:
        meta.verify_length_and_hashes(data)
    metadata: Metadata[Any] = _parsed(data, role)
    root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    if meta and metadata.signed.version != meta.version:
        raise ValueError(f"{path} has version {metadata.signed.version}")
    return metadata


def _parsed(data: bytes, role: str) -> Metadata[Any]:
    roles.check_keys(strict.parse(data, what=f"{role} metadata", limit=LIMITS[role]))
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    if metadata.signed.type != role:
        raise ValueError(f"it is {metadata.signed.type}, and {role} was asked for")
    return metadata


def _write(
    site: Site, held: Held, changed: Sequence[str], *, keys: Sequence[Key], days: Mapping[str, int],
    also: Root | None = None, step: int = 1
) -> list[bytes]:  # fmt: skip
    """Sign what has changed, then write it, the timestamp last; nothing is written unless all could be signed."""
    files = []
    for role in changed:
        metadata: Metadata[Any] = getattr(held, role)
        metadata.signed.version += step
        metadata.signed.expires = _until(role, days)
        text = _signed(metadata, role, keys, need=[held.root.signed, *([also] if also else [])])
        meta = MetaFile(metadata.signed.version, len(text), {"sha256": sha256(text).hexdigest()})
        if role == "targets":
            held.snapshot.signed.meta["targets.json"] = meta
        if role == "snapshot":
            held.timestamp.signed.snapshot_meta = meta
        files.append((TIMESTAMP if role == "timestamp" else f"metadata/{meta.version}.{role}.json", text))
    site.write(files[:-1])
    site.settle()
    site.write(files[-1:])
    site.settle()
    return [text for _, text in files]


def _signed(metadata: Metadata[Any], role: str, keys: Sequence[Key], *, need: Sequence[Root]) -> bytes:
    """The metadata, signed by the keys that these roots want; raises Problem when too few of them are at hand."""
    metadata.signatures.clear()
    for signer in roles.signers(keys, {key_id for root in need for key_id in root.roles[role].keyids}):
        metadata.sign(signer, append=True)
    text = metadata.to_bytes(PLAIN)
    whole: Metadata[Any] = Metadata.from_bytes(text)
    for root in need:
        try:
            root.verify_delegate(role, whole.signed_bytes, whole.signatures)
        except RepositoryError as error:
            missing = [key_id[:16] for key_id in root.roles[role].keyids if key_id not in whole.signatures]
            raise Problem(
                f"{role} needs {root.roles[role].threshold} signatures, and "
                f"{len(root.roles[role].keyids) - len(missing)} of its keys are at hand",
                f"name secret keys with --keys; those that are missing: {', '.join(missing)}",
            ) from error
    return text


def _until(role: str, days: Mapping[str, int]) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days.get(role, roles.DAYS[role]))
