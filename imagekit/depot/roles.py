"""Who may say what in a depot's index: TUF's roles, and imagekit's keys as the keys and signers of python-tuf.

Only ed25519, and only PyNaCl verifies: what python-tuf would use accepts keys of small order, under which signatures
fit that nobody made. https://theupdateframework.github.io/specification/latest/
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import KEY_FOR_TYPE_AND_SCHEME, Signature
from securesystemslib.signer import Key as AnyKey
from securesystemslib.signer import Signer as AnySigner

from imagekit import key as keys
from imagekit.errors import Problem
from imagekit.key import Key

ROLES = ("root", "targets", "snapshot", "timestamp")
DAYS = {"root": 365, "targets": 365, "snapshot": 90, "timestamp": 14}  # until a role's word is too old to be taken
KIND = "ed25519"
MOST_KEYS = 64  # of a root


class RoleKey(AnyKey):
    """A key as the root metadata names it, checked by PyNaCl; its identifier must be the one that follows from it."""

    def __init__(self, key: Key) -> None:
        super().__init__(identifier(key), KIND, KIND, {"public": key.public.hex()})
        self.key = key

    @classmethod
    def from_dict(cls, keyid: str, key_dict: dict[str, Any]) -> "RoleKey":
        """The key of a root's entry; an error for any that could count twice, or for everybody."""
        public = key_dict["keyval"]["public"]
        if not isinstance(public, str) or len(public) != 64:
            raise ValueError("a public key is 64 hexadecimal digits")
        found = cls(keys.from_public(bytes.fromhex(public)))
        if found.keyid != keyid:
            raise ValueError(f"the key {keyid[:80]!r} is not what its identifier says")
        return found

    def to_dict(self) -> dict[str, Any]:
        """The entry of a root."""
        return _entry(self.key)

    def verify_signature(self, signature: Signature, data: bytes) -> None:
        """Raise UnverifiedSignatureError unless this key signed the data."""
        try:
            self.key.verify_bytes(data, bytes.fromhex(signature.signature))
        except (Problem, ValueError) as error:
            raise UnverifiedSignatureError(f"not signed by {self.keyid}") from error


class RoleSigner(AnySigner):
    """Signs with a key of imagekit's key files."""

    def __init__(self, key: Key) -> None:
        self.key = key

    @property
    def public_key(self) -> RoleKey:
        """The public half."""
        return RoleKey(self.key)

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: AnyKey, secrets_handler: Any = None) -> "RoleSigner":
        """Not by address: key files are read by imagekit.key."""
        raise NotImplementedError

    def sign(self, payload: bytes) -> Signature:
        """The signature over some bytes."""
        return Signature(identifier(self.key), self.key.sign_bytes(payload).hex())


KEY_FOR_TYPE_AND_SCHEME[KIND, KIND] = RoleKey


def identifier(key: Key) -> str:
    """What TUF calls a key by: the sha256 of its entry in canonical JSON (specification, 4.2)."""
    return sha256(json.dumps(_entry(key), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_keys(metadata: Mapping[str, Any]) -> None:
    """Raise Problem for a root, parsed but not verified, that names a key of another kind, or very many."""
    signed = metadata.get("signed")
    named = signed.get("keys") if isinstance(signed, dict) else None
    found = list(named.values()) if isinstance(named, dict) else []
    if len(found) > MOST_KEYS:
        raise Problem(f"the root names {len(found)} keys, more than {MOST_KEYS}")
    for one in found:
        if not isinstance(one, dict) or (one.get("keytype"), one.get("scheme")) != (KIND, KIND):
            raise Problem("the root names a key that is not ed25519", "imagekit's depots have no others")


def read_keys(paths: Iterable[Path]) -> list[Key]:
    """The secret keys in some files, and in folders of *.key files."""
    found = []
    for path in paths:
        files = sorted(path.glob("*.key")) if path.is_dir() else [path]
        found += [key for key in map(keys.read, files) if key.seed is not None]
    if not found:
        raise Problem("no secret keys were named", "--keys names the folder that `imagekit depot init` wrote them to")
    return found


def signers(available: Sequence[Key], identifiers: Iterable[str]) -> list[RoleSigner]:
    """Those of the keys at hand that a role has."""
    wanted = set(identifiers)
    return [RoleSigner(key) for key in available if identifier(key) in wanted]


def _entry(key: Key) -> dict[str, Any]:
    return {"keytype": KIND, "keyval": {"public": key.public.hex()}, "scheme": KIND}
