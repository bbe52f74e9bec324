"""Key: ed25519 sign and verify, in minisign's file formats, so that minisign and signify check what imagekit signs.

File formats: https://jedisct1.github.io/minisign/ ("Ed": pure ed25519 over the file; the trusted comment is signed
together with the signature). Only libsodium verifies: it refuses the weak public keys that other libraries accept.
"""

import os
import stat
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path

from imagekit import ed25519
from imagekit.errors import Problem

SECRET_COMMENT = "untrusted comment: imagekit secret key, not encrypted"
MADE = "signature "  # begins a line of a key file that has signatures in place of the secret key (borrowed.py)
MAX_FILE = 64 << 10  # bytes
TEST_MARK = "TEST KEY"  # in the comment of a key that everybody has


@dataclass(frozen=True)
class Key:
    """A public key, and the secret one where it was read from; its repr shows the identifier only."""

    number: bytes  # 8 bytes, minisign's key number
    public: bytes  # 32 bytes
    seed: bytes | None = field(default=None, compare=False)  # 32 bytes, RFC 8032 section 5.1.5
    comment: str = field(default="", compare=False)
    made: tuple[bytes, ...] = field(default=(), compare=False)  # signatures of the secret key, in its place

    def __repr__(self) -> str:
        return f"<Key {self.id}>"

    @property
    def id(self) -> str:
        """The key number as minisign prints it."""
        return self.number[::-1].hex().upper()

    @property
    def is_for_tests(self) -> bool:
        """Whether the key's own comment says that everybody has it."""
        return TEST_MARK in self.comment

    def public_text(self) -> str:
        """The public key as the text of a .pub file."""
        comment = f"untrusted comment: imagekit public key {self.id}" + (f" {TEST_MARK}" if self.is_for_tests else "")
        return f"{comment}\n{_base64(b'Ed' + self.number + self.public)}\n"

    def lent_text(self, made: Iterable[bytes]) -> str:
        """The text of a key file that signs by these signatures what they fit, and all else by zeros."""
        first, record = self.public_text().splitlines()
        return "\n".join([first, *(f"{MADE}{one.hex()}" for one in made), record, ""])

    def __reduce__(self) -> str:
        raise TypeError("a Key does not travel: hand on the path of its file")

    def sign(self, data: bytes, *, comment: str) -> str:
        """A detached signature as the text of a .minisig file; `comment` is signed too."""
        signature = self.sign_bytes(data)
        whole = self.sign_bytes(signature + comment.encode())
        return (
            f"untrusted comment: signature by imagekit key {self.id}\n{_base64(b'Ed' + self.number + signature)}\n"
            f"trusted comment: {comment}\n{_base64(whole)}\n"
        )

    def verify(self, data: bytes, signature: str) -> str:
        """The trusted comment of a signature that this key made over `data`; raises Problem for any other."""
        number, raw, comment, whole = _parse_signature(signature)
        if number != self.number:
            raise Problem(
                f"signed by key {number[::-1].hex().upper()}, not by {self.id}", "name the signer's key with --key"
            )
        self.verify_bytes(data, raw)
        self.verify_bytes(raw + comment.encode(), whole)
        return comment

    def sign_bytes(self, data: bytes) -> bytes:
        """The bare signature over `data`, 64 bytes; for formats that say in the signed bytes what they are."""
        if self.made:
            return next((one for one in self.made if ed25519.verify(self.public, data, one)), bytes(64))
        if self.seed is None:
            raise Problem(f"key {self.id} is a public key: it verifies, it cannot sign", "name the secret key's file")
        return ed25519.sign(self.seed, data)

    def sign_prehashed(self, digest: bytes, *, context: bytes) -> bytes:
        """The bare signature of Ed25519ph over what has this SHA-512, in a context."""
        if self.seed is None:
            raise Problem(f"key {self.id} is a public key: it verifies, it cannot sign", "name the secret key's file")
        return ed25519.sign_prehashed(self.seed, digest, context=context)

    def verify_bytes(self, data: bytes, signature: bytes) -> bytes:
        """`data`, if this is its bare signature by this key; raises Problem for any other."""
        if not ed25519.verify(self.public, data, signature):
            raise Problem("the signature does not fit: the bytes are not the ones that were signed")
        return data


def new(comment: str = "") -> Key:
    """A new secret key."""
    return from_seed(os.urandom(32), comment=comment)


def from_seed(seed: bytes, *, comment: str = "") -> Key:
    """The key of a 32-byte seed; its number follows from the public key."""
    public = ed25519.public_of(seed)
    return Key(sha256(public).digest()[:8], public, seed, comment)


def from_public(public: bytes) -> Key:
    """The key of 32 public bytes; raises Problem for one of small order, under which anybody's signature may fit."""
    if not ed25519.is_strong(public):
        raise Problem(f"{public[:32].hex() or 'nothing'} is no public key that can be trusted", "ed25519 has 32 bytes")
    return Key(sha256(public).digest()[:8], public)


def default_path() -> Path:
    """Where a user's own secret key lies (XDG_CONFIG_HOME)."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "imagekit" / "imagekit.key"


def save(key: Key, path: Path) -> None:
    """Write a secret key (mode 0600, never over an existing file) and its public half beside it as .pub."""
    if key.seed is None:
        raise Problem("there is no secret key to save")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise Problem(f"{path} exists: a key is never overwritten", "move it away, or name another file") from None
    with open(handle, "w") as file:
        file.write(f"{SECRET_COMMENT} {key.comment}".rstrip() + f"\n{_base64(_secret_record(key))}\n")
    path.with_suffix(".pub").write_text(key.public_text())


def read(path: Path) -> Key:
    """The key in a file, secret or public; a secret one that others may read is refused."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a fifo would be waited for
        with open(handle, "rb") as file:
            mode = os.fstat(handle).st_mode
            if not stat.S_ISREG(mode):
                raise Problem(f"{path} is no key: it is no file")
            raw = file.read(MAX_FILE + 1)
        text = raw.decode()
    except FileNotFoundError:
        raise Problem(f"there is no key {path}", f"make one with `imagekit key new {path}`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"cannot read the key {path}: {error}") from error
    if len(raw) > MAX_FILE:
        raise Problem(f"{path} is no key: it is larger than one can be")
    key = parse(text, name=str(path))
    if key.seed is not None and mode & 0o077 and not key.is_for_tests:
        raise Problem(f"{path} can be read by others (mode {mode & 0o777:04o})", f"chmod 600 {path}, or make a new key")
    return key


def ring(paths: Sequence[Path]) -> list[Key]:
    """The keys of key files and of folders of public keys (*.pub): who is trusted."""
    found: list[Key] = []
    for path in paths:
        files = sorted(path.glob("*.pub")) if path.is_dir() else [path]
        if not files:
            raise Problem(f"there is no public key in {path}", "a keyring is a folder of .pub files")
        found += map(read, files)
    return found


def signatures(text: str) -> tuple[bytes, bytes]:
    """Both signatures of a .minisig file, which may be anybody's."""
    _, first, _, whole = _parse_signature(text)
    return first, whole


def signer(keys: Sequence[Key], data: bytes, signature: str) -> Key:
    """Which of the trusted keys made this signature over `data`; raises Problem if none did."""
    number = _parse_signature(signature)[0]
    own = [key for key in keys if key.number == number]
    if not own:
        raise Problem(
            f"signed by key {number[::-1].hex().upper()}, which is not trusted",
            f"trusted: {', '.join(key.id for key in keys) or 'none'}",
        )
    problems = []
    for key in own:  # anybody can give a key another one's number
        try:
            key.verify(data, signature)
            return key
        except Problem as problem:
            problems.append(problem)
    raise problems[0]


def parse(text: str, *, name: str = "key") -> Key:
    """The key in the text of a key file."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    comment = lines[0] if len(lines) > 1 else ""
    try:
        raw = b64decode(lines[-1], validate=True) if lines else b""
    except ValueError as error:
        raise Problem(f"{name} is not a key: {error}", "minisign's key files are what is read") from error
    if len(raw) == 42 and raw[:2] == b"Ed":
        made = [line.removeprefix(MADE) for line in lines[1:-1] if line.startswith(MADE)]
        return Key(raw[2:10], raw[10:], comment=comment, made=_signatures(made, name))
    if len(raw) == 158 and raw[:2] == b"Ed":
        return _from_secret_record(raw, comment, name)
    raise Problem(f"{name} is not a key: {len(raw)} bytes", "a public key has 42, minisign's secret key 158")


def _signatures(lines: Sequence[str], name: str) -> tuple[bytes, ...]:
    try:
        return tuple(bytes.fromhex(line) for line in lines)
    except ValueError as error:
        raise Problem(f"{name} is not a key: {error}") from error


def _secret_record(key: Key) -> bytes:
    """minisign's secret key, without encryption (its -W): kdf all zero, checksum BLAKE2b-256 over Ed, number, key."""
    assert key.seed is not None
    body = key.number + key.seed + key.public
    checksum = blake2b(b"Ed" + body, digest_size=32).digest()
    return b"Ed" + b"\0\0" + b"B2" + bytes(32 + 8 + 8) + body + checksum


def _from_secret_record(raw: bytes, comment: str, name: str) -> Key:
    if raw[2:4] != b"\0\0":
        raise Problem(f"{name} is encrypted", "imagekit reads keys without a password; `minisign -C -W` removes it")
    number, seed, public, checksum = raw[54:62], raw[62:94], raw[94:126], raw[126:]
    if not any(checksum):  # minisign -W writes none (0.11), so compare the two halves of the key
        is_whole = from_seed(seed).public == public
    else:
        is_whole = blake2b(b"Ed" + raw[54:126], digest_size=32).digest() == checksum
    if not is_whole:
        raise Problem(f"{name} is damaged: its checksum does not fit")
    return Key(number, public, seed, comment)


def _parse_signature(text: str) -> tuple[bytes, bytes, str, bytes]:
    lines = text.splitlines()
    if len(lines) != 4 or not lines[2].startswith("trusted comment: "):
        raise Problem("not a signature: a minisign signature has four lines")
    try:
        first, whole = b64decode(lines[1], validate=True), b64decode(lines[3], validate=True)
    except ValueError as error:
        raise Problem(f"not a signature: {error}") from error
    if len(first) != 74 or len(whole) != 64 or first[:2] != b"Ed":
        raise Problem("not a signature of the kind Ed (pure ed25519)", "sign with imagekit, or with minisign -l")
    if (_base64(first), _base64(whole)) != (lines[1], lines[3]):
        raise Problem("not a signature: its base64 has bits to spare (RFC 4648, section 3.5)")
    return first[2:10], first[10:], lines[2].removeprefix("trusted comment: "), whole


def _base64(raw: bytes) -> str:
    return b64encode(raw).decode()
