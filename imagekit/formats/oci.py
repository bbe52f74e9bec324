"""A container image as one tar of an OCI layout, with a layer per package, which podman, skopeo and umoci read."""

from hashlib import sha256
from typing import Any

from imagekit.artifact import Format, Job, Written
from imagekit.formats import _oci
from imagekit.tree import Tree

TYPE = "application/vnd.oci.image."  # "media-types.md"
BLOBS = "/blobs/sha256/{}"


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """The layout of OCI Image Format Specification 1.1, "image-layout.md", as skopeo's oci-archive packs it."""
    stack = _oci.made(tree, job=job)
    config = _oci.configuration(tree, stack, job=job)
    manifest = _oci.text({
        "schemaVersion": 2,
        "mediaType": f"{TYPE}manifest.v1+json",
        "config": _described("config.v1+json", config),
        "layers": [_descriptor("layer.v1.tar+gzip", layer.sha256, layer.size) for layer in stack],
    })  # fmt: skip
    name, tag = _oci.reference(job)
    about = {"org.opencontainers.image.ref.name": tag, "org.opencontainers.image.title": name}
    entry = {**_described("manifest.v1+json", manifest), "platform": _oci.platform(job), "annotations": about}
    index = {"schemaVersion": 2, "mediaType": f"{TYPE}index.v1+json", "manifests": [entry]}
    members = {
        "/oci-layout": _oci.text({"imageLayoutVersion": "1.0.0"}),
        "/index.json": _oci.text(index),
        **{BLOBS.format(sha256(blob).hexdigest()): blob for blob in (config, manifest)},
    }
    return {"root": _oci.archive(members, stack, names=BLOBS, tree=tree, job=job)}


def _described(kind: str, blob: bytes) -> dict[str, Any]:
    return _descriptor(kind, sha256(blob).hexdigest(), len(blob))


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": TYPE + kind, "digest": f"sha256:{digest}", "size": size}


FORMAT = Format(write, suffixes={"root": ".oci.tar"}, kind="root", bootable=False)
