"""A container image as `docker load` takes it, with a layer per package."""

from hashlib import sha256

from imagekit.artifact import Format, Job, Written
from imagekit.formats import _oci
from imagekit.tree import Tree

LAYERS = "{}.tar.gz"  # moby's tarexport inflates what is compressed, as do podman and skopeo


def write(tree: Tree, *, job: Job) -> dict[str, Written]:
    """What `docker save` wrote before it had OCI layouts: manifest.json, a configuration and the layers."""
    stack = _oci.made(tree, job=job)
    config = _oci.configuration(tree, stack, job=job)
    name = f"{sha256(config).hexdigest()}.json"
    layers = [LAYERS.format(layer.sha256) for layer in stack]
    manifest = [{"Config": name, "RepoTags": [":".join(_oci.reference(job))], "Layers": layers}]
    members = {"/manifest.json": _oci.text(manifest), f"/{name}": config}
    return {"root": _oci.archive(members, stack, names=f"/{LAYERS}", tree=tree, job=job)}


FORMAT = Format(write, suffixes={"root": ".docker.tar"}, kind="root", bootable=False)
