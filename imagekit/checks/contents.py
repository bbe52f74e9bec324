"""The contents of a tree: what would surprise whoever runs it."""

from imagekit.artifact import Artifact
from imagekit.tree import Tree

SETUID, SETGID, STICKY, WRITABLE = 0o4000, 0o2000, 0o1000, 0o002


def setuid(tree: Tree) -> set[str]:
    """Programs that run with their owner's or group's rights, whoever starts them."""
    return {path for path, entry in tree.items() if entry.kind == "file" and entry.mode & (SETUID | SETGID)}


def world_writable(tree: Tree) -> set[str]:
    """Files that everybody can change, and folders in which everybody can remove what is another's."""
    return {
        path
        for path, entry in tree.items()
        if entry.mode & WRITABLE and (entry.kind == "file" or (entry.kind == "dir" and not entry.mode & STICKY))
    }


def dangling(tree: Tree) -> dict[str, str]:
    """Symlinks that lead nowhere in the tree: path -> target; those into /proc, /dev, /sys and /run are not judged."""
    return {
        path: entry.target
        for path, entry in tree.items()
        if entry.kind == "symlink" and not _exists(tree, _joined(path, entry.target), 40)
    }


def differences(one: Artifact, other: Artifact) -> list[str]:
    """Which parts and facts of two manifests differ: `assert differences(artifact, rebuilt) == []`."""
    names = sorted(one.manifest.keys() | other.manifest.keys())
    found = [name for name in names if name != "parts" and one.manifest.get(name) != other.manifest.get(name)]
    parts = {part.role: part for part in one.parts}
    found += [part.role for part in other.parts if parts.pop(part.role, None) != part]
    return [*found, *parts]


def _exists(tree: Tree, path: str, steps: int) -> bool:
    """Whether a path leads somewhere, through symlinks: at most 40, as the kernel follows them (MAXSYMLINKS)."""
    if path == "/" or path.split("/")[1] in ("proc", "dev", "sys", "run"):
        return True
    at = ""
    for name in path[1:].split("/"):
        at = f"{at}/{name}"
        entry = tree.get(at)
        if entry is None or steps == 0:
            return False
        if entry.kind == "symlink":
            return _exists(tree, _joined(at, entry.target) + path[len(at) :], steps - 1)
    return True


def _joined(link: str, target: str) -> str:
    """Where a link's text leads, without following any other link."""
    parts: list[str] = []
    for name in (target if target.startswith("/") else f"{link.rpartition('/')[0]}/{target}").split("/"):
        if name == "..":
            del parts[-1:]
        elif name not in ("", "."):
            parts.append(name)
    return "/" + "/".join(parts)
