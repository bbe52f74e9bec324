"""Packages as definitions write them, and the licences that Debian's copyright files state."""

import pytest

from imagekit import package
from imagekit.errors import Problem
from imagekit.sources import _copyright

HEAD = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: x\n\n"


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("nginx", "nginx", {}),
        ("a.tar.gz prefix=/opt/a strip=1", "a.tar.gz", {"prefix": "/opt/a", "strip": "1"}),
        ("https://x.example/a.tar?b=c sha256=00", "https://x.example/a.tar?b=c", {"sha256": "00"}),
        ("fastapi==0.1", "fastapi==0.1", {}),
    ],
)
def test_words(text, name, options):
    assert package.words(text, ("prefix", "strip", "sha256")) == (name, options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a prefx=/opt", "unknown option 'prefx'"),
        ("a prefix", "'prefix' is no option"),
        ("a prefix=", "'prefix=' is no option"),
        ("a =x", "'=x' is no option"),
        ("a  prefix=/x", "'' is no option"),
        ("a prefix=/x prefix=/y", "prefix is given twice"),
    ],
)
def test_words_that_are_wrong(text, said):
    with pytest.raises(Problem, match=said) as caught:
        package.words(text, ("prefix", "strip"))
    assert "prefix" in f"{caught.value}"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (f"{HEAD}Files: *\nLicense: GPL-2+\n text\n", "GPL-2.0-or-later"),
        (f"{HEAD}Files: *\nLicense: Expat\n\nFiles: b\nLicense: GPL-3\n", "GPL-3.0-only AND MIT"),
        (f"{HEAD}License: GPL-2+ or Artistic\n\nLicense: BSD-3-clause\n",
         "(Artistic-1.0 OR GPL-2.0-or-later) AND BSD-3-Clause"),
        (f"{HEAD}License: LGPL-2.1+\n\nLicense: LGPL-2.1+\n", "LGPL-2.1-or-later"),
        (f"{HEAD}License: Apache-2.0 and MIT\n", "Apache-2.0 AND MIT"),
        (f"{HEAD}License: GPL-2+ with OpenSSL exception\n", "LicenseRef-GPL-2-with-OpenSSL-exception"),
        (f"{HEAD}License: public-domain\n in the public domain\n", "LicenseRef-public-domain"),
        ("This package was debianized by somebody.\nLicense: GPL-2\n", ""),
        ("", ""),
        (HEAD, ""),
    ],
)  # fmt: skip
def test_licences_of_copyright_files(text, licence):
    assert _copyright.licence(text.encode()) == licence


def test_a_copyright_file_of_any_bytes_is_read():
    assert _copyright.licence(b"\xff\xfe" + HEAD.encode()) == ""
    assert _copyright.licence(HEAD.encode() + b"License: \xff\xff\n") == "LicenseRef-"
