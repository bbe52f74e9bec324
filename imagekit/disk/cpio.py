"""newc cpio, the format of an initramfs.

Source: Documentation/driver-api/early-userspace/buffer-format.rst of the Linux kernel. An initramfs is a concatenation
of such archives, each compressed on its own if one likes, each beginning at a multiple of four bytes; zeros between
them are skipped. newc knows no extended attributes.
"""

import stat
from collections.abc import Iterable, Iterator, Mapping

from imagekit.errors import Problem
from imagekit.tree import Entry

TRAILER = "TRAILER!!!"
LONGEST, LONGEST_NAME = 4096, 255  # bytes; the kernel passes over what is longer without a word (init/initramfs.c)
TYPES = {
    "file": stat.S_IFREG,
    "hardlink": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


def archive(entries: Iterable[tuple[str, Entry]], *, trailer: bool = True) -> bytes:
    """One archive of these paths, parents first, times zero; a multiple of four bytes.

    Raises Problem for an entry that newc cannot hold: extended attributes, 4 GiB and more, or too long a name.
    """
    return b"".join(chunks(entries, trailer=trailer))


def chunks(entries: Iterable[tuple[str, Entry]], *, trailer: bool = True) -> Iterator[bytes]:
    """The archive piece by piece; hard links go with the file that they share bytes with."""
    ordered = sorted(entries, key=lambda item: item[0].split("/"))
    names = _names_per_file(ordered)
    for number, (path, entry) in enumerate(ordered, start=1):
        if entry.kind == "hardlink" and entry.target in names:
            continue  # written with its target
        links = names.get(path, (path,))
        for name in links[:-1]:  # the kernel wants the bytes with the last name of a group
            yield _record(name, entry, number, links=len(links), data=b"")
        yield _record(links[-1], entry, number, links=len(links), data=_data(path, entry))
    if trailer:
        yield _record(TRAILER, Entry("file", 0), 0, links=1, data=b"", mode=0)


def _names_per_file(ordered: list[tuple[str, Entry]]) -> Mapping[str, tuple[str, ...]]:
    files = {path for path, entry in ordered if entry.kind == "file"}
    names: dict[str, tuple[str, ...]] = {}
    for path, entry in ordered:
        if entry.kind == "hardlink":
            if entry.target not in files:
                raise Problem(f"{path} is a hard link to {entry.target}, which is not in the same part of the tree")
            names[entry.target] = (*names.get(entry.target, (entry.target,)), path)
    return names


def _data(path: str, entry: Entry) -> bytes:
    if entry.xattrs:
        raise Problem(
            f"{path} has extended attributes ({entry.xattrs[0][0]}), which an initrd cannot hold",
            "use a format with its root on a disk, or leave the file out",
        )
    if entry.size >= 1 << 32:
        raise Problem(f"{path} has {entry.size} bytes; newc cpio ends at 4 GiB")
    return _bytes(entry.target) if entry.kind == "symlink" else (entry.read() if entry.kind == "file" else b"")


def _record(path: str, entry: Entry, inode: int, *, links: int, data: bytes, mode: int | None = None) -> bytes:
    return head(path, entry, inode, links=links, size=len(data), mode=mode) + data + bytes(-len(data) % 4)


def head(path: str, entry: Entry, inode: int, *, links: int, size: int, mode: int | None = None) -> bytes:
    """What stands before a member's bytes."""
    name = _bytes(path.lstrip("/")) + b"\0"
    if len(name) > LONGEST or any(len(part) > LONGEST_NAME for part in name[:-1].split(b"/")):
        raise Problem(f"{path}: an initrd takes names of {LONGEST_NAME} bytes and paths of {LONGEST - 1} at most")
    full_mode = TYPES[entry.kind] | entry.mode if mode is None else mode
    numbers = (inode, full_mode, entry.uid, entry.gid, links, 0, size, 0, 0, *entry.device, len(name), 0)
    made = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    return made + bytes(-len(made) % 4)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
