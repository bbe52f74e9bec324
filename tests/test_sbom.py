"""SBOMs: valid for those who own the schemas, the same bytes for the same manifest, each package with its source."""

import json
import uuid

import pytest
from cyclonedx.model.bom import Bom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import get_spdx_licensing
from packageurl import PackageURL
from spdx_tools.spdx.parser.jsonlikedict.json_like_dict_parser import JsonLikeDictParser
from spdx_tools.spdx.validation.document_validator import validate_full_spdx_document

from imagekit import sbom


def row(name, version="1.0-1", architecture="amd64", *, digit="a", **more):
    """A row of a manifest."""
    return {"name": name, "version": version, "architecture": architecture, "sha256": digit * 64, "size": 1, **more}


MANIFEST = {
    "imagekit": "0.1.0", "name": "web", "version": "1", "arch": "x86_64", "format": "raw_efi", "kind": "disk",
    "suite": "bookworm", "definition": "d" * 64, "lock": "c" * 64, "tree": "b" * 64,
    "parts": [{"role": "disk", "file": "web_1_x86_64.efi.img", "size": 9, "sha256": "e" * 64}],
    "packages": [
        row("nginx", "1.22.1-9+deb12u1", source="debian", origin=["nginx", "1.22.1-9"], licence="BSD-2-Clause"),
        row("libstdc++6", "1:12.2.0-14~deb12u1", source="debian", origin=["gcc-12", "12.2.0-14"], digest="f" * 64,
            licence="GPL-3.0-or-later WITH GCC-exception-3.1"),
        row("tzdata", architecture="all", licence="public-domain, mostly"),
        row("fastapi", "0.115.0", "any", source="wheel", licence="MIT"),
        row("Foo_Bar.x", "2", "any", source="wheel", licence="GPL-2+ AND (MIT OR Zlib)"),
        row("@scope/left-pad", "1.3.0", "any", source="npm", licence="GPL-2.0-only WITH Nobodys-exception"),
        row("agent", "1", source="deb", licence="LicenseRef-Ours"),
        row("vendor/app.tar.gz", "", "any", source="tarball", licence="(MIT"),
        row("tzdata", architecture="all", licence="public-domain, mostly"),  # taken for two things
        row("grüße", source="directory"),
    ],
}  # fmt: skip


def test_cyclonedx_is_valid_and_read():
    text = sbom.cyclonedx(MANIFEST).decode()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bom = Bom.from_json(json.loads(text))
    found = {component.name: component for component in bom.components}
    assert len(found) == len(bom.components) == 9
    assert found["nginx"].purl.to_string() == "pkg:deb/debian/nginx@1.22.1-9%2Bdeb12u1?arch=amd64&distro=debian-12"
    [source] = found["libstdc++6"].pedigree.ancestors
    assert (source.name, source.version) == ("gcc-12", "12.2.0-14")
    assert source.purl.qualifiers == {"arch": "source", "distro": "debian-12"}
    assert {h.content for h in found["nginx"].hashes} == {"a" * 64}
    assert {p.name: p.value for p in found["libstdc++6"].properties} == {
        "imagekit:size": "1", "imagekit:tree": "f" * 64
    }  # fmt: skip
    assert bom.metadata.timestamp is None or "timestamp" not in text  # the reader makes one up
    [image] = [d for d in bom.dependencies if d.ref.value == "image"]
    assert len(image.dependencies) == 9


def test_what_is_no_cyclonedx_is_told_by_the_same_reader():
    broken = json.loads(sbom.cyclonedx(MANIFEST)) | {"specVersion": 1.6}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_spdx_is_valid_and_read():
    found = JsonLikeDictParser().parse(json.loads(sbom.spdx(MANIFEST)))
    assert validate_full_spdx_document(found) == []
    packages = {package.name: package for package in found.packages}
    assert len(packages) == len(found.packages) == 11
    assert packages["libstdc++6"].source_info == "built from source package: gcc-12 12.2.0-14"
    assert str(packages["nginx"].license_declared) == "BSD-2-Clause"
    assert packages["web_1_x86_64.efi.img"].checksums[0].value == "e" * 64
    names = {info.license_name for info in found.extracted_licensing_info}
    assert names == {"GPL-2+", "public-domain, mostly", "GPL-2.0-only WITH Nobodys-exception", "(MIT", "Ours"}
    found.packages[0].spdx_id = "SPDXRef-nobody"
    assert validate_full_spdx_document(found) != []


@pytest.mark.parametrize("write", sbom.FORMATS.values(), ids=sbom.FORMATS)
def test_the_same_manifest_gives_the_same_bytes_and_another_one_another_number(write):
    def number(document):
        found = json.loads(document)
        return found.get("serialNumber") or found["documentNamespace"]

    shuffled = dict(reversed(MANIFEST.items())) | {"packages": MANIFEST["packages"][::-1]}
    assert write(MANIFEST) == write(shuffled)
    others = [{**MANIFEST, "tree": "0" * 64}, {**MANIFEST, "packages": MANIFEST["packages"][1:]}]
    numbers = {number(write(one)) for one in (MANIFEST, *others)}
    assert len(numbers) == len(others) + 1
    assert {uuid.UUID(one).version for one in numbers} == {5}


def test_numbers_are_uuids_as_python_makes_them():
    assert sbom._uuid("name") == str(uuid.uuid5(uuid.UUID(bytes=sbom.NAMESPACE), "name"))


@pytest.mark.parametrize("one", MANIFEST["packages"], ids=lambda one: one["name"])
def test_purls_are_canonical(one):
    found = sbom.purl(one, MANIFEST)
    assert PackageURL.from_string(found).to_string() == found


@pytest.mark.parametrize(
    ("suite", "source", "end"),
    [
        ("trixie", "debian", "?arch=amd64&distro=debian-13"),
        ("sid", "debian", "?arch=amd64"),
        ("bookworm", "deb", "?arch=amd64"),
        ("bookworm", "tarball", ""),
        ("bookworm", "nobodys", ""),
    ],
)
def test_a_purl_names_the_release_where_it_is_known(suite, source, end):
    assert sbom.purl(row("a", "1", source=source), {"suite": suite}).partition("@1")[2] == end


@pytest.mark.parametrize(
    ("licence", "expression"),
    [
        ("MIT", "MIT"),
        ("MIT AND (GPL-2.0-only OR Zlib)", "MIT AND (GPL-2.0-only OR Zlib)"),
        ("GPL-2.0-or-later  WITH Classpath-exception-2.0", "GPL-2.0-or-later WITH Classpath-exception-2.0"),
        ("GPL-2+", "LicenseRef-GPL-2-"),
        ("MIT OR Unheard-of", "MIT OR LicenseRef-Unheard-of"),
        ("MIT OR", "LicenseRef-MIT-OR-"),
        ("MIT Zlib", "LicenseRef-MIT-Zlib-"),
        ("(MIT)) OR (Zlib", "LicenseRef-MIT-OR-Zlib-"),
        ("MIT; see\x00/usr", "LicenseRef-MIT-see-usr-"),
        ("许可", "LicenseRef--"),
    ],
)
def test_a_licence_becomes_an_expression(licence, expression):
    found, foreign = sbom.expression(licence)
    assert found.startswith(expression)
    assert (found == expression) is not expression.endswith("-")
    assert get_spdx_licensing().parse(found, strict=True).render() == found
    assert all(ref in found for ref in foreign)


def test_the_licences_are_of_spdx_own_list():
    known = get_spdx_licensing().known_symbols
    assert {name for name in sbom.LICENCES if name not in known or known[name].is_exception} == set()
    assert {name for name in sbom.EXCEPTIONS if name not in known or not known[name].is_exception} == set()
