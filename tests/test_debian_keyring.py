"""The key ring that ships is the one its page describes."""

import re
from hashlib import sha256

from pysequoia import Cert

from imagekit import mirror


def test_the_page_names_the_file_and_every_key() -> None:
    page = mirror.SHIPPED.with_name("README.md").read_text()
    data = mirror.SHIPPED.read_bytes()
    assert sha256(data).hexdigest() in page
    keys = {(cert.fingerprint, f"{cert.expiration:%Y-%m-%d}") for cert in Cert.split_bytes(data)}
    assert keys == set(re.findall(r"^\| ([0-9a-f]{40}) \|.*\| ([0-9-]{10}) \|$", page, re.MULTILINE))
