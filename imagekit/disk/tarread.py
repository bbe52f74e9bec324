"""A strict and fast reader of tars, for unpacking: ustar, PAX records, GNU long names, the tar of 1979.

What tar programs read in different ways is refused rather than guessed at: a size that PAX record and header do not
agree on, two names for one member, a global name, sparse files, a name that ends early, an archive that ends early or
goes on after its end. Names are bytes and stay so. It knows no Tree, and imports nothing that costs time: what runs an
image waits for it.
"""

from collections.abc import Iterator
from struct import Struct

from imagekit.errors import Problem

BLOCK = 512
ZEROS = bytes(BLOCK)
MAX_NAME, MAX_PART, MAX_DEPTH = 4096, 255, 64
MAX_RECORDS = 1 << 20  # bytes of the PAX records of one member
MAX_REST = 16 << 20  # bytes of zeros at the end
MAX_SIZE = 1 << 43
MAX_TIME = 1 << 35  # seconds; what file systems can hold ends in 2446
MAX_ID = (1 << 32) - 2  # one more means "leave it" to chown(2)
OVERFLOWN = 0o77777777777  # the largest size that a header holds in octal digits
FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
KINDS = {b"\0": FILE, b"7": FILE, **{kind: kind for kind in (FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO)}}
WORDS = {FILE: "file", HARDLINK: "hard link", SYMLINK: "link", DIR: "folder", FIFO: "fifo"}  # else a device
MAGICS = (b"ustar\x0000", b"ustar  \0", bytes(8))  # POSIX.1-1988, GNU, and the tar of 1979
XATTR = b"SCHILY.xattr."
PASSED_OVER = {b"atime", b"ctime", b"comment", b"uname", b"gname", b"charset", b"hdrcharset"}  # pax, "Extended Header"
VENDORS = (b"LIBARCHIVE.", b"NODETAR.", b"SCHILY.", b"RHT.", b"MSWINDOWS.")  # what they add is hints
USED = {b"path", b"linkpath", b"size", b"mtime", b"uid", b"gid"}
_CONTROLS = bytes((*range(32), 127))
_HEAD = Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")


class Member:
    """One entry of an archive; the bytes of a file come next."""

    __slots__ = ("device", "gid", "kind", "mode", "mtime", "name", "size", "target", "uid", "xattrs")

    def __init__(self, name: bytes, kind: bytes, mode: int, uid: int, gid: int) -> None:
        self.name = name  # relative, without ./ and trailing slash; empty for the root
        self.kind = kind
        self.mode, self.uid, self.gid = mode & 0o7777, uid, gid
        self.size = self.mtime = 0  # mtime in nanoseconds
        self.target = b""  # of a link its text, of a hard link a name like `name`
        self.device = (0, 0)
        self.xattrs: dict[bytes, bytes] = {}

    def take_over(self, other: "Member") -> None:
        """Become like another one of the same name."""
        self.mode, self.uid, self.gid = other.mode, other.uid, other.gid
        self.mtime, self.xattrs = other.mtime, other.xattrs


class Reader:
    """Reads an archive member by member from a run of pieces of any length."""

    def __init__(self, pieces: Iterator[bytes], *, most: int = MAX_SIZE) -> None:
        self._pieces = pieces
        self._may = most  # bytes that are still taken
        self._piece = memoryview(b"")
        self._at = self._left = self._padding = 0
        self._numbers: dict[bytes, int] = {}

    def member(self) -> Member | None:
        """The next member, or None at the proper end. Its bytes must have been taken."""
        said: dict[bytes, bytes] = {}
        before: set[bytes] = set()
        while True:
            header = self._take(BLOCK)
            if header == ZEROS:
                break
            fields = _HEAD.unpack(header)
            flag, magic = fields[7], fields[9]
            if magic not in MAGICS:
                raise Problem("a header is neither ustar nor GNU tar")
            if not fields[4].strip(b" \0"):
                raise Problem("a header has no size")
            if sum(header) - sum(fields[6]) + 8 * 32 != self._number(fields[6]):
                raise Problem("a header does not match its checksum")
            if flag not in b"xgLK":
                return self._made(fields, said) if said else self._plain(fields)
            self._note(flag, self._number(fields[4]), said, before)
        if before:
            raise Problem("a long name or PAX header belongs to no member")
        self._check_end()
        return None

    def body(self) -> Iterator[memoryview]:
        """The bytes of the file whose member was just given, and its padding, which must be zeros."""
        while self._left:
            piece = self._piece[self._at : self._at + self._left]
            if piece:
                self._at += len(piece)
                self._left -= len(piece)
                yield piece
            else:
                self._next()
        if self._padding and self._take(self._padding).strip(b"\0"):
            raise Problem("something lies between two members")

    def _plain(self, fields: tuple[bytes, ...]) -> Member:
        """A member that its header describes alone, as most are."""
        name, mode, uid, gid, size, mtime, _, flag, link, magic, major, minor, prefix = fields
        name = _whole(name)
        if magic == MAGICS[0] and prefix[0]:
            name = _whole(prefix) + b"/" + name
        kind = KINDS.get(flag)
        if kind is None:
            raise Problem(f"{shown(name)} has the type {flag!r}, which is not read (sparse files are not either)")
        if magic == MAGICS[2] and kind == FILE and name.endswith(b"/"):
            kind = DIR
        number = self._number
        if not mode.strip(b" \0"):  # some leave it blank
            mode = b"755" if kind == DIR else b"644"
        member = Member(clean(name, kind), kind, number(mode), number(uid), number(gid))
        member.mtime = number(mtime) * 1_000_000_000
        self._set_size(member, number(size))
        if kind in (SYMLINK, HARDLINK):
            member.target = _target(_whole(link), member)
        elif kind in (CHAR, BLOCKDEV):
            member.device = number(major), number(minor)
        return _checked(member)

    def _made(self, fields: tuple[bytes, ...], said: dict[bytes, bytes]) -> Member:
        """A member with what stood before it: a long name and target, PAX records."""
        changed = list(fields)
        in_header = self._number(fields[4])
        size = _decimal(said[b"size"], MAX_SIZE) if b"size" in said else in_header
        if size != in_header and (size <= OVERFLOWN or in_header not in (0, OVERFLOWN)):
            raise Problem("a member's size in its PAX record is not that of its header")
        changed[0], changed[4], changed[8] = b"-", b"0", b"-"
        changed[12] = b"\0"
        if b"path" not in said:
            changed[0], changed[12] = fields[0], fields[12]
        elif fields[9] == MAGICS[2] and said[b"path"].endswith(b"/"):
            changed[7] = DIR
        if b"linkpath" not in said:
            changed[8] = fields[8]
        member = self._plain(tuple(changed))
        member.name = clean(said[b"path"], member.kind) if b"path" in said else member.name
        if member.target and b"linkpath" in said:
            member.target = _target(said[b"linkpath"], member)
        member.uid = _decimal(said[b"uid"], MAX_ID) if b"uid" in said else member.uid
        member.gid = _decimal(said[b"gid"], MAX_ID) if b"gid" in said else member.gid
        member.mtime = _time(said[b"mtime"]) if b"mtime" in said else member.mtime
        member.xattrs = {key[len(XATTR) :]: value for key, value in said.items() if key.startswith(XATTR)}
        self._set_size(member, size)
        return _checked(member)

    def _set_size(self, member: Member, size: int) -> None:
        if size and member.kind != FILE:
            raise Problem(f"{shown(member.name)} is a {WORDS.get(member.kind, 'device')} with a size")
        member.size = self._left = size
        self._padding = -size % BLOCK

    def _note(self, flag: bytes, size: int, said: dict[bytes, bytes], before: set[bytes]) -> None:
        """Take in what stands before a member; a global header may say nothing that counts."""
        is_name = flag == b"L" or flag == b"K"
        if not 0 < size <= (MAX_NAME + 1 if is_name else MAX_RECORDS):
            raise Problem("a long name or PAX header is empty or too long")
        if flag in before or (flag == b"g" and before):
            raise Problem("two headers of one kind stand before one member")
        body = self._take(size)
        if self._take(-size % BLOCK).strip(b"\0"):
            raise Problem("something lies between two members")
        new = {b"path" if flag == b"L" else b"linkpath": body.removesuffix(b"\0")} if is_name else _records(body)
        if flag == b"g" and new:
            raise Problem("a global PAX header names what belongs to one member")
        if said.keys() & new.keys():
            raise Problem("a member has two long names")
        said.update(new)
        if flag != b"g":
            before.add(flag)

    def _number(self, field: bytes) -> int:
        """The number in a field of a header; the same few come again and again."""
        found = self._numbers.get(field)
        if found is None:
            if len(self._numbers) > 4096:
                self._numbers.clear()
            found = self._numbers[field] = _octal(field)
        return found

    def _take(self, size: int) -> bytes:
        """Exactly `size` bytes; raises Problem when the archive ends before."""
        data = bytes(self._piece[self._at : self._at + size])
        self._at += len(data)
        while len(data) < size:
            self._next()
            self._at = min(size - len(data), len(self._piece))
            data += bytes(self._piece[: self._at])
        return data

    def _next(self) -> None:
        for piece in self._pieces:
            if piece:
                self._may -= len(piece)
                if self._may < 0:
                    raise Problem("the archive unpacks to more than it may")
                self._piece, self._at = memoryview(piece), 0
                return
        raise Problem("the archive is cut short")

    def _check_end(self) -> None:
        """A second block of zeros, and after it nothing but zeros: programs fill up to what a tape takes."""
        rest = self._take(BLOCK) + bytes(self._piece[self._at :])
        size = 0
        while not rest.strip(b"\0") and (size := size + len(rest)) <= MAX_REST:
            piece = next(self._pieces, None)
            if piece is None:
                return
            rest = piece
        raise Problem("something follows the end of the archive")


def clean(raw: bytes, kind: bytes) -> bytes:
    """A member's name without ./ and a folder's slash; raises Problem for one that would lead out of the folder."""
    name = raw
    if kind == DIR and name.endswith(b"/"):
        name = name[:-1]
    if name.startswith(b"./"):
        name = name[2:]
    while b"/./" in name:  # the same for every reader, and in many of npm's
        name = name.replace(b"/./", b"/")
    if name in (b"", b".") and kind == DIR and raw:
        return b""
    if len(raw) > MAX_NAME:
        raise Problem(f"the name {shown(raw)} is too long")
    if len(name.translate(None, _CONTROLS)) != len(name):
        raise Problem(f"the name {shown(raw)} holds control characters")
    parts = name.split(b"/")
    if len(parts) > MAX_DEPTH:
        raise Problem(f"the name {shown(raw)} lies deeper than {MAX_DEPTH} folders")
    for part in parts:
        if part in (b"", b".", b"..") or len(part) > MAX_PART:
            raise Problem(f"{shown(raw)} is no name of a member")
    return name


def shown(name: bytes) -> str:
    """A name as it may be printed."""
    text = name[:80].decode("utf-8", "backslashreplace")
    return repr(text if text.isprintable() else ascii(name[:80])[2:-1]) if name else "the folder itself"


def _target(raw: bytes, member: Member) -> bytes:
    if not raw or len(raw) >= MAX_NAME or b"\0" in raw:
        raise Problem(f"{shown(member.name)} is a link to nothing, or its target is too long or holds a zero byte")
    return clean(raw, FILE) if member.kind == HARDLINK else raw


def _checked(member: Member) -> Member:
    if member.mtime > MAX_TIME * 1_000_000_000 or member.uid > MAX_ID or member.gid > MAX_ID:
        raise Problem(f"the time or owner of {shown(member.name)} is out of bounds")
    if member.size > MAX_SIZE or max(member.device) >= 1 << 20:
        raise Problem(f"the size or device number of {shown(member.name)} is out of bounds")
    if not member.name and member.kind != DIR:
        raise Problem("the folder itself is no folder")
    return member


def _whole(field: bytes) -> bytes:
    """A name in a field of fixed length; raises Problem where something follows its end, which others may read."""
    name = field.rstrip(b"\0")
    if b"\0" in name:
        raise Problem(f"the name {shown(name)} holds a zero byte")
    return name


def _octal(field: bytes) -> int:
    """A number of a header: octal, blank, or base-256 (GNU tar's, for large ones); never negative."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.rstrip(b" \0").lstrip(b" ")
    if not digits and field.strip(b" \0") == b"":
        return 0
    if not digits.isdigit() or digits.translate(None, b"01234567"):
        raise Problem(f"a header has the number {field!r}")
    return int(digits, 8)


def _decimal(text: bytes, most: int) -> int:
    if not text.isdigit() or len(text) > 20 or int(text) > most:
        raise Problem(f"a PAX record has the number {text[:40]!r}")
    return int(text)


def _time(text: bytes) -> int:
    """Nanoseconds of a PAX time, "1700000000.5"; what is finer is cut off."""
    whole, point, rest = text.partition(b".")
    if point and not rest.isdigit():
        raise Problem(f"a PAX record has the time {text[:40]!r}")
    return _decimal(whole, MAX_TIME) * 1_000_000_000 + int(rest[:9].ljust(9, b"0") if rest else 0)


def _records(body: bytes) -> dict[bytes, bytes]:
    """What PAX records say that counts: "LENGTH KEY=VALUE\\n" each, the length counting all of it."""
    found: dict[bytes, bytes] = {}
    seen: set[bytes] = set()
    at = 0
    while at < len(body):
        blank = body.find(b" ", at, at + 8)
        length = body[at:blank] if blank > at else b""
        end = at + int(length) if length.isdigit() and length[0] != 0x30 else 0
        key, equals, value = body[blank + 1 : end].partition(b"=")
        if end > len(body) or not key or not equals or not value.endswith(b"\n") or key in seen:
            raise Problem(f"a PAX record is malformed or repeated: {body[at : at + 80]!r}")
        seen.add(key)
        if key in USED or key.startswith(XATTR):
            _check_record(key, value)
            found[key] = value[:-1]
        elif key not in PASSED_OVER and not key.startswith(VENDORS):
            raise Problem(f"the PAX record {key[:80]!r} is not read")
        at = end
    return found


def _check_record(key: bytes, value: bytes) -> None:
    is_xattr = key.startswith(XATTR)
    if b"\0" in key or (not is_xattr and (len(value) < 2 or b"\0" in value)):
        raise Problem(f"the PAX record {key[:80]!r} is empty or holds a zero byte")
