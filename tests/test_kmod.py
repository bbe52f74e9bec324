"""Kernel modules: what they say of themselves, and the order in which they are loaded."""

import struct

import pytest

from imagekit.disk import kmod
from imagekit.errors import Problem
from imagekit.tree import Tree, file


def module(**info):
    """The least ELF-64 object with a .modinfo section: header, three sections, their names."""
    strings = b"".join(f"{key}={value}".encode() + b"\0" for key, values in info.items() for value in values)
    names = b"\0.modinfo\0.shstrtab\0"
    header = bytearray(64)
    header[:4] = b"\x7fELF"
    struct.pack_into("<Q", header, 40, 64 + len(strings) + len(names))
    struct.pack_into("<HHH", header, 58, 64, 3, 2)
    rows = [(0, 0, 0), (1, 64, len(strings)), (10, 64 + len(strings), len(names))]
    table = b"".join(struct.pack("<IIQQQQIIQQ", name, 0, 0, 0, at, size, 0, 0, 0, 0) for name, at, size in rows)
    return bytes(header) + strings + names + table


def kernel(**modules):
    files = {
        f"/usr/lib/modules/6.1/kernel/{name.replace('_', '-')}.ko": file(module(**info))
        for name, info in modules.items()
    }
    return Tree({**files, "/usr/lib/modules/6.1/modules.builtin": file(b"kernel/fs/built-in-one.ko\n")})


TREE = kernel(
    virtio={},
    virtio_ring={"depends": ["virtio"]},
    virtio_net={"depends": ["virtio-ring,virtio,built_in_one"]},
    ext4={"softdep": ["pre: crc32c post: late"], "depends": ["jbd2"]},
    jbd2={},
    late={},
    crc32c_generic={"alias": ["crc32c", "crypto-crc32c"]},
    crc32c_intel={"alias": ["crc32c"]},
)


def order(*names):
    return [path.rpartition("/")[2].removesuffix(".ko") for path in kmod.scan(TREE).closure(names)]


@pytest.mark.parametrize(
    ("asked", "loaded"),
    [
        (["virtio"], ["virtio"]),
        (["virtio-net"], ["virtio", "virtio-ring", "virtio-net"]),
        (["virtio_net", "virtio"], ["virtio", "virtio-ring", "virtio-net"]),
        (["built_in_one"], []),
        (["ext4"], ["crc32c-generic", "jbd2", "ext4"]),
    ],
)
def test_closure_loads_what_is_needed_first(asked, loaded):
    assert order(*asked) == loaded


@pytest.mark.parametrize(("name", "is_there"), [("virtio-net", True), ("built_in_one", True), ("nope", False)])
def test_a_kernel_has_what_is_a_module_or_built_in(name, is_there):
    assert kmod.scan(TREE).has(name) is is_there


def test_an_unknown_module_is_a_problem_that_names_the_near_ones():
    with pytest.raises(Problem, match="unknown kernel module 'virtio_nett'") as caught:
        order("virtio_nett")
    assert "virtio_net" in caught.value.hint


def test_a_missing_dependency_names_who_wants_it():
    broken = kernel(a={"depends": ["gone"]})
    with pytest.raises(Problem, match=r"gone.*needed by a"):
        kmod.scan(broken).closure(["a"])


def test_what_is_remembered_is_the_same():
    import json

    found = kmod.scan(TREE)
    assert kmod.from_json(json.loads(json.dumps(kmod.to_json(found)))) == found


@pytest.mark.parametrize("size", [0, 10, 63, 64, 70, 120])
def test_a_cut_module_is_a_problem(size):
    whole = module(depends=["x"])
    tree = Tree({"/usr/lib/modules/6.1/kernel/cut.ko": file(whole[:size])})
    with pytest.raises(Problem, match=r"cut\.ko is not a kernel module"):
        kmod.scan(tree)
