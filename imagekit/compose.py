"""Image + packages -> Tree: everything that an install script would have done is declared and written here.

Pure: bytes in, a Tree out; nothing is unpacked, nothing is run, no network. A bootable tree is a Tree with
/boot/kernel and /boot/cmdline.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from imagekit import early, offer
from imagekit.disk import kmod
from imagekit.errors import Problem
from imagekit.image import Directory, File, Image, Symlink, Text, User, path_of
from imagekit.package import Package, Pin
from imagekit.store import Store
from imagekit.tree import Entry, Tree, below_symlink, directory, file, folder_tree, symlink, union

KERNEL, CMDLINE = "/boot/kernel", "/boot/cmdline"
FOLDERS = ("/usr/bin", "/usr/sbin", "/usr/lib", "/etc", "/var/lib", "/var/log", "/var/cache", "/home", "/mnt", "/srv",
           "/opt", "/proc", "/sys", "/dev", "/run")  # fmt: skip
MODES = {"/tmp": 0o1777, "/var/tmp": 0o1777, "/root": 0o700}
USRMERGE = ("bin", "sbin", "lib", "lib64")
CERTIFICATES = re.compile(r"/usr/share/ca-certificates/mozilla/[^/]+\.crt\Z")
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
IMPLIED_USERS = {
    "root": User(0, home="/root", shell="/bin/sh"),
    "nobody": User(65534, group="nogroup"),
}
IMPLIED_GROUPS = {"root": 0, "adm": 4, "tty": 5, "disk": 6, "shadow": 42, "nogroup": 65534}


def compose(
    image: Image,
    packages: Sequence[tuple[Pin, Package]],
    *,
    folder: Path,
    arch: str,
    modules: Sequence[str],
    drivers: Sequence[str] = (),
    store: Store,
) -> Tree:
    """The whole file system of an image for one architecture.

    folder: where the definition lies; modules: kernel modules that targets and formats need; drivers: those of disks,
    as far as the kernel has them. Raises Problem that names the image and what does not fit.
    """
    try:
        tree = _from_packages(image, packages)
        kernel = next((package for pin, package in packages if pin.role == "kernel"), None)
        paths = _modules(image, kernel, modules=modules, drivers=drivers, store=store) if kernel else ()
        tree = union((tree, _layout(), _kernel(image, kernel, modules=paths, arch=arch) if kernel else Tree()))
        tree = union((tree, early.applets(tree))) if early.SHELL in tree else tree
        tree = tree.override(_accounts(image)).override(_identity(image)).override(_ca_bundle(tree))
        return _checked(tree.override(_own_files(image, folder, tree)).complete())
    except Problem as problem:
        raise type(problem)(f"image {image.name!r} ({arch}): {problem.message}", problem.hint) from problem


def _from_packages(image: Image, packages: Sequence[tuple[Pin, Package]]) -> Tree:
    trees = []
    for pin, package in packages:
        if pin.role == "package":
            trees.append(package.tree)
        elif pin.role == "init":
            trees.append(package.tree.filter(early.keep))
    names = set(offer.left_out(image)[1])
    return _without(union(trees), names)


def _without(tree: Tree, paths: set[str]) -> Tree:
    plain = {path for path in paths if "*" not in path}
    if paths == plain:
        return tree.without(plain)
    pattern = re.compile("|".join(_pattern(path) for path in sorted(paths - plain)), re.DOTALL)
    return tree.without(plain | {path for path in tree if pattern.match(path)})


def _pattern(path: str) -> str:
    """`*` stands for anything within one component: "/usr/lib/*/gconv"."""
    return "[^/]*".join(map(re.escape, path.split("*"))) + r"(?:/.*)?\Z"


def _layout() -> Tree:
    entries = {path: directory() for path in FOLDERS}
    entries |= {path: directory(mode) for path, mode in MODES.items()}
    entries |= {f"/{name}": symlink(f"usr/{name}") for name in USRMERGE}
    entries |= {"/usr/lib64": directory(), "/var/run": symlink("/run"), "/var/lock": symlink("/run/lock")}
    return Tree(entries)


def _kernel(image: Image, kernel: Package, *, modules: Sequence[str], arch: str) -> Tree:
    """The kernel, its command line, the modules at these paths, and early boot."""
    binary = [path for path in kernel.tree if path.startswith("/boot/vmlinuz-")]
    if len(binary) != 1:
        raise Problem(f"kernel: {kernel.name} has {len(binary)} files /boot/vmlinuz-*, not one")
    entries = {path: kernel.tree[path] for path in modules}
    entries[KERNEL] = kernel.tree[binary[0]]._replace(mode=0o644)
    entries[CMDLINE] = file(f"{image.cmdline}\n".encode())
    return union((Tree(entries), early.tree(image, arch, modules=modules)))


def _modules(
    image: Image, kernel: Package, *, modules: Sequence[str], drivers: Sequence[str], store: Store
) -> tuple[str, ...]:
    """Paths of the kernel modules in load order; raises Problem that names the kernel which lacks one."""
    offered = _modules_of(kernel, store)
    _check_root(image, kernel, offered, modules)
    driving = tuple(filter(offered.has, drivers))
    if drivers and not driving:
        raise Problem(
            f"kernel {kernel.name} has no driver for a disk with a root: none of {', '.join(drivers)}",
            'take another kernel, or Layout(root="initrd")',
        )
    guarding = _guarding(image, kernel, offered)
    try:
        return offered.closure((*modules, *driving, *guarding, *image.modules))
    except Problem as problem:
        raise Problem(f"kernel {kernel.name}: {problem.message}", problem.hint) from problem


def _check_root(image: Image, kernel: Package, offered: kmod.Modules, modules: Sequence[str]) -> None:
    """Of the modules, those that a root on a disk cannot do without: nothing else could tell what is wrong then."""
    for option, names in early.root_modules(image.disk).items():
        if missing := [name for name in names if name in modules and not offered.has(name)]:
            able = [root for root, needed in early.ROOT_MODULES.items() if all(map(offered.has, needed))]
            raise Problem(
                f"kernel {kernel.name} has no module {missing[0]}, which {option} needs",
                f"take another kernel, or Layout(root=...) with one of {', '.join(able)}",
            )


def _guarding(image: Image, kernel: Package, offered: kmod.Modules) -> Iterator[str]:
    """Those that protect the image: dm-verity, dm-crypt, what they call, and a driver of the TPM."""
    for guard in image.disk.guards:
        yield from filter(offered.has, early.CIPHERS.get(guard, ()))
        for name in early.GUARD_MODULES.get(guard, ()):
            if not offered.has(name):
                raise Problem(f"kernel {kernel.name} has no module {name}, which {guard}= needs", "take another kernel")
            yield name
    if image.disk.seal:
        tpms = [name for name in early.TPMS if offered.has(name)]
        if not tpms:
            raise Problem(f"kernel {kernel.name} has no driver for a TPM: none of {', '.join(early.TPMS)}",
                          "take another kernel")  # fmt: skip
        yield from tpms


def _modules_of(kernel: Package, store: Store) -> kmod.Modules:
    kept = store.recall("modules-1", kernel.digest)
    if kept is None:
        kept = json.dumps(kmod.to_json(kmod.scan(kernel.tree))).encode()
        store.remember("modules-1", kernel.digest, kept)
    return kmod.from_json(json.loads(kept))


def accounts(image: Image) -> tuple[Mapping[str, User], Mapping[str, int]]:
    """Users and groups with the implied ones; a user's own group has the user's id unless it is declared."""
    users = {**IMPLIED_USERS, **image.users}
    groups = {**IMPLIED_GROUPS, **image.groups}
    for name, user in users.items():
        groups.setdefault(user.group or name, user.uid)
    for name, user in users.items():
        for group in user.groups:
            if group not in groups:
                raise Problem(f"users: {name}: there is no group {group!r}", f"declare it: groups={{{group!r}: ID}}")
    return users, groups


def _accounts(image: Image) -> Tree:
    users, groups = accounts(image)
    lines = {name: [user.uid, groups[user.group or name], "", user.home, user.shell] for name, user in users.items()}
    members = {group: ",".join(sorted(n for n, u in users.items() if group in u.groups)) for group in groups}
    passwd = "".join(f"{name}:x:{':'.join(map(str, row))}\n" for name, row in sorted(lines.items(), key=_by_id))
    group_file = "".join(
        f"{name}:x:{gid}:{members[name]}\n" for name, gid in sorted(groups.items(), key=lambda g: (g[1], g[0]))
    )
    shadow = "".join(f"{name}:*:::::::\n" for name in sorted(users))  # nobody logs in by password
    return Tree(
        {
            "/etc/passwd": file(passwd.encode()),
            "/etc/group": file(group_file.encode()),
            "/etc/shadow": file(shadow.encode(), mode=0o640, gid=groups["shadow"]),
        }
    )


def _by_id(item: tuple[str, list[object]]) -> tuple[object, str]:
    return item[1][0], item[0]


def _identity(image: Image) -> Tree:
    """Who the machine is: host name, hosts, os-release, name services, an empty machine-id."""
    release = f'ID=imagekit\nNAME="{image.name}"\nIMAGE_ID={image.name}\nIMAGE_VERSION={image.version}\n'
    texts = {
        "/etc/hostname": f"{image.name}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {image.name}\n::1 localhost\n",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n",
        "/etc/machine-id": "",
        "/usr/lib/os-release": release,
    }
    files = {path: file(text.encode()) for path, text in texts.items()}
    return Tree({**files, "/etc/os-release": symlink("../usr/lib/os-release")})


def _ca_bundle(tree: Tree) -> Tree:
    """What update-ca-certificates writes: all certificates of the package ca-certificates, one after the other."""
    paths = [path for path in tree.paths if CERTIFICATES.match(path)]
    if not paths or CA_BUNDLE in tree:
        return Tree()
    return Tree({CA_BUNDLE: file(b"".join(tree.read(path) for path in paths))})


def _own_files(image: Image, folder: Path, tree: Tree) -> Tree:
    users, groups = accounts(image)
    entries: dict[str, Entry] = {}
    for written, content in sorted(image.files.items()):
        path = _through_links(path_of(written), tree)
        for name, entry in contents(path, content, folder).items():
            if name in entries and entries[name] != entry:
                raise Problem(f"files: {name} is given twice, once by {written!r}")
            entries[name] = _owned(entry, written, content, users, groups)
    return Tree(entries)


def _through_links(path: str, tree: Tree) -> str:
    """/var/run/x is /run/x where /var/run is a symlink to /run: a file must not be written below a symlink."""
    parts = path.split("/")
    for end in range(2, len(parts)):
        entry = tree.get("/".join(parts[:end]))
        if entry is not None and entry.kind == "symlink" and entry.target.startswith("/"):
            return "/".join([entry.target.rstrip("/"), *parts[end:]])
    return path


def contents(path: str, content: File | Text | Symlink | Directory, folder: Path) -> Mapping[str, Entry]:
    """The entries of what a definition lays out at a path."""
    if isinstance(content, Text):
        return {path: file(content.text.encode(), mode=content.mode)}
    if isinstance(content, Symlink):
        return {path: symlink(content.target)}
    if isinstance(content, Directory):
        return {path: directory(content.mode)}
    return source_tree(content, path, folder)


def source_tree(content: File, path: str, folder: Path) -> Mapping[str, Entry]:
    """The entries of a File: one file, or a folder with all below it."""
    source = folder / content.source
    if source.is_dir():
        return {path: directory(content.mode or 0o755), **folder_tree(source, path)}
    try:
        data = source.read_bytes()
        mode = 0o755 if source.stat().st_mode & 0o100 else 0o644
    except OSError as error:
        raise Problem(
            f"files: {path}: cannot read {content.source}: {error.strerror}", f"it is looked for in {folder}"
        ) from error
    return {path: file(data, mode=mode if content.mode is None else content.mode)}


def _owned(
    entry: Entry,
    written: str,
    content: File | Text | Symlink | Directory,
    users: Mapping[str, User],
    groups: Mapping[str, int],
) -> Entry:
    if isinstance(content, Symlink):
        return entry
    uid = _number(content.owner, {name: user.uid for name, user in users.items()}, f"files: {written}: owner")
    return entry._replace(uid=uid, gid=_number(content.group, groups, f"files: {written}: group"))


def _number(name: str | int, known: Mapping[str, int], where: str) -> int:
    if isinstance(name, int):
        return name
    if name not in known:
        raise Problem(f"{where}: there is no {name!r}", f"known: {', '.join(sorted(known))}")
    return known[name]


def _checked(tree: Tree) -> Tree:
    hidden = below_symlink(tree)
    if hidden:
        path, link = hidden
        raise Problem(
            f"{path} (of {tree[path].owner}) lies below {link}, a {tree[link].kind}: it would vanish when written",
            "leave one of the two out, or write to where the link points",
        )
    return tree
