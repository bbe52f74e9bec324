"""SBOM: what an image is made of, as other tools read it: CycloneDX 1.6, and SPDX 2.3.

Written from a manifest alone, so whoever has the manifest can write the same bytes again: the serial number is a UUIDv5
of the document, and no clock is asked. https://cyclonedx.org/docs/1.6/json/, https://spdx.github.io/spdx-spec/v2.3/,
https://github.com/package-url/purl-spec.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha1, sha256
from itertools import pairwise
from typing import Any

SUFFIX = ".cdx.json"  # CycloneDX's own, "recognised file patterns"
NAMESPACE = bytes.fromhex("6c1b0a4ee5b65b0b8b3b1f0a5f0c9d27")  # of the UUIDs, drawn once
NO_TIME = "1970-01-01T00:00:00Z"  # SPDX must have one; what is the same must not differ by its hour
NONE = "NOASSERTION"
RELEASES = {"buster": "10", "bullseye": "11", "bookworm": "12", "trixie": "13", "forky": "14"}
KINDS = {"wheel": "pypi", "npm": "npm", "debian": "deb/debian", "deb": "deb"}  # source -> type of its purls
LICENCES = frozenset(  # of SPDX's list; another word becomes a LicenseRef
    """0BSD AFL-2.1 AGPL-3.0-only AGPL-3.0-or-later Apache-1.1 Apache-2.0 Artistic-1.0 Artistic-1.0-Perl Artistic-2.0
    BSD-2-Clause BSD-3-Clause BSD-4-Clause BSD-4-Clause-UC BSL-1.0 bzip2-1.0.6 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-3.0
    CC-BY-SA-4.0 CC0-1.0 CDDL-1.0 curl ECL-2.0 EPL-1.0 EPL-2.0 FSFAP FSFUL FSFULLR FTL GFDL-1.1-only GFDL-1.1-or-later
    GFDL-1.2-only GFDL-1.2-or-later GFDL-1.3-only GFDL-1.3-or-later GPL-1.0-only GPL-1.0-or-later GPL-2.0-only
    GPL-2.0-or-later GPL-3.0-only GPL-3.0-or-later HPND ICU IJG ISC LGPL-2.0-only LGPL-2.0-or-later LGPL-2.1-only
    LGPL-2.1-or-later LGPL-3.0-only LGPL-3.0-or-later Libpng MIT MIT-0 MPL-1.1 MPL-2.0 MS-PL NCSA OFL-1.1 OLDAP-2.8
    OpenSSL PHP-3.01 PostgreSQL PSF-2.0 Python-2.0 Ruby SSPL-1.0 TCL Unicode-DFS-2016 Unlicense Vim W3C WTFPL X11
    Zlib ZPL-2.1""".split()  # noqa: SIM905 - read as a list of words
)
EXCEPTIONS = frozenset(
    """Autoconf-exception-3.0 Bison-exception-2.2 Classpath-exception-2.0 GCC-exception-3.1 LLVM-exception
    Libtool-exception Linux-syscall-note OpenJDK-assembly-exception-1.0""".split()  # noqa: SIM905
)
KNOWN = LICENCES | EXCEPTIONS | {"AND", "OR", "WITH", "(", ")"}
WORDS = re.compile(r"\(|\)|[A-Za-z0-9.-]+\+?")
UNQUOTED = re.compile("[A-Za-z0-9.:~_-]*")  # purl-spec, "Character encoding"
Row = Mapping[str, Any]


def cyclonedx(manifest: Mapping[str, Any]) -> bytes:
    """The CycloneDX document of an image."""
    found = rows(manifest)
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [{"type": "application", "name": "imagekit", "version": manifest["imagekit"]}]},
            "component": _image(manifest),
        },
        "components": [_component(ref, row, manifest) for ref, row in found.items()],
        "dependencies": [{"ref": "image", "dependsOn": list(found)}, *({"ref": ref} for ref in found)],
        "compositions": [{"aggregate": "complete", "assemblies": ["image"]}],  # nothing was installed otherwise
    }
    return _identified(document, "serialNumber")


def spdx(manifest: Mapping[str, Any]) -> bytes:
    """The SPDX document of an image."""
    foreign: dict[str, str] = {}
    packages = [_spdx_image(manifest), *map(_spdx_part, manifest["parts"])]
    packages += [_spdx_package(ref, row, foreign) for ref, row in rows(manifest).items()]
    for number, package in enumerate(packages):
        package["SPDXID"] = f"SPDXRef-{number}-{re.sub('[^A-Za-z0-9.-]', '-', package['name'])}"
    first, *others = (package["SPDXID"] for package in packages)
    relations = [("SPDXRef-DOCUMENT", "DESCRIBES", first), *((first, "CONTAINS", other) for other in others)]
    names = ("spdxElementId", "relationshipType", "relatedSpdxElement")
    document: dict[str, Any] = {
        "spdxVersion": "SPDX-2.3",
        "SPDXID": "SPDXRef-DOCUMENT",
        "dataLicense": "CC0-1.0",
        "name": f"{manifest['name']} {manifest['version']} {manifest['arch']} {manifest['format']}",
        "creationInfo": {"created": NO_TIME, "creators": [f"Tool: imagekit-{manifest['imagekit']}"]},
        "packages": packages,
        "relationships": [dict(zip(names, relation, strict=True)) for relation in relations],
    }
    if foreign:
        document["hasExtractedLicensingInfos"] = [
            {"licenseId": ref, "name": text, "extractedText": f"named {text!r} by the package; its text is not here"}
            for ref, text in sorted(foreign.items())
        ]
    return _identified(document, "documentNamespace")


FORMATS: Mapping[str, Callable[[Mapping[str, Any]], bytes]] = {"cyclonedx": cyclonedx, "spdx": spdx}


def purl(row: Row, manifest: Mapping[str, Any]) -> str:
    """The package URL of a row of a manifest: pkg:deb/debian/nginx@1.22?arch=amd64&distro=debian-12."""
    return _purl(str(row.get("source", "debian")), row["name"], row["version"], row["architecture"], manifest)


def rows(manifest: Mapping[str, Any]) -> dict[str, Row]:
    """Each package once, whatever for it was taken, by its purl."""
    found = {purl(row, manifest): row for row in manifest["packages"]}
    return {name: found[name] for name in sorted(found)}


def expression(licence: str) -> tuple[str, dict[str, str]]:
    """A package's own word for its licence as an SPDX expression, and what the LicenseRefs in it stand for."""
    foreign: dict[str, str] = {}
    words = WORDS.findall(licence)
    if not _is_expression(licence, words):
        return _reference(licence, foreign), foreign
    shown = [w if w in KNOWN or w.startswith("LicenseRef-") else _reference(w, foreign) for w in words]
    if any(word in foreign for before, word in pairwise(shown) if before == "WITH"):
        foreign.clear()  # an exception that SPDX does not know has no name in 2.3 (annex D): the whole gets one
        return _reference(licence, foreign), foreign
    foreign |= {word: word.removeprefix("LicenseRef-") for word in shown if word.startswith("LicenseRef-")} | foreign
    return " ".join(shown).replace("( ", "(").replace(" )", ")"), foreign


def _image(manifest: Mapping[str, Any]) -> dict[str, Any]:
    files = [{"type": "file", "bom-ref": f"part:{part['role']}", "name": part["file"], "hashes": _hashes(part)}
             for part in manifest["parts"]]  # fmt: skip
    named = {name: manifest[name] for name in ("arch", "format", "tree", "definition", "lock") if name in manifest}
    about = {"type": "operating-system", "bom-ref": "image", "name": manifest["name"], "version": manifest["version"]}
    return {**about, "components": files, "properties": _properties(named)}


def _component(ref: str, row: Row, manifest: Mapping[str, Any]) -> dict[str, Any]:
    found = {"type": "library", "bom-ref": ref, "purl": ref, "name": row["name"], "version": row["version"],
             "hashes": _hashes(row)}  # fmt: skip
    if row.get("licence"):
        found["licenses"] = [{"expression": expression(row["licence"])[0]}]
    name, version = row.get("origin") or ("", "")
    if name:
        source = _purl(str(row.get("source", "debian")), name, version, "source", manifest)
        found["pedigree"] = {"ancestors": [{"type": "library", "name": name, "version": version, "purl": source}]}
    return {**found, "properties": _properties({"size": row["size"], "tree": row.get("digest", "")})}


def _spdx_image(manifest: Mapping[str, Any]) -> dict[str, Any]:
    about = _spdx_about(manifest["name"], manifest["version"])
    return {**about, "primaryPackagePurpose": "OPERATING-SYSTEM", "comment": f"tree {manifest['tree']}"}


def _spdx_part(part: Row) -> dict[str, Any]:
    named = {"packageFileName": part["file"], "checksums": _checksums(part), "primaryPackagePurpose": "FILE"}
    return {**_spdx_about(part["file"], ""), **named}


def _spdx_package(ref: str, row: Row, foreign: dict[str, str]) -> dict[str, Any]:
    reference = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": ref}
    found = {**_spdx_about(row["name"], row["version"]), "checksums": _checksums(row), "externalRefs": [reference]}
    if row.get("licence"):
        found["licenseDeclared"], refs = expression(row["licence"])
        foreign |= refs
    name, version = row.get("origin") or ("", "")
    return {**found, "sourceInfo": f"built from source package: {name} {version}".strip()} if name else found


def _spdx_about(name: str, version: str) -> dict[str, Any]:
    unsaid = dict.fromkeys(("downloadLocation", "licenseConcluded", "licenseDeclared", "copyrightText"), NONE)
    return {"name": name, **({"versionInfo": version} if version else {}), "filesAnalyzed": False, **unsaid}


def _purl(source: str, name: str, version: str, arch: str, manifest: Mapping[str, Any]) -> str:
    kind = KINDS.get(source, "generic")
    if kind == "pypi":
        name = re.sub("[-_.]+", "-", name).lower()
    told = ""
    if kind.startswith("deb"):
        release = RELEASES.get(manifest.get("suite", ""), "")
        distro = f"&distro=debian-{release}" if release and kind == "deb/debian" else ""
        told = f"?arch={_quoted(arch)}{distro}"
    path = "/".join(map(_quoted, name.split("/")))  # npm's scope is a namespace
    return f"pkg:{kind}/{path}{'@' * bool(version)}{_quoted(version)}{told}"


def _quoted(text: str) -> str:
    if UNQUOTED.fullmatch(text):
        return text
    return re.sub(rb"[^A-Za-z0-9.:~_-]", lambda found: b"%%%02X" % found[0][0], text.encode()).decode()


def _is_expression(licence: str, words: Sequence[str]) -> bool:
    """Whether a text is shaped as an expression is (SPDX 2.3, annex D): names, with operators between them."""
    if "".join(words) != re.sub(r"\s", "", licence) or not words:
        return False
    depth, wants_name = 0, True
    for word in words:
        is_name = word not in ("AND", "OR", "WITH", ")")
        if is_name != wants_name:
            return False
        depth += {"(": 1, ")": -1}.get(word, 0)
        wants_name = word in ("AND", "OR", "WITH", "(")
        if depth < 0:
            return False
    return depth == 0 and not wants_name


def _reference(text: str, foreign: dict[str, str]) -> str:
    """A name of our own for a licence that is on no list."""
    name = re.sub("[^A-Za-z0-9.]+", "-", text).strip("-")[:64]
    if name != text:
        name = f"{name}-{sha256(text.encode()).hexdigest()[:8]}"
    foreign[f"LicenseRef-{name}"] = text
    return f"LicenseRef-{name}"


def _hashes(of: Row) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": of["sha256"]}]


def _checksums(of: Row) -> list[dict[str, str]]:
    return [{"algorithm": "SHA256", "checksumValue": of["sha256"]}]


def _properties(named: Mapping[str, object]) -> list[dict[str, str]]:
    return [{"name": f"imagekit:{name}", "value": str(value)} for name, value in named.items() if value != ""]


def _identified(document: Mapping[str, Any], field: str) -> bytes:
    """A document as bytes, with a number that follows from all the rest of it."""
    body = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f'{{"{field}":"urn:uuid:{_uuid(sha256(body.encode()).hexdigest())}",{body[1:]}\n'.encode()


def _uuid(name: str) -> str:
    """Version 5 of RFC 9562 (section 5.5); Python's uuid takes longer to import than all of a document to write."""
    raw = bytearray(sha1(NAMESPACE + name.encode()).digest()[:16])
    raw[6], raw[8] = raw[6] & 0x0F | 0x50, raw[8] & 0x3F | 0x80
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
