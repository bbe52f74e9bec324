"""Boot keys: a folder of the keys by which firmware and TPMs believe an appliance; never part of an image.

    PK.key, PK.crt      who may change KEK: offline, in a safe
    KEK.key, KEK.crt    who may change db: offline too, but at hand when a db key is replaced
    db.key, db.crt      signs the programs that the firmware starts: needed by every build
    db-*.crt            further certificates that are enrolled with db.crt: of the next key, before it signs
    pcr.key, pcr.pub    signs the states of a TPM (PCR 11) in which a disk opens: needed by every build that seals one
    owner               a GUID, by which firmware tells whose keys these are

Keys are RSA-2048 in PEM, which is what every firmware and every TPM 2.0 takes; a SecureBoot or a Seal may name another
pair of the folder than db and pcr.
"""

import os
import re
import stat
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from imagekit import options, rsa
from imagekit.errors import Problem, RigProblem
from imagekit.rsa import Certificate, Pair, Public, Signer

MAX_FILE = 64 << 10  # bytes
TEST_MARK = b"TEST KEY"  # in front of a key that everybody has
OPTION = "boot-keys"
OWNER = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
YEARS = 30  # firmware does not look at the hour, and a machine on a stranger's premises has no other way to be kept
SIGNATURES = "signatures"  # a file in place of the private keys
NONE = bytes(rsa.SIZE)
PUBLIC = (".crt", ".pub")
MOST_SPARE = 16  # db-*.crt


class Role(NamedTuple):
    """What a key of a folder is for, and what else than the private key there is of it."""

    beside: str  # the suffix of its public half
    what: str
    is_offline: bool


ROLES = {
    "PK": Role(".crt", "the platform's key: says who may change KEK, and turns Secure Boot off", True),
    "KEK": Role(".crt", "the key exchange key: says which keys are in db and dbx", True),
    "db": Role(".crt", "signs the programs that the firmware starts", False),
    "pcr": Role(".pub", "signs the states of the TPM in which a sealed disk opens", False),
}


@dataclass(frozen=True)
class BootKeys:
    """A folder of boot keys; each is read and judged when it is asked for, so that those offline may be away."""

    folder: Path

    def pair(self, name: str = "db") -> Pair:
        """A certificate and who signs by it. Raises Problem unless they belong together and are valid today."""
        found, by = self.certificate(name), self.signer(name)
        if found.public != by.public:
            raise Problem(
                f"{self.folder / name}.key and {name}.crt do not belong together",
                "the certificate is of another key: copy both from where they were made",
            )
        return Pair(found, by)

    def signer(self, name: str = "pcr") -> Signer:
        """A private key. Raises Problem when others may read it, or when it is no RSA-2048."""
        path = self.folder / f"{name}.key"
        if (self.folder / SIGNATURES).exists():
            return self._borrowing(name)
        text, mode = self._read(f"{name}.key")
        if mode & 0o077 and TEST_MARK not in text:
            hint = f"chmod 600 {path}, or make new keys"
            raise Problem(f"{path} can be read by others (mode {mode & 0o777:04o})", hint)
        return rsa.signer(text, what=str(path))

    def _borrowing(self, name: str) -> Signer:
        """Who signs by what was signed before (borrowed.py), or by zeros what was not."""
        public = self.certificate(name).public if (self.folder / f"{name}.crt").exists() else self.public(name)
        known = [bytes.fromhex(line) for line in self._read(SIGNATURES)[0].decode().split()]
        fitting = lambda digest: next((one for one in known if public.verify(digest, one)), NONE)  # noqa: E731
        return Signer(public, fitting, is_blind=True)

    def certificate(self, name: str = "db") -> Certificate:
        """A certificate. Raises Problem when it is not valid today, or when its key is no RSA-2048."""
        path = self.folder / f"{name}.crt"
        found, now = rsa.certificate(self._read(f"{name}.crt")[0], what=str(path)), datetime.now(UTC)
        if now > found.ends:
            raise Problem(f"{path} expired on {found.ends:%Y-%m-%d}", "docs/secure-boot.md tells how a key is replaced")
        if now < found.begins:
            raise Problem(f"{path} is not valid before {found.begins:%Y-%m-%d %H:%M} UTC", "is the clock right?")
        return found

    def public(self, name: str = "pcr") -> Public:
        """A public key. Raises Problem when it is no RSA-2048."""
        return rsa.public(self._read(f"{name}.pub")[0], what=str(self.folder / f"{name}.pub"))

    @property
    def db(self) -> tuple[Certificate, ...]:
        """Every certificate that is enrolled in db: of the key that signs, and of those that come or go."""
        spare = sorted(path.stem for path in self.folder.glob("db-*.crt"))
        if len(spare) > MOST_SPARE:
            raise Problem(f"{self.folder} has {len(spare)} certificates db-*.crt", f"at most {MOST_SPARE} are enrolled")
        return tuple(self.certificate(name) for name in ("db", *spare))

    @property
    def owner(self) -> str:
        """The GUID of whose keys these are."""
        text = self._read("owner")[0].decode("utf-8", "replace").strip().lower()
        if not OWNER.fullmatch(text):
            raise Problem(f"{self.folder / 'owner'} is no GUID", "as in 8be4df61-93ca-11d2-aa0d-00e098032b8c")
        return text

    @property
    def files(self) -> list[Path]:
        """The public halves that lie here, and the folder, whose times tell of files that came or went."""
        return [self.folder, *sorted(p for p in self.folder.glob("*") if p.suffix in PUBLIC or p.name == "owner")]

    @property
    def digest(self) -> str:
        """SHA-256 of the public halves: who builds or enrols with other keys gets something else."""
        names = [path.name for path in self.files[1:]]
        return sha256(repr([(name, self._read(name)[0]) for name in names]).encode()).hexdigest()

    def _read(self, name: str) -> tuple[bytes, int]:
        """(content, mode) of a file of the folder."""
        path = self.folder / name
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo would be waited for
            with open(handle, "rb") as file:
                mode = os.fstat(handle).st_mode
                data = file.read(MAX_FILE + 1) if stat.S_ISREG(mode) else b""
        except FileNotFoundError:
            raise Problem(f"there is no boot key {path}", self._known()) from None
        except OSError as error:
            raise Problem(f"cannot read the boot key {path}: {error.strerror}") from error
        if not stat.S_ISREG(mode) or len(data) > MAX_FILE:
            raise Problem(f"{path} is no boot key: it is no file, or larger than one can be")
        return data, mode

    def _known(self) -> str:
        """What there is in place of a file that there is not."""
        if not self.folder.is_dir():
            return f"`imagekit boot-keys {self.folder}` makes a folder of them"
        names = sorted(path.name for path in self.folder.iterdir() if path.suffix in (".key", ".crt", ".pub"))
        return f"there: {', '.join(names) or 'none'}"


def chosen(given: Any = None, *, folder: Path | None = None) -> BootKeys:
    """The boot keys that the option names. Raises Problem when nobody said which."""
    found = options.lookup(OPTION, given, folder=folder)
    if not found:
        raise Problem(
            "no boot keys: nobody has said by which the firmware shall believe this image",
            "--boot-keys DIR, IMAGEKIT_BOOT_KEYS or boot-keys in [tool.imagekit]; `imagekit boot-keys DIR` makes some",
        )
    return BootKeys(Path(found))


def make(
    folder: Path, *, name: str = "", mark: str = "", begins: datetime | None = None, years: int = YEARS
) -> BootKeys:
    """New keys in a folder that is made for them (mode 0700, files 0600); raises Problem when it has some already.

    name: whose they are, in the certificates; mark: a line in front of every private key; begins: else yesterday.
    """
    begins = begins or datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=1)
    ends = begins.replace(year=begins.year + years, day=min(begins.day, 28))
    made = {"owner": f"{uuid.uuid4()}\n"}
    for role, (beside, _, _) in ROLES.items():
        text = rsa.new()
        by = rsa.signer(text.encode())
        made[f"{role}.key"] = mark + text
        made[f"{role}{beside}"] = by.public.pem
        if beside == ".crt":
            whole = rsa.self_signed(by, name=f"{name} {role}".strip(), begins=begins, ends=ends)
            made[f"{role}.crt"] = rsa.pem("CERTIFICATE", whole)
    _write(folder, made)
    return BootKeys(folder)


def _write(folder: Path, made: dict[str, str]) -> None:
    """All of the files, none of them over another."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if taken := sorted(name for name in made if os.path.lexists(folder / name)):
            raise Problem(f"{folder} has boot keys already ({taken[0]}): none is overwritten", "name another folder")
        for name, text in made.items():
            handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(handle, "w", encoding="ascii") as file:
                file.write(text)
    except OSError as error:
        raise RigProblem(f"cannot write boot keys to {folder}: {error.strerror}", "name another folder") from error
