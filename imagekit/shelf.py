"""Shelf: the tools that the toolbox has, which packages bring them, and what is asked of a machine's own ones."""

from typing import NamedTuple


class Group(NamedTuple):
    """Packages that are fetched together, when the first program of theirs is needed."""

    packages: tuple[str, ...]
    kept: str = ""  # the only files that are unpacked: Debian's AAVMF package holds six variants of 64 MiB


class Tool(NamedTuple):
    """A program, or a firmware file, and what is asked of a machine's own one."""

    group: str
    path: str  # in the tools tree
    minimum: tuple[int, ...] = ()
    flag: str = "--version"  # "" for a file that is no program
    elsewhere: tuple[str, ...] = ()  # where other distributions keep a file


GROUPS = {
    "qemu-x86_64": Group(("qemu-system-x86",)),
    "qemu-aarch64": Group(("qemu-system-arm",)),
    "qemu-img": Group(("qemu-utils",)),
    "ovmf": Group(("ovmf",), r"/usr/share/OVMF/OVMF_(CODE|VARS)_4M(\.secboot|\.ms)?\.fd"),
    "aavmf": Group(("qemu-efi-aarch64",), r"/usr/share/AAVMF/AAVMF_(CODE\.(no-)?secboot|VARS)\.fd"),
    "swtpm": Group(("swtpm",)),
    "fat": Group(("mtools", "dosfstools", "libc-bin")),  # with the locale C.UTF-8: mcopy writes names by it
    "partitions": Group(("fdisk", "gdisk")),  # the other readers of partition tables
    "ext4": Group(("e2fsprogs", "libarchive13t64")),  # mke2fs opens it at run time, to read tar
    "squashfs": Group(("squashfs-tools", "squashfs-tools-ng")),
    "erofs": Group(("erofs-utils",)),
    "grub": Group(("grub-common",)),
    "xorriso": Group(("xorriso",)),  # the other reader of ISOs
    "verity": Group(("cryptsetup-bin",)),
    "tpm2": Group(("tpm2-tools", "libtss2-tcti-swtpm0t64")),  # the other reader of event logs, policies and quotes
    # systemd-measure, the other reader of UKIs; it opens these libraries to compute policies
    "measure": Group(("systemd", "libtss2-esys-3.0.2-0t64", "libtss2-mu-4.0.1-0t64", "libtss2-rc0t64")),
    "sbsign": Group(("sbsigntool",)),  # the other signer of UEFI programs
    "binutils": Group(("binutils",)),
    "oci": Group(("skopeo", "umoci")),  # the other readers of container images
    "minisign": Group(("minisign",)),  # the other reader of our keys and signatures
    "archives": Group(("libarchive-tools", "busybox-static", "pigz")),  # other readers of .tar.gz
    "qemu-user": Group(("qemu-user",), r"/usr/bin/qemu-(arm|riscv64)"),  # runs the launchers of other architectures
}
TOOLS = {  # the lowest version that imagekit was tried with, or the first that has what it uses
    "qemu-system-x86_64": Tool("qemu-x86_64", "/usr/bin/qemu-system-x86_64", (7, 2)),
    "qemu-system-aarch64": Tool("qemu-aarch64", "/usr/bin/qemu-system-aarch64", (7, 2)),
    "qemu-img": Tool("qemu-img", "/usr/bin/qemu-img", (7, 2)),
    "swtpm": Tool("swtpm", "/usr/bin/swtpm", (0, 7)),
    "mcopy": Tool("fat", "/usr/bin/mcopy", (4, 0, 30)),
    "mkfs.fat": Tool("fat", "/usr/sbin/mkfs.fat", (4, 2), "--help"),  # --invariant
    "fsck.fat": Tool("fat", "/usr/sbin/fsck.fat", (4, 2), "/nowhere"),  # it tells its version before it fails
    "sfdisk": Tool("partitions", "/usr/sbin/sfdisk", (2, 38)),
    "sgdisk": Tool("partitions", "/usr/sbin/sgdisk", (1, 0, 9)),
    "mke2fs": Tool("ext4", "/usr/sbin/mke2fs", (1, 47, 1), "-V"),  # -d takes a tar
    "e2fsck": Tool("ext4", "/usr/sbin/e2fsck", (1, 47), "-V"),
    "debugfs": Tool("ext4", "/usr/sbin/debugfs", (1, 47), "-V"),
    "mksquashfs": Tool("squashfs", "/usr/bin/mksquashfs", (4, 6), "-version"),
    "unsquashfs": Tool("squashfs", "/usr/bin/unsquashfs", (4, 6), "-version"),
    "tar2sqfs": Tool("squashfs", "/usr/bin/tar2sqfs", (1, 1)),
    "sqfs2tar": Tool("squashfs", "/usr/bin/sqfs2tar", (1, 1)),
    "mkfs.erofs": Tool("erofs", "/usr/bin/mkfs.erofs", (1, 8)),  # --tar
    "fsck.erofs": Tool("erofs", "/usr/bin/fsck.erofs", (1, 8)),
    "grub-mkimage": Tool("grub", "/usr/bin/grub-mkimage", (2, 6)),  # its modules come with the image: disk/grub
    "xorriso": Tool("xorriso", "/usr/bin/xorriso", (1, 5), "-version"),
    "cryptsetup": Tool("verity", "/usr/sbin/cryptsetup", (2, 4)),
    "tpm2": Tool("tpm2", "/usr/bin/tpm2", (5, 4)),  # all of its programs in one: tpm2 eventlog FILE
    "systemd-measure": Tool("measure", "/usr/lib/systemd/systemd-measure", (252,)),
    "sbsign": Tool("sbsign", "/usr/bin/sbsign", (0, 9, 4)),
    "sbverify": Tool("sbsign", "/usr/bin/sbverify", (0, 9, 4)),
    "sbsiglist": Tool("sbsign", "/usr/bin/sbsiglist", (0, 9, 4)),
    "sbvarsign": Tool("sbsign", "/usr/bin/sbvarsign", (0, 9, 4)),
    "veritysetup": Tool("verity", "/usr/sbin/veritysetup", (2, 4)),
    "objdump": Tool("binutils", "/usr/bin/objdump", (2, 38)),  # knows programs for UEFI on aarch64
    "skopeo": Tool("oci", "/usr/bin/skopeo", (1, 9)),
    "umoci": Tool("oci", "/usr/bin/umoci", (0, 4, 7)),
    "minisign": Tool("minisign", "/usr/bin/minisign", (0, 11), "-v"),
    "qemu-arm": Tool("qemu-user", "/usr/bin/qemu-arm", (7, 2)),
    "qemu-riscv64": Tool("qemu-user", "/usr/bin/qemu-riscv64", (7, 2)),
    "bsdtar": Tool("archives", "/usr/bin/bsdtar", (3, 6)),
    "busybox": Tool("archives", "/usr/bin/busybox", (1, 30), "--help"),
    "pigz": Tool("archives", "/usr/bin/pigz", (2, 6)),
    "ovmf-code": Tool("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.fd", flag=""),
    "ovmf-code-secboot": Tool("ovmf", "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", flag=""),
    "ovmf-vars": Tool("ovmf", "/usr/share/OVMF/OVMF_VARS_4M.fd", flag=""),
    "ovmf-vars-ms": Tool("ovmf", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", flag=""),
    "aavmf-code": Tool("aavmf", "/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd", flag=""),
    "aavmf-code-secboot": Tool("aavmf", "/usr/share/AAVMF/AAVMF_CODE.secboot.fd", flag=""),
    "aavmf-vars": Tool("aavmf", "/usr/share/AAVMF/AAVMF_VARS.fd", flag=""),
}
