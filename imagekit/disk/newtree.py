"""A tree that is made in an empty folder, member by member; nothing that a member says can reach out of that folder.

Every folder of the tree is opened by the kernel below the root, through no link (openat2(2)); everything is made in
such a folder, by one name, and only where nothing is. So no check of a name has to be right for it.
"""

import ctypes
import os
from errno import EAGAIN, EINVAL, ENOSYS, EOPNOTSUPP, EPERM
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_ISREG

from imagekit.disk import tarread
from imagekit.disk.tarread import Member, shown
from imagekit.errors import Problem

MAX_ENTRIES = 1 << 20
MAX_FOLDERS = 16 << 20  # bytes of the names of folders, which are remembered until the end
OPEN_FOLDERS = 64
NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
SET_ID = 0o6000
OPENAT2 = 437  # the same on every architecture; since Linux 5.6
BENEATH = 0x08 | 0x04 | 0x02  # RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS: <linux/openat2.h>
CAPABILITY = b"security.capability"
NODES = {tarread.CHAR: S_IFCHR, tarread.BLOCKDEV: S_IFBLK, tarread.FIFO: S_IFIFO}
OWNERS, BITS, DEVICES, XATTRS = "owners", "setuid and setgid bits", "device nodes", "extended attributes"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PASSED = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_libc = ctypes.CDLL(None, use_errno=True)


class Policy:
    """What of an archive is taken over besides files, folders, links, modes and times."""

    __slots__ = ("devices", "owners", "set_id", "xattrs")

    def __init__(self, *, owners: bool, set_id: bool, devices: bool, xattrs: bool) -> None:
        self.owners, self.set_id, self.devices, self.xattrs = owners, set_id, devices, xattrs


SIGNED = Policy(owners=True, set_id=True, devices=True, xattrs=True)  # by somebody who is trusted to run programs
FOREIGN = Policy(owners=True, set_id=False, devices=False, xattrs=False)


def beneath(root: int, path: bytes) -> int:
    """The descriptor (O_PATH) of a folder below `root`, reached through no link; OSError when there is none."""
    how = (ctypes.c_uint64 * 3)(PASSED, 0, BENEATH)
    while (handle := _libc.syscall(OPENAT2, root, path, how, 24)) < 0:
        if (error := ctypes.get_errno()) in (ENOSYS, EPERM):  # an old kernel, or a seccomp filter that does not know it
            return _step_by_step(root, path)
        if error != EAGAIN:
            raise OSError(error, os.strerror(error))
    return int(handle)


def _step_by_step(root: int, path: bytes) -> int:
    """The same, folder by folder: names are clean, and no one of them may be a link."""
    handle = os.open(b".", PASSED, dir_fd=root)
    for part in path.split(b"/"):
        try:
            inner = os.open(part, PASSED, dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
    return handle


class NewTree:
    """The folder that is filled, and what is still to be done in it when all is there."""

    def __init__(self, root: int, reader: tarread.Reader, policy: Policy) -> None:
        self.root, self.reader, self.policy = root, reader, policy
        self.entries = 0
        self.left_out: dict[str, int] = {}
        self._handles: dict[bytes, int] = {}  # of folders, by name
        self._folders = [Member(b"", tarread.DIR, 0o755, 0, 0)]  # whose modes and times come last
        self._implied = {b"": self._folders[0]}  # folders without an entry of their own so far
        self._names = 0
        self._own, self._masked, self._may_chown = _probe(root)
        self._make = {
            tarread.FILE: self._file,
            tarread.DIR: self._folder,
            tarread.SYMLINK: self._symlink,
            tarread.HARDLINK: self._hardlink,
            **dict.fromkeys(NODES, self._node),
        }

    def add(self, member: Member) -> None:
        """Make a member, where nothing is yet."""
        self.entries += 1
        if self.entries > MAX_ENTRIES:
            raise Problem(f"the archive has more than {MAX_ENTRIES} members")
        parent, _, base = member.name.rpartition(b"/")
        try:
            self._make[member.kind](member, self._within(parent) if parent else self.root, base)
        except FileExistsError:
            raise Problem(f"the archive holds {shown(member.name)} twice") from None

    def finish(self) -> None:
        """Modes, owners and times of the folders, the innermost first."""
        for member in reversed(self._folders):
            parent, _, base = member.name.rpartition(b"/")
            within = self._within(parent) if parent else self.root
            handle = os.open(base or b".", FOLDER, dir_fd=within)
            try:
                self._settle(handle, member, -1)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Close the folders that are still open."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def _within(self, path: bytes) -> int:
        """The descriptor of a folder, which is made when nobody said that it is one."""
        handle = self._handles.get(path)
        if handle is None:
            try:
                handle = beneath(self.root, path)
            except FileNotFoundError:
                handle = self._imply(path)
            except OSError as error:
                raise Problem(f"something lies below {shown(path)}, which is no folder: {error.strerror}") from None
            if len(self._handles) >= OPEN_FOLDERS:
                os.close(self._handles.pop(next(iter(self._handles))))
            self._handles[path] = handle
        return handle

    def _imply(self, path: bytes) -> int:
        self.add(Member(path, tarread.DIR, 0o755, 0, 0))
        self._implied[path] = self._folders[-1]
        return beneath(self.root, path)

    def _folder(self, member: Member, within: int, base: bytes) -> None:
        self._names += len(member.name) + 64
        if self._names > MAX_FOLDERS:
            raise Problem("the archive has too many folders with too long names")
        implied = self._implied.pop(member.name, None)
        if implied:
            implied.take_over(member)
        elif not base:
            raise FileExistsError
        else:
            os.mkdir(base, 0o700, dir_fd=within)
            self._folders.append(member)

    def _file(self, member: Member, within: int, base: bytes) -> None:
        mode = member.mode & 0o777 & ~self._masked
        handle = os.open(base, NEW, mode, dir_fd=within)
        try:
            for piece in self.reader.body():
                while piece:
                    piece = piece[os.write(handle, piece) :]
            self._settle(handle, member, mode)
        finally:
            os.close(handle)

    def _settle(self, handle: int, member: Member, mode: int) -> None:
        """Owner, mode (where it is not yet `mode`), attributes and time, in the order in which none undoes another."""
        wanted = member.mode
        is_owned = (member.uid, member.gid) == self._own or self._chown(handle, member)
        if wanted & SET_ID and not (is_owned and self.policy.set_id):
            wanted = self._without_bits(wanted)
        if wanted != mode or not is_owned:
            self._chmod(handle, wanted)
        if member.xattrs:
            self._set_xattrs(handle, member)
        os.utime(handle, ns=(member.mtime, member.mtime))

    def _chown(self, handle: int, member: Member) -> bool:
        if self._may_chown and self.policy.owners:
            try:
                os.fchown(handle, member.uid, member.gid)
            except OSError as error:
                if error.errno not in (EPERM, EINVAL):  # an id that is not mapped here: user_namespaces(7)
                    raise
            else:
                return True
        self._leave_out(OWNERS)
        return False

    def _chmod(self, handle: int, mode: int) -> None:
        try:
            os.fchmod(handle, mode)
        except PermissionError:  # RestrictSUIDSGID= of systemd.exec(5)
            if not mode & SET_ID:
                raise
            os.fchmod(handle, self._without_bits(mode))

    def _without_bits(self, mode: int) -> int:
        self._leave_out(BITS)
        return mode & ~SET_ID

    def _set_xattrs(self, handle: int, member: Member) -> None:
        for name, value in member.xattrs.items():
            if not self.policy.xattrs:
                self._leave_out(XATTRS)
                continue
            if name != CAPABILITY and (not name.startswith(b"user.") or name.startswith(b"user.overlay.")):
                raise Problem(f"{shown(member.name)} has the attribute {shown(name)}, which is not set")
            try:
                os.setxattr(handle, name, value)
            except OSError as error:
                if error.errno not in (EPERM, EOPNOTSUPP, EINVAL):
                    raise
                self._leave_out(XATTRS)

    def _symlink(self, member: Member, within: int, base: bytes) -> None:
        if member.xattrs and self.policy.xattrs:
            raise Problem(f"{shown(member.name)} is a link with attributes")
        os.symlink(member.target, base, dir_fd=within)
        self._settle_name(member, within, base)

    def _settle_name(self, member: Member, within: int, base: bytes) -> None:
        if (member.uid, member.gid) != self._own:
            if self._may_chown and self.policy.owners:
                os.chown(base, member.uid, member.gid, dir_fd=within, follow_symlinks=False)
            else:
                self._leave_out(OWNERS)
        os.utime(base, ns=(member.mtime, member.mtime), dir_fd=within, follow_symlinks=False)

    def _hardlink(self, member: Member, within: int, base: bytes) -> None:
        parent, _, name = member.target.rpartition(b"/")
        there = self._within(parent) if parent else self.root
        within = self._within(member.name.rpartition(b"/")[0]) if b"/" in member.name else self.root  # may be closed
        try:
            if not S_ISREG(os.stat(name, dir_fd=there, follow_symlinks=False).st_mode):
                raise FileNotFoundError
            os.link(name, base, src_dir_fd=there, dst_dir_fd=within, follow_symlinks=False)
        except FileNotFoundError:
            wrong = f"the hard link {shown(member.name)} names {shown(member.target)}, which is no file before it"
            raise Problem(wrong) from None

    def _node(self, member: Member, within: int, base: bytes) -> None:
        if member.kind != tarread.FIFO and not self.policy.devices:
            return self._leave_out(DEVICES)
        try:
            os.mknod(base, NODES[member.kind] | 0o600, os.makedev(*member.device), dir_fd=within)
        except PermissionError:  # in a user namespace
            return self._leave_out(DEVICES)
        self._settle_name(member, within, base)
        return os.chmod(base, member.mode & ~SET_ID, dir_fd=within)

    def _leave_out(self, what: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1


def _probe(root: int) -> tuple[tuple[int, int], int, bool]:
    """Who owns what is made in a folder, which mode bits are masked there, and whether owners can be changed."""
    name = b".probe"
    handle = os.open(name, NEW, 0o777, dir_fd=root)
    try:
        found = os.fstat(handle)
        try:
            os.fchown(handle, 1, 1)
            may_chown = True
        except OSError:
            may_chown = False
    finally:
        os.close(handle)
        os.unlink(name, dir_fd=root)
    return (found.st_uid, found.st_gid), 0o777 & ~found.st_mode, may_chown
