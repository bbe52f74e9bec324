"""A tiny index for tests (PEP 503): wheels made from dictionaries, with a page for each project."""

import base64
import html
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from debian_mirror import Mirror, serving
from packaging.utils import canonicalize_name

Files = Mapping[str, bytes | str]
TAG = "py3-none-any"


def record(files: Mapping[str, bytes], info: str) -> bytes:
    """A RECORD as the specification has it."""
    lines = [
        f"{name},sha256={base64.urlsafe_b64encode(sha256(data).digest()).rstrip(b'=').decode()},{len(data)}"
        for name, data in files.items()
    ]
    return "\n".join([*lines, f"{info}/RECORD,,", ""]).encode()


def wheel(
    name: str, version: str = "1.0", files: Files | None = None, *, tag: str = TAG, requires: tuple[str, ...] = (),
    extra: str = "", more: Files | None = None, change: Callable[[dict[str, bytes]], None] = lambda _: None,
) -> bytes:  # fmt: skip
    """A wheel; `more` replaces or adds to what is in it, `change` whatever is in the archive, after its RECORD."""
    stem = name.replace("-", "_")
    info = f"{stem}-{version}.dist-info"
    tags = [f"Tag: {p}-{a}-{m}" for p in tag.split("-")[0].split(".") for a in tag.split("-")[1].split(".")
            for m in tag.split("-")[2].split(".")]  # fmt: skip
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    found: dict[str, bytes | str] = dict(files if files is not None else {f"{stem}/__init__.py": f"# {name}\n"})
    found[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}{extra}\nText\n"
    found[f"{info}/WHEEL"] = "\n".join(["Wheel-Version: 1.0", "Generator: tests", "Root-Is-Purelib: true", *tags, ""])
    found |= more or {}
    data = {path: text.encode() if isinstance(text, str) else text for path, text in found.items()}
    data[f"{info}/RECORD"] = record(data, info)
    change(data)
    return packed(data)


def packed(data: Mapping[str, bytes]) -> bytes:
    """These files as a zip."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in data.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if path.endswith(".sh") else 0o100644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return out.getvalue()


class Index:
    """A running index."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror
        self.files: dict[str, list[str]] = {}

    @property
    def address(self) -> str:
        """Where its pages are."""
        return f"{self.mirror.address}/simple"

    def add(self, name: str, version: str = "1.0", *, tag: str = TAG, link: str = "", **wheels: object) -> str:
        """Publish a wheel; the name of its file. link: what else its link says."""
        file = f"{name.replace('-', '_')}-{version}-{tag}.whl"
        self.put(file, wheel(name, version, tag=tag, **wheels), link=link)  # type: ignore[arg-type]
        return file

    def put(self, file: str, data: bytes, *, link: str = "", digest: str = "") -> None:
        """Publish these bytes under a file's name."""
        project = canonicalize_name(file.split("-")[0])
        (self.mirror.folder / "files").mkdir(exist_ok=True)
        (self.mirror.folder / "files" / file).write_bytes(data)
        digest = digest or f"#sha256={sha256(data).hexdigest()}"
        self.files.setdefault(project, []).append(
            f'<a href="../../files/{file}{digest}" {link}>{html.escape(file)}</a>'
        )
        self.write(project)

    def write(self, project: str) -> None:
        """Write the page of a project."""
        page = "<!DOCTYPE html><html><body>" + "<br/>\n".join(self.files[project]) + "</body></html>"
        self.mirror.answers[f"/simple/{project}/"] = lambda answer: answer.body(page.encode())


@contextmanager
def serving_index(folder: Path) -> Iterator[Index]:
    """Serve an index until the block ends."""
    folder.mkdir()
    with serving(folder) as mirror:
        yield Index(mirror)
