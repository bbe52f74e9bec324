"""The catalogue: small, the same bytes for the same images, and asked as one would ask each manifest."""

import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from imagekit import artifact, catalogue, holdings, key, query
from imagekit.catalogue import Catalogue, Known
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

ROWS = {
    "web": [("openssl", "3.0.14-1+b2", "openssl", "3.0.14-1", "Apache-2.0"),
            ("libssl3", "3.0.14-1+b2", "openssl", "3.0.14-1", "Apache-2.0"), ("curl", "7.88-1", "", "", "")],
    "db": [("libssl3", "3.0.15-1~deb12u1", "openssl", "3.0.15-1~deb12u1", "Apache-2.0"),
           ("bash", "5.2-1", "bash", "5.2-1", "GPL-3.0-or-later AND (MIT OR BSD-3-Clause)")],
    "old": [("libssl1.1", "1:1.1.1-1", "openssl", "1:1.1.1-1", "OpenSSL")],
}  # fmt: skip


def manifest(name: str, rows: list[tuple[str, ...]]) -> dict[str, Any]:
    packages = [{"name": n, "version": v, "architecture": "amd64", "sha256": sha256(f"{n} {v}".encode()).hexdigest(),
                 "size": 1, "source": "debian", "origin": [o, ov], "licence": licence}
                for n, v, o, ov, licence in rows]  # fmt: skip
    return {"name": name, "version": "1", "arch": "x86_64", "format": "tar", "kind": "root", "suite": "bookworm",
            "parts": [], "packages": packages}  # fmt: skip


def known(*, backwards: bool = False) -> Known:
    names = sorted(ROWS, reverse=backwards)
    made = {name: manifest(name, ROWS[name][:: -1 if backwards else 1]) for name in names}
    images = {catalogue.image(m, place=f"{n}.manifest.json", mark="", digest=""): catalogue.packages(m)
              for n, m in made.items()}  # fmt: skip
    digest = {n: sha256(f"{n} {v}".encode()).digest() for rows in ROWS.values() for n, v, *_ in rows}
    paths = {digest["curl"]: ["/usr/bin/curl", "/usr/share/doc/curl/copyright"], digest["bash"]: ["/usr/bin/bash"]}
    return Known(images, paths)


@pytest.fixture(scope="module")
def whole() -> Catalogue:
    return catalogue.read(catalogue.write(known()))


@pytest.mark.parametrize(
    ("questions", "names"),
    [
        (["openssl<3.0.15"], "web"),  # 3.0.15-1~deb12u1 is no more before 3.0.15 than 3.0.15-1 is
        (["openssl<=3.0.14-1"], "web"),  # a package built again has its source's version
        (["openssl=3.0.14-1"], "web"),
        (["openssl"], "db old web"),
        (["libssl*"], "db old web"),
        (["openssl>=3,<3.0.15"], "web"),
        (["openssl<<1:0"], "db web"),
        (["openssl>1:0"], "old"),
        (["path:/usr/bin/curl"], "web"),
        (["path:/usr/bin/*"], "db web"),
        (["path:/usr/*"], ""),
        (["path:/usr/**"], "db web"),
        (["path:/usr/bin"], ""),
        (["licence:GPL-3.0*"], "db"),
        (["licence:MIT"], "db"),
        (["license:Apache-2.0"], "db web"),
        (["openssl", "path:/usr/bin/curl"], "web"),
        (["nothing"], ""),
    ],
)
def test_questions(whole: Catalogue, questions: list[str], names: str) -> None:
    answer = query.ask(whole, questions)
    assert " ".join(one.image.name for one in answer.found) == names
    assert all(one.packages for one in answer.found)


def test_what_is_not_known_is_told(whole: Catalogue) -> None:
    assert query.ask(whole, ["licence:MIT"]).unsure == ("of 1 packages no licence is known",)
    assert query.ask(whole, ["path:/usr/bin/curl"]).unsure == ("of 4 packages the files are not known",)


@pytest.mark.parametrize("text", ["", "<3", "openssl<", "openssl<3 0", "openssl<3,4", "path:", "licence:", "a" * 501,
                                  "path:" + "*a" * 5, "open ssl", "openssl=\n"])  # fmt: skip
def test_what_is_no_question_is_refused(whole: Catalogue, text: str) -> None:
    with pytest.raises(Problem):
        query.ask(whole, [text])


def test_the_same_images_are_the_same_bytes_and_come_back() -> None:
    data = catalogue.write(known())
    assert data == catalogue.write(known(backwards=True))
    assert catalogue.write(catalogue.read(data).known()) == data


def test_a_changed_byte_is_noticed() -> None:
    data = catalogue.write(known())
    for at in range(0, len(data), 7):
        with pytest.raises(Problem):
            catalogue.read(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(Problem):
            catalogue.read(data[:at])


def test_a_catalogue_sealed_by_somebody_hostile_is_refused_or_read_in_bounds() -> None:
    """Whatever numbers it has, nothing but a Problem comes of it."""
    body, chance, refused = catalogue.write(known())[:-32], random.Random(7), 0
    for _ in range(400):
        changed = bytearray(body)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(catalogue.MAGIC), len(body))] = chance.choice((0, 1, 10, 255))
        try:
            found = catalogue.read(bytes(changed) + sha256(changed).digest())
            query.ask(found, ["openssl<3.0.15"])
            query.ask(found, ["path:/**"])
            found.known()
        except Problem:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"name": "a\nb", "version": "1"}, "is no text"),
        ({"name": "a"}, "without a name or version"),
        ({"name": 1, "version": "1"}, "is no text"),
        ({"name": "a", "version": "1", "origin": ["x"]}, "is no name and version"),
        ("a", "no object"),
    ],
)
def test_a_manifest_that_lists_no_packages_is_refused(row: object, words: str) -> None:
    with pytest.raises(Problem, match=words):
        catalogue.packages({"packages": [row]})


def test_holdings_follow_the_files(tmp_path: Path) -> None:
    """Only what is signed is taken; what came and went is noticed; a damaged catalogue is made again."""
    signer, store, out = key.new(), open_store(tmp_path / "cache"), tmp_path / "out"
    out.mkdir()

    def put(name: str, by: key.Key) -> Path:
        text = artifact.canonical(manifest(name, ROWS[name]))
        path = out / f"{name}.manifest.json"
        path.write_bytes(text)
        path.with_name(path.name + ".minisig").write_text(by.sign(text, comment="made up"))
        return path

    def names() -> list[str]:
        return [one.name for one in holdings.update([out], keys=[signer], store=store).catalogue.images()]

    put("web", signer)
    other = put("db", key.new())
    assert names() == ["web"]
    assert list(holdings.update([out], keys=[signer], store=store).left_out) == [str(other)]
    put("db", signer)
    assert names() == ["db", "web"]
    for kept in (tmp_path / "cache/catalogues").iterdir():
        kept.write_bytes(kept.read_bytes()[:-1])
    assert names() == ["db", "web"]
    (out / "web.manifest.json").unlink()
    assert names() == ["db"]
