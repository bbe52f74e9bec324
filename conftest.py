"""This repository's own policy: images are signed with keys that everybody has, unless others are named."""

import os
from pathlib import Path

import pytest

from imagekit import key as keys
from imagekit import options

TEST_KEY = Path(__file__).parent / "fixtures/keys/test.key"
BOOT_KEYS = Path(__file__).parent / "fixtures/keys/boot"


def pytest_configure(config: pytest.Config) -> None:
    """Protected images are signed with the boot keys that everybody has, unless --boot-keys names others."""
    given = config.getoption("imagekit_boot-keys", None)
    found = options.lookup("boot-keys", given, folder=config.rootpath, default=BOOT_KEYS)
    os.environ["IMAGEKIT_BOOT_KEYS"] = str(Path(found).absolute())


@pytest.fixture(scope="session")
def key(pytestconfig: pytest.Config) -> keys.Key:
    """--key, IMAGEKIT_KEY or [tool.imagekit], else the test key."""
    given = pytestconfig.getoption("imagekit_key")
    return keys.read(Path(options.lookup("key", given, folder=pytestconfig.rootpath, default=TEST_KEY)))
