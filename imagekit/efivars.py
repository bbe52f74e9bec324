"""UEFI's variables of Secure Boot: whose keys firmware believes, and signed updates of them.

Source: UEFI Specification 2.10, 8.2.2 (EFI_VARIABLE_AUTHENTICATION_2), 32.3 (who may change which) and 32.4.1
(EFI_SIGNATURE_LIST).
"""

import struct
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from hashlib import sha256

from imagekit import der, pkcs7
from imagekit.bootkeys import BootKeys
from imagekit.rsa import Certificate, Pair

GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le  # EFI_GLOBAL_VARIABLE
SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f").bytes_le  # EFI_IMAGE_SECURITY_DATABASE_GUID
X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072").bytes_le  # EFI_CERT_X509_GUID
HASH = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328").bytes_le  # EFI_CERT_SHA256_GUID
PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7").bytes_le  # EFI_CERT_TYPE_PKCS7_GUID
VENDORS = {"PK": GLOBAL, "KEK": GLOBAL, "db": SECURITY, "dbx": SECURITY}
SIGNERS = {"PK": "PK", "KEK": "PK", "db": "KEK", "dbx": "KEK"}
ATTRIBUTES = 0x27  # kept, for boot services and the running system, changed by who signs with a time
NOTHING = sha256(b"").digest()  # a hash that no program has: dbx exists, and revokes nothing
NOBODY = uuid.UUID("a0baa8a3-041d-48a8-bc87-c36d121b5e3d").bytes_le  # who enrols by default, to virt-firmware
REVISION, GUID_TYPE = 0x0200, 0x0EF1  # of WIN_CERTIFICATE


def contents(keys: BootKeys) -> dict[str, bytes]:
    """What the variables of a machine hold that believes these keys, as they are written into ours."""
    believed = {"PK": [keys.certificate("PK")], "KEK": [keys.certificate("KEK")], "db": keys.db}
    found = {name: certificates(some, owner=keys.owner) for name, some in believed.items()}
    return {**found, "dbx": _list(HASH, NOBODY + NOTHING)}


def certificates(some: Sequence[Certificate], *, owner: str) -> bytes:
    """A signature database: a list for each certificate, because their sizes differ."""
    return b"".join(_list(X509, _owner(owner) + each.whole) for each in some)


def update(name: str, data: bytes, pair: Pair, *, at: datetime) -> bytes:
    """A variable's new content, which firmware takes when `pair` may change it, and it is newer than what it has."""
    time = _time(at)
    signed = _name(name) + VENDORS[name] + struct.pack("<I", ATTRIBUTES) + time + data
    said = pkcs7.attribute(pkcs7.SIGNING_TIME, der.make(der.UTC_TIME, f"{at:%y%m%d%H%M%SZ}".encode()))
    signature = pkcs7.signed_data(pair, signed, kind=pkcs7.DATA, more=[said], is_detached=True)
    row = struct.pack("<IHH", 8 + len(PKCS7) + len(signature), REVISION, GUID_TYPE) + PKCS7
    return time + row + signature + data


def enrolment(keys: BootKeys, *, at: datetime, revoked: Sequence[Certificate] = ()) -> dict[str, bytes]:
    """Files by which a machine's own menu, or systemd-boot, enrols these keys: as .auth, .esl and .cer.

    noPK.auth takes PK away again, and so turns Secure Boot off; dbx.auth is there where certificates are revoked.
    Raises Problem where PK.key or KEK.key is not there.
    """
    found, files = contents(keys), {}
    found["dbx"] += certificates(revoked, owner=keys.owner)
    for name, by in SIGNERS.items():
        if name == "dbx" and not revoked:
            continue  # there is nothing to tell
        files[f"{name}.auth"] = update(name, found[name], keys.pair(by), at=at)
        files[f"{name}.esl"] = found[name]
    cers = {f"{name}.cer": keys.certificate(name).whole for name in ("PK", "KEK", "db")}
    later = at + timedelta(seconds=1)  # what is not newer than PK itself is refused (8.2.2)
    return {**files, **cers, "noPK.auth": update("PK", b"", keys.pair("PK"), at=later)}


def _name(name: str) -> bytes:
    """A variable's name, as it is signed: without the zero that ends it (8.2.2)."""
    return name.encode("utf-16-le")


def _time(at: datetime) -> bytes:
    """EFI_TIME (8.3)."""
    return struct.pack("<HBBBBBxIhBx", at.year, at.month, at.day, at.hour, at.minute, at.second, 0, 0, 0)


def _list(kind: bytes, entry: bytes) -> bytes:
    return kind + struct.pack("<III", 28 + len(entry), 0, len(entry)) + entry


def _owner(guid: str) -> bytes:
    return uuid.UUID(guid).bytes_le
