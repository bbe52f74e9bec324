"""The size of an artifact, and what it is made of."""

from imagekit.artifact import Artifact

SHOWN = 10
UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def breakdown(artifact: Artifact) -> str:
    """The largest packages and paths, before compression: what a test says when an artifact is too large."""
    packages = sorted(artifact.manifest["packages"], key=lambda package: -package["size"])[:SHOWN]
    paths = artifact.manifest["largest"][:SHOWN]
    return "\n".join(
        [
            f"{artifact.name} {artifact.arch} {artifact.format} has {text(artifact.size)}:",
            *(f"  {text(part.size):>10}  {part.role}" for part in artifact.parts),
            "largest packages, uncompressed:",
            *(f"  {text(package['size']):>10}  {package['name']} {package['version']}" for package in packages),
            "largest paths, uncompressed:",
            *(f"  {text(size):>10}  {path}" for path, size in paths),
        ]
    )


def text(count: float) -> str:
    """A number of bytes for people: "18.2 MiB"."""
    for unit, size in UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
