"""This repository's own policy: images are signed with the key that everybody has, unless --key names another."""

from pathlib import Path

import pytest

from imagekit import key as keys
from imagekit import options

TEST_KEY = Path(__file__).parent / "fixtures/keys/test.key"


@pytest.fixture(scope="session")
def key(pytestconfig: pytest.Config) -> keys.Key:
    """--key, IMAGEKIT_KEY or [tool.imagekit], else the test key."""
    given = pytestconfig.getoption("imagekit_key")
    return keys.read(Path(options.lookup("key", given, folder=pytestconfig.rootpath, default=TEST_KEY)))
