"""Guarded: the parts of a disk that protect it, as a layout wants them: a root with its hashes, an initrd that opens.

    root-a, root-b                   squashfs or erofs, never written to; b is empty as shipped, and there with slots=2
    root-a-verity, root-b-verity     the hashes of all its blocks (disk/verity); with slots=2 for as many as fit
    DATA                             zeros, which the first boot makes a LUKS2 volume; the last one, grows with the disk

A root is found by its hashes, and they by what the kernel's arguments say, which are signed with all else of the UKI:

    imagekit.verity=SALT:BLOCKS:HASH:REACTION
                                     salt and root hash in hexadecimal, blocks of 4096 bytes; "restart", "panic" or
                                     "error" is what the kernel does about a block that does not fit

The initrd has /usr/lib/imagekit/sealed for its /init (early.py, inside/sealed/), which reads:

    /etc/imagekit/seal               lines of KEY VALUE: image, disk, mount, pcrs (7,11), policy, recovery, secure_boot
                                     (on or off), generation; with policy signed also public, the modulus of the key
                                     that signs PCR 11, in hexadecimal
    /etc/imagekit/data.ext4          an empty file system for the first boot: its size, then records of offset, length
                                     and bytes; numbers of 64 bits, little endian; what is in no record is zeros

Types and flags of the partitions: the UAPI Group's "Discoverable Partitions Specification".
"""

import struct
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from imagekit import early, rsa, slots
from imagekit.arch import ARCHES
from imagekit.artifact import Job
from imagekit.bootkeys import BootKeys
from imagekit.disk import authenticode, fat, ids, initrd, pcrsign, pe, prediction, rooted, roots, stub, uki, verity
from imagekit.disk.discoverable import DATA, READ_ONLY, ROOTS, VERITY
from imagekit.disk.plan import Part, Plan
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Defect, Problem
from imagekit.protection import Seal
from imagekit.store import Stored, size_of
from imagekit.tree import Tree, file

MIB = 1 << 20
DATA_SIZE = 64 * MIB  # bytes of the sealed partition as it is shipped
DATA_SYSTEM = 16 * MIB  # of the file system that the first boot begins with
ENDS = 2 * MIB  # of a disk, for its two tables
LOADER = "/boot/loader"
AGAIN = 10  # seconds
RECORD = struct.Struct("<QQ")


class Root(NamedTuple):
    """A file system and the hashes of its blocks."""

    data: Sparse
    hashes: verity.Verity
    salt: bytes

    @property
    def blocks(self) -> int:
        """How many blocks of the file system are hashed: all of them."""
        return self.data.size // verity.BLOCK

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"root_hash": self.hashes.root_hash.hex(), "salt": self.salt.hex(), "blocks": self.blocks}


class Slot(NamedTuple):
    """What is one image of two: a UKI, and the root that it finds wherever that lies."""

    program: list[bytes | Stored]
    root: Root | None  # in the initrd


def plan(tree: Tree, *, job: Job) -> Plan:
    """All of a disk that protects it, as its layout says. Raises Problem where what that takes is not there."""
    made = slot(tree, job=job)
    files, boot_size = _boot(tree, made, job)
    started = {path: content for path, content in files.items() if isinstance(content, list)}
    parts = _roots(made.root, boot_size, job) if made.root else rooted.parts(tree, job=job)
    return Plan(files, boot_size, [*parts, *_data(job)], _facts(started, made.root, job))


def slot(tree: Tree, *, job: Job) -> Slot:
    """The UKI of a bootable tree, and its root if that is checked."""
    checked = root(rooted.without_boot(tree), seed=tree.digest, job=job) if job.layout.verity else None
    if checked:
        told = uki.arguments(tree, job=job, words=(*arguments(checked, job=job), *_again(tree, job)))
    else:
        told = uki.arguments(tree, job=job, words=_again(tree, job), **rooted.where(tree, job=job))
    return Slot(program(tree, rooted.initrd(tree, job=job), arguments=told, job=job), checked)


def alone(tree: Tree, *, job: Job) -> tuple[list[bytes | Stored], Mapping[str, Any]]:
    """A UKI that has the root in its initrd, for a disk that is somebody else's; and what a manifest says of it."""
    made = program(tree, initrd.root(tree), arguments=uki.arguments(tree, job=job), job=job)
    return made, _facts({_first(job.arch): made}, None, job)


def root(files: Tree, *, seed: str, job: Job) -> Root:
    """These files as the layout's kind of file system, and its hashes; salt and ids derive from the seed."""
    made = roots.write(files, kind=job.layout.root, seed=seed, job=job)
    data = laid(-(-made.size // verity.BLOCK) * verity.BLOCK, [Piece(0, made)])
    salt = ids.salt(seed, "verity")
    return Root(data, verity.tree(data, salt=salt, uuid=ids.guid(seed, "verity")), salt)


def arguments(of: Root, *, job: Job) -> tuple[str, ...]:
    """The kernel's arguments by which a root is found and checked."""
    if not job.layout.verity:
        raise Defect("a root has hashes, and the layout wants none")
    told = f"{of.salt.hex()}:{of.blocks}:{of.hashes.root_hash.hex()}:{job.layout.verity.corrupted}"
    return (f"rootfstype={job.layout.root}", f"imagekit.verity={told}")


def _again(tree: Tree, job: Job) -> tuple[str, ...]:
    """An image that may have another one to fall back to starts again where its kernel, or its initrd, gives up."""
    has_own = " panic=" in f" {tree.read(uki.CMDLINE).decode('utf-8', 'replace')}"
    return (f"panic={AGAIN}",) if job.layout.slots > 1 and not has_own else ()


def program(tree: Tree, whole: Tree, *, arguments: str, job: Job) -> list[bytes | Stored]:
    """A UKI piece by piece, of the initrd that `whole` is without what opens disks."""
    parts = initrd.laid(_opening(whole, seed=tree.digest, job=job), store=job.store)
    of = uki.programs(tree, arch=job.arch)
    if job.layout.seal:
        stub.check_arguments(of.stub, pcrs=job.layout.seal.pcrs)
    made = uki.contents(tree, parts, arguments=arguments, of=of, approval=_approval(job))
    return _signed(list(made), job)


def room(size: int, *, slots: int) -> int:
    """Bytes of a partition for something of this size: with two slots half as much again, for what updates bring."""
    return -(-size * (3 if slots > 1 else 2) // 2 // MIB) * MIB


def _facts(started: Mapping[str, prediction.Pieces], checked: Root | None, job: Job) -> dict[str, Any]:
    """What a manifest says of how its disk, or its UKI, is protected; started: programs by their paths, in order."""
    seal, secure = job.layout.seal, job.layout.secure_boot
    told: dict[str, Any] = {"uki": authenticode.digest(list(started.values())[-1]).hex()}
    if checked:
        told["verity"] = checked.facts
    if seal:
        told["seal"] = {"disk": seal.disk, "mount": seal.mount, "pcrs": sorted(seal.pcrs), "policy": seal.policy}
        told["generation"] = seal.generation
    if secure:
        told["secure_boot"] = sha256(keys(job).certificate(secure.key).whole).hexdigest()
    return told | (_measured(started, job) if seal or secure else {})


def _measured(started: Mapping[str, prediction.Pieces], job: Job) -> dict[str, Any]:
    """The PCRs of a machine that starts these, as far as they are of the image, and of the keys if these are here.

    None are told where nobody knows what its programs measure; a sealed disk would then never open.
    """
    secure = job.layout.secure_boot
    enrolled = prediction.enrolled(keys(job)) if secure else None
    signer = keys(job).certificate(secure.key).whole if secure else b""
    try:
        found = prediction.of(started, variables=enrolled, signer=signer).values()
    except stub.Unknown:
        if job.layout.seal:
            raise
        return {}
    return {"pcrs": {str(pcr): value.hex() for pcr, value in found.items()}}


def _boot(tree: Tree, made: Slot, job: Job) -> tuple[dict[str, fat.Content], int]:
    """What lies on the EFI system partition, and how large this is at least."""
    first = _first(job.arch)
    if job.layout.slots == 1:
        return {first: made.program}, 0
    slots.check(job.name, job.version)
    files: dict[str, fat.Content] = {
        first: _signed([_loader(tree, job.arch)], job),
        slots.LOADER: slots.LOADER_TEXT,
        slots.uki(job.name, job.version): made.program,
    }
    size = sum(map(size_of, made.program))
    needed, wanted = (
        fat.least({**files, slots.uki(job.name, "next"): [bytes(more)]}) for more in (size, room(size, slots=2))
    )
    if job.layout.boot_bytes and job.layout.boot_bytes < needed:
        raise Problem(
            f"disk: boot_size={job.layout.boot_size!r} has no room for two UKIs of {size} bytes, which slots=2 takes",
            f'boot_size="" leaves some for larger ones; {needed} bytes are the least',
        )
    return files, 0 if job.layout.boot_bytes else wanted


def _signed(pieces: list[bytes | Stored], job: Job) -> list[bytes | Stored]:
    """A program with the signature that the layout wants, if it wants one."""
    secure = job.layout.secure_boot
    return authenticode.signed(pieces, keys(job).pair(secure.key)) if secure else pieces


def _approval(job: Job) -> pcrsign.Approval | None:
    """Who signs what PCR 11 will be."""
    seal = job.layout.seal
    if not seal or seal.policy != "signed":
        return None
    return pcrsign.Approval(keys(job).signer(seal.key), seal.generation)


def keys(job: Job) -> BootKeys:
    """The boot keys, which a job has when its layout needs some."""
    if not job.boot_keys:
        raise Defect("a layout needs boot keys, and nobody brought them")
    return job.boot_keys


def _first(arch: str) -> str:
    """What UEFI starts of a disk that nobody named a program of (UEFI 2.10, 3.5.1.1)."""
    return f"EFI/BOOT/BOOT{ARCHES[arch].efi}.EFI"


def _loader(tree: Tree, arch: str) -> bytes:
    """The program that chooses a slot. Raises Problem when it is not there, or for another machine."""
    if LOADER not in tree:
        raise Problem("slots=2 needs systemd-boot, of the package systemd-boot-efi", "`imagekit lock` adds it")
    data = tree.read(LOADER)
    if (found := pe.machine(data, what=LOADER)) != arch:
        raise Problem(f"{LOADER} is for {found}, and the image for {arch}", "write the lock again: `imagekit lock`")
    return data


def _roots(made: Root, boot_size: int, job: Job) -> Iterator[Part]:
    """The partitions of each slot, the first with what is shipped."""
    size = max(room(made.data.size, slots=job.layout.slots), _share(boot_size, job))
    for letter in "ab"[: job.layout.slots]:
        data, device = (made.data.pieces, (Piece(0, made.hashes.device),)) if letter == "a" else ((), ())
        yield Part(f"root-{letter}", ROOTS[job.arch], Sparse(size, data), READ_ONLY)
        yield Part(f"root-{letter}-verity", VERITY[job.arch], Sparse(_of_hashes(size), device), READ_ONLY)


def _share(boot_size: int, job: Job) -> int:
    """What each of two slots has for its root of a disk whose size was given; 0 where it was not."""
    boot = -(-(job.layout.boot_bytes or boot_size) // MIB) * MIB
    rest = job.layout.size_bytes - boot - (DATA_SIZE if job.layout.seal else 0) - ENDS
    half = rest // 2 // MIB * MIB
    if job.layout.slots == 1 or half <= 0:
        return 0
    return next(size for size in range(half, -1, -MIB) if size + _of_hashes(size) <= half)


def _of_hashes(size: int) -> int:
    """Bytes of the partition for the hashes of one of this size."""
    return -(-verity.size(size // verity.BLOCK) // MIB) * MIB


def _data(job: Job) -> list[Part]:
    seal = job.layout.seal
    return [Part(seal.disk, DATA, Sparse(DATA_SIZE, ()), grows=True)] if seal else []


def _opening(whole: Tree, *, seed: str, job: Job) -> Tree:
    """An initrd, and in it what its /init is told of a disk that is to be opened."""
    seal = job.layout.seal
    if not seal:
        return whole
    told = {
        early.SEAL: file(_seal(seal, job).encode(), owner=early.OWNER),
        early.DATA: file(b"".join(_records(seed, job)), owner=early.OWNER),
    }
    return whole.override(Tree(told)).complete()


def _seal(seal: Seal, job: Job) -> str:
    public = (
        {}
        if seal.policy == "exact"
        else {"public": keys(job).signer(seal.key).public.modulus.to_bytes(rsa.SIZE, "big").hex()}
    )
    lines: Mapping[str, Any] = {
        "image": job.name,
        "disk": seal.disk,
        "mount": seal.mount,
        "pcrs": ",".join(map(str, sorted(seal.pcrs))),
        "policy": seal.policy,
        "recovery": seal.recovery,
        "secure_boot": "on" if job.layout.secure_boot else "off",
        "generation": seal.generation,
        **public,
    }
    return "".join(f"{key} {value}\n" for key, value in lines.items())


def _records(seed: str, job: Job) -> Iterator[bytes]:
    """An empty file system without its zeros."""
    made = roots.changes(DATA_SYSTEM, seed=seed, label="data", job=job)
    yield struct.pack("<Q", made.size)
    for offset, data in laid(made.size, [Piece(0, made)]).filled(verity.BLOCK):
        yield RECORD.pack(offset, len(data)) + data
