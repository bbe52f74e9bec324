"""Composing: packages and a definition in, one tree out; nothing of it may depend on order, host or luck."""

from dataclasses import replace

import pytest
from test_kmod import kernel as kernel_modules

from imagekit import Budget, Directory, File, Image, Layout, Service, Symlink, Text, User, early
from imagekit.compose import compose
from imagekit.errors import Problem
from imagekit.package import Package, Pin
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, directory, file, symlink


def package(name, entries, *, role="package"):
    owned = {path: entry._replace(owner=name) for path, entry in entries.items()}
    tree = Tree(owned)
    return Pin(role, "debian", name, "1", "amd64", 1, "0" * 64, "debian", "pool/x.deb"), Package(
        name, "1", "amd64", tree.digest, tree
    )


BUSYBOX = package("busybox-static", {"/usr/bin/busybox": file(b"\x7fELF"), "/usr/share/x": file(b"")}, role="init")
KERNEL = package(
    "linux-image", {"/boot/vmlinuz-6.1": file(b"MZ"), **dict(kernel_modules(virtio_net={}, other={}))}, role="kernel"
)
NGINX = package(
    "nginx", {"/usr/sbin/nginx": file(b"\x7fELF nginx", mode=0o755), "/etc/nginx/nginx.conf": file(b"theirs")}
)
DOCS = package(
    "docs",
    {
        "/usr/share/doc/x/copyright": file(b"c"),
        "/usr/lib/arm/gconv/a.so": file(b"g"),
        "/usr/lib/x86/gconv/b.so": file(b"g"),
    },
)

WEB = Image(
    name="web",
    kernel="debian:linux-image",
    users={"www-data": User(33, groups=("adm",))},
    files={
        "/etc/nginx/nginx.conf": File("nginx.conf", owner="www-data", mode=0o640),
        "/bin/hello": Text("#!/bin/sh\n", mode=0o755),
    },
    services=(Service("nginx", "/usr/sbin/nginx -g 'daemon off;'", ready="tcp:80"),),
)


@pytest.fixture
def made(tmp_path):
    (tmp_path / "nginx.conf").write_text("ours")
    (tmp_path / "site" / "sub").mkdir(parents=True)
    (tmp_path / "site" / "index.html").write_text("<p>")
    (tmp_path / "site" / "sub" / "run").write_text("#!/bin/sh\n")
    (tmp_path / "site" / "sub" / "run").chmod(0o700)

    def make(image, *packages, modules=("virtio_net",)):
        store = open_store(tmp_path / "cache")
        return compose(image, packages, folder=tmp_path, arch="x86_64", modules=modules, store=store)

    return make


def test_a_bootable_tree_has_kernel_command_line_and_only_the_modules_that_are_needed(made):
    tree = made(WEB, KERNEL, BUSYBOX, NGINX)
    assert tree.read("/boot/kernel") == b"MZ"
    assert tree.read("/boot/cmdline") == b"quiet panic=-1\n"
    assert [path for path in tree if path.endswith(".ko")] == ["/usr/lib/modules/6.1/kernel/virtio-net.ko"]
    assert tree.read("/etc/imagekit/modules") == b"/usr/lib/modules/6.1/kernel/virtio-net.ko\n"
    assert "/usr/share/x" not in tree, "only what early boot needs of its packages"
    assert tree["/bin"].target == "usr/bin"


def test_a_root_on_a_disk_brings_its_modules_and_the_drivers_that_there_are(tmp_path):
    parts = kernel_modules(virtio_net={}, squashfs={}, overlay={}, ahci={"depends": ["libata"]}, libata={}, nvme={})
    kernel = package("linux-image", {"/boot/vmlinuz-6.1": file(b"MZ"), **dict(parts)}, role="kernel")
    image = Image(name="x", kernel="debian:linux-image", disk=Layout(root="squashfs"), modules=("nvme",))
    tree = compose(image, [kernel], folder=tmp_path, arch="x86_64", store=open_store(tmp_path / "cache"),
                   modules=("virtio_net", "overlay", "squashfs"), drivers=("ahci", "xhci_hcd"))  # fmt: skip
    loaded = [path.rpartition("/")[2] for path in tree.read("/etc/imagekit/modules").decode().split()]
    assert loaded == ["virtio-net.ko", "overlay.ko", "squashfs.ko", "libata.ko", "ahci.ko", "nvme.ko"]


@pytest.mark.parametrize(
    ("layout", "drivers", "words", "hint"),
    [
        (Layout(root="erofs"), ("ahci",), "linux-image has no module erofs, .*root='erofs' needs", "initrd, squashfs"),
        (Layout(root="squashfs", changes="disk"), ("ahci",), "no module ext4, .*changes='disk' needs", "squashfs"),
        (Layout(root="squashfs"), ("nvme", "usb"), "no driver for a disk .*none of nvme, usb", "another kernel"),
    ],
)
def test_a_kernel_that_cannot_reach_its_root_is_a_problem(tmp_path, layout, drivers, words, hint):
    parts = kernel_modules(squashfs={}, overlay={}, ahci={})
    kernel = package("linux-image", {"/boot/vmlinuz-6.1": file(b"MZ"), **dict(parts)}, role="kernel")
    image = Image(name="x", kernel="debian:linux-image", disk=layout)
    modules = [module for names in early.root_modules(layout).values() for module in names]
    with pytest.raises(Problem, match=f"image 'x' .*{words}") as caught:
        compose(image, [kernel], folder=tmp_path, arch="x86_64", store=open_store(tmp_path / "cache"),
                modules=modules, drivers=drivers)  # fmt: skip
    assert hint in caught.value.hint


def test_own_files_replace_a_packages_and_keep_owner_and_mode(made):
    entry = made(WEB, KERNEL, BUSYBOX, NGINX)["/etc/nginx/nginx.conf"]
    assert (entry.read(), entry.mode, entry.uid, entry.owner) == (b"ours", 0o640, 33, "image")


def test_usrmerge_holds_for_own_files(made):
    tree = made(WEB, KERNEL, BUSYBOX, NGINX)
    assert tree["/usr/bin/hello"].mode == 0o755


def test_a_folder_is_copied_whole_with_modes_that_no_umask_changes(made):
    tree = made(replace(WEB, files={"/srv": File("site")}), KERNEL, BUSYBOX, NGINX)
    assert {p: e.mode for p, e in tree.items() if p.startswith("/srv")} == {
        "/srv": 0o755, "/srv/index.html": 0o644, "/srv/sub": 0o755, "/srv/sub/run": 0o755}  # fmt: skip


def test_accounts_are_written_from_what_is_declared(made):
    tree = made(WEB, KERNEL, BUSYBOX, NGINX)
    assert tree.read("/etc/passwd") == (
        b"root:x:0:0::/root:/bin/sh\n"
        b"www-data:x:33:33::/nonexistent:/usr/sbin/nologin\n"
        b"nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"
    )
    assert b"adm:x:4:www-data\n" in tree.read("/etc/group")
    assert (tree["/etc/shadow"].mode, tree["/etc/shadow"].gid) == (0o640, 42)
    assert b"root:*:" in tree.read("/etc/shadow"), "no password opens an account"


@pytest.mark.parametrize(
    ("without", "gone"),
    [
        (("/usr/share/doc",), "/usr/share/doc/x/copyright"),
        (("/usr/lib/*/gconv",), "/usr/lib/arm/gconv/a.so"),
        (("/usr/lib/*/gconv",), "/usr/lib/x86/gconv/b.so"),
        (("/lib/x86/gconv/*.so",), "/usr/lib/x86/gconv/b.so"),
    ],
)
def test_paths_are_left_out(made, without, gone):
    assert gone in made(Image(name="x"), DOCS)
    assert gone not in made(Image(name="x", without=without), DOCS)


def test_certificates_become_one_bundle(made):
    authority = "/usr/share/ca-certificates/mozilla/"
    certificates = package("ca-certificates", {f"{authority}B.crt": file(b"B\n"), f"{authority}A.crt": file(b"A\n")})
    assert made(Image(name="x"), certificates).read("/etc/ssl/certs/ca-certificates.crt") == b"A\nB\n"


def test_order_of_packages_leaves_no_trace(made):
    packages = [KERNEL, BUSYBOX, NGINX, DOCS]
    assert made(WEB, *packages).digest == made(WEB, *packages[::-1]).digest


def test_a_file_below_a_symlinked_folder_is_written_where_the_link_points(made):
    tree = made(Image(name="x", files={"/var/run/x": Text("1")}))
    assert "/run/x" in tree
    assert "/var/run/x" not in tree


def test_applets_do_not_hide_a_packages_program(made):
    bash = package("dash", {"/usr/bin/sh": file(b"dash")})
    tree = made(WEB, KERNEL, BUSYBOX, NGINX, bash)
    assert tree.read("/usr/bin/sh") == b"dash"
    assert tree["/usr/bin/ls"].target == "busybox"


@pytest.mark.parametrize(
    ("image", "packages", "words"),
    [
        (
            Image(name="x"),
            [NGINX, package("apache", {"/usr/sbin/nginx": file(b"other")})],
            "differs between nginx and apache",
        ),
        (
            Image(name="x"),
            [package("a", {"/d": directory(0o700)}), package("b", {"/d": directory()})],
            "/d differs between a and b: mode",
        ),
        (
            Image(name="x"),
            [package("a", {"/usr/l": symlink("/y")}), package("b", {"/usr/l/f": file(b"")})],
            r"/usr/l/f \(of b\) lies below /usr/l",
        ),
        (Image(name="x", files={"/a": File("gone")}), [], "files: /a: cannot read gone"),
        (Image(name="x", files={"/a": Text("", owner="bob")}), [], "files: /a: owner: there is no 'bob'"),
        (
            replace(WEB, modules=("nope",)),
            [KERNEL, BUSYBOX, NGINX],
            "kernel linux-image: .*unknown kernel module 'nope'",
        ),
        (
            Image(name="x", files={"/srv": File("site"), "/srv/index.html": Text("2")}),
            [],
            "/srv/index.html is given twice",
        ),
        (WEB, [package("k", dict(kernel_modules(virtio_net={})), role="kernel"), BUSYBOX], "k has 0 files"),
    ],
)
def test_what_does_not_fit_is_a_problem_that_names_the_image(made, image, packages, words):
    with pytest.raises(Problem, match=f"image '{image.name}' .x86_64.: .*{words}"):
        made(image, *packages)


def test_symlinks_and_folders_of_the_definition(made):
    files = {"/etc/localtime": Symlink("/usr/share/zoneinfo/UTC"), "/var/lib/db": Directory(0o700, owner=7, group=8)}
    tree = made(Image(name="x", files=files, budget=Budget(size="1 MiB")))
    assert tree["/etc/localtime"].target == "/usr/share/zoneinfo/UTC"
    entry = tree["/var/lib/db"]
    assert (entry.kind, entry.mode, entry.uid, entry.gid) == ("dir", 0o700, 7, 8)


def test_without_a_kernel_there_is_no_early_boot(made):
    tree = made(Image(name="x"), NGINX)
    assert "/init" not in tree
    assert early.BOOT not in tree
