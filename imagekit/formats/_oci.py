"""What oci and docker share: the layers of a tree, and the configuration that tells how a container of it starts.

OCI Image Format Specification 1.1, "OCI Image Configuration"; Docker's own is the same text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from imagekit import early
from imagekit.arch import arch as arch_named
from imagekit.artifact import Job, Written
from imagekit.disk import gzip, initrd, layers, tar
from imagekit.disk.layers import Layer
from imagekit.errors import Problem
from imagekit.tree import Entry, Tree, file

CREATED = "1970-01-01T00:00:00Z"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
VARIANTS = {"arm64": {"variant": "v8"}}  # "image-index.md", "Platform Variants"
REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*\Z")  # distribution-spec, "Pulling manifests"
SHELL = "/bin/sh"


def made(tree: Tree, *, job: Job) -> list[Layer]:
    """The layers of a tree less what a boot takes."""
    return layers.layers(initrd.root(tree), store=job.store)


def platform(job: Job) -> dict[str, str]:
    """Operating system and architecture, by the names that Go gives them."""
    oci = arch_named(job.arch).oci
    return {"architecture": oci, "os": "linux", **VARIANTS.get(oci, {})}


def configuration(tree: Tree, stack: Sequence[Layer], *, job: Job) -> bytes:
    """How a container of the image starts, and what its layers are before they are compressed."""
    return text({
        "created": CREATED,
        **platform(job),
        "config": _start(tree, job),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.diff_id}" for layer in stack]},
        "history": [{"created": CREATED, "created_by": f"imagekit: {layer.owner}"} for layer in stack],
    })  # fmt: skip


def reference(job: Job) -> tuple[str, str]:
    """Repository and tag of an image, as in web:1; raises Problem for a name that no registry takes."""
    if not REPOSITORY.match(job.name):
        raise Problem(
            f"image {job.name!r}: a container image cannot have this name",
            "lower-case letters and digits, between them '.', '_' or '-'",
        )
    return job.name, re.sub(r"[^A-Za-z0-9_.-]", "-", job.version)[:128]


def archive(members: Mapping[str, bytes], stack: Sequence[Layer], *, names: str, tree: Tree, job: Job) -> Written:
    """A tar of these members, and of the layers under names in which {} stands for their sha256."""
    entries: dict[str, Entry] = {path: file(data) for path, data in members.items()}
    entries |= {names.format(layer.sha256): layer.entry(job.store) for layer in stack}
    size = 0

    def counted(data: bytes) -> bytes:
        nonlocal size
        size += len(data)
        return data

    written = job.store.write(map(counted, chain(tar.chunks(Tree(entries).complete().items()), [tar.END])))
    facts = {"compressor": gzip.VERSION, "tree": tree.digest, "layers": [layer._asdict() for layer in stack]}
    return Written(written, size, facts)


def text(value: object) -> bytes:
    """JSON in one form only."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _start(tree: Tree, job: Job) -> dict[str, Any]:
    """The image's only service; a shell where there is none or a choice."""
    name, tag = reference(job)
    labels = {"org.opencontainers.image.title": name, "org.opencontainers.image.version": tag}
    common = {"Labels": labels, "WorkingDir": "/"}
    starts = early.starts(tree)
    if len(starts) != 1:
        shell = {"Cmd": [SHELL]} if {SHELL, "/usr/bin/sh"} & tree.keys() else {}
        return {**common, "Env": [PATH], **shell}
    [only] = starts
    port = re.match(r"(?:tcp|http):(\d+)", only.ready)
    ports: Mapping[str, Any] = {"ExposedPorts": {f"{port[1]}/tcp": {}}} if port else {}
    user = {} if only.user == "root" else {"User": only.user}
    path = () if any(word.startswith("PATH=") for word in only.env) else (PATH,)
    return {**common, "Env": [*path, *only.env], "Cmd": list(only.argv), **user, **ports}
