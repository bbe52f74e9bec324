"""Where the mirror's address comes from."""

from pathlib import Path

import pytest

from imagekit import mirror
from imagekit.errors import Problem, RigProblem

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
INLINE_KEY = """\
Types: deb
URIs: https://vendor.example/apt
Suites: bookworm
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(mirror.VARIABLE, raising=False)
    monkeypatch.delenv(mirror.KEYRING_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)


def apt(folder: Path, **files: str) -> Path:
    """A folder like /etc/apt; double underscores in names are dots, `main` is sources.list."""
    (folder / "apt/sources.list.d").mkdir(parents=True)
    for name, text in files.items():
        path = "sources.list" if name == "main" else "sources.list.d/" + name.replace("__", ".")
        (folder / "apt" / path).write_text(text)
    return folder / "apt"


SOURCES = {
    "deb822": ({"debian__sources": DEB822}, ("http://mirror.example/debian", "http://mirror.example/debian-security")),
    "one line": (
        {
            "main": "deb-src http://no.example/debian bookworm main\n"
            "deb http://a.example/debian bookworm main # comment\n"
            "deb\t[arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]\t"
            "https://s.example/sec/ bookworm-security main",
        },
        ("http://a.example/debian", "https://s.example/sec"),
    ),
    "no security": ({"main": "deb http://a.example/x/debian/ trixie main"}, ("http://a.example/x/debian", "http://a.example/x/debian-security")),
    "vendors first": (
        {
            "main": "deb [signed-by=/etc/apt/keyrings/vendor.gpg] https://vendor.example/apt bookworm main\n"
            "deb https://cloud.example/apt cloud-sdk-bookworm main\ndeb https://php.example bookworm main",
            "a__sources": INLINE_KEY,
            "debian__sources": DEB822,
        },
        ("http://mirror.example/debian", "http://mirror.example/debian-security"),
    ),
    "without a keyring, the one whose path says so": (
        {"main": "deb https://php.example bookworm main\ndeb http://b.example/debian bookworm main"},
        ("http://b.example/debian", "http://b.example/debian-security"),
    ),
    "old name of security": (
        {"main": "deb http://a.example/debian buster main\ndeb http://s.example/ buster/updates main"},
        ("http://a.example/debian", "http://s.example"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), SOURCES.values(), ids=SOURCES)
def test_the_hosts_sources_name_the_mirror(tmp_path: Path, files: dict[str, str], expected: tuple[str, str]) -> None:
    found = mirror.find(apt=apt(tmp_path, **files))
    assert (found.address("debian"), found.address("debian-security")) == expected
    assert str(tmp_path) in found.origin


FOREIGN = {
    "nothing": {},
    "another distribution": {"main": "deb http://mirror.example/ubuntu jammy main universe"},
    "a vendor alone": {"v__sources": INLINE_KEY},
    "disabled": {"d__sources": "Enabled: no\n" + DEB822.partition("\n\n")[0]},
    "cdrom": {"main": "deb cdrom:[Debian 12]/ bookworm main\ndeb file:/srv/debian bookworm main"},
    "only sources": {"main": "deb-src http://a.example/debian bookworm main"},
    "other suffix": {"ignored__save": "deb http://a.example/debian bookworm main"},
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_without_one_the_four_ways_are_named(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(RigProblem) as caught:
        mirror.find(apt=apt(tmp_path, **files))
    for way in ("--mirror", "IMAGEKIT_MIRROR", "[tool.imagekit]", "apt sources"):
        assert way in caught.value.hint


def test_the_first_that_is_given_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = apt(tmp_path, debian__sources=DEB822)
    project = tmp_path / "project"
    (project / "images").mkdir(parents=True)
    (project / "pyproject.toml").write_text('[tool.imagekit]\nmirror = "https://p.example/debian/"\n')
    found = mirror.find(apt=host, start=project / "images")
    assert (found.main, found.origin) == ("https://p.example/debian", str(project / "pyproject.toml"))
    monkeypatch.setenv(mirror.VARIABLE, "http://v.example/debian http://v.example/sec")
    assert mirror.find(apt=host, start=project).security == "http://v.example/sec"
    assert (
        mirror.find("http://o.example/debian", apt=host, start=project).security == "http://o.example/debian-security"
    )


@pytest.mark.parametrize(
    "written",
    ["mirror.example/debian", "ftp://x.example/debian", "file:///srv/debian", "http://", "http://a http://b http://c",
     "http://x.example/debian?x=1", "http://[::1/debian"],
)  # fmt: skip
def test_what_is_no_mirror_is_refused(written: str) -> None:
    with pytest.raises(Problem, match="no mirror"):
        mirror.find(written)


def test_a_broken_project_file_is_named(tmp_path: Path) -> None:
    for name, text, words in (
        ("a", "[tool.imagekit]\nmirror =", "cannot read"),
        ("b", "[tool.imagekit]\nmirror = 5\n", "no mirror"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pyproject.toml").write_text(text)
        with pytest.raises(Problem, match=words) as caught:
            mirror.find(start=tmp_path / name)
        assert "pyproject.toml" in caught.value.message


def test_an_archive_that_is_not_debians(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="'other'"):
        mirror.find("http://x.example/debian", start=tmp_path).address("other")


def test_the_key_ring_is_the_shipped_one_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mirror.keyring() == mirror.SHIPPED
    assert mirror.SHIPPED.is_file()
    (tmp_path / "project").mkdir()
    (tmp_path / "project/pyproject.toml").write_text('[tool.imagekit]\nkeyring = "host"\n')
    assert mirror.keyring(start=tmp_path / "project") == mirror.HOST_KEYRING
    monkeypatch.setenv(mirror.KEYRING_VARIABLE, "/some/ring.gpg")
    assert mirror.keyring() == Path("/some/ring.gpg")
    assert mirror.keyring("host") == mirror.HOST_KEYRING
