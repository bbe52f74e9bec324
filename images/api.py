"""A FastAPI application: wheels for both architectures, locked and laid out on any one, over Debian's Python."""

import json

from imagekit import DOCS, Budget, File, Image, Service, User
from imagekit.checks.network import listening
from imagekit.checks.standard import (  # noqa: F401 - collected
    test_is_signed,
    test_nothing_failed,
    test_rebuilds_identically,
    test_within_size_budget,
)

image = Image(
    name="api",
    version="1",
    packages=(
        "debian:python3-minimal",
        "debian:libpython3.11-stdlib",
        "wheel:fastapi>=0.115,<0.116",
        "wheel:uvicorn>=0.30,<0.31",
    ),
    kernel="debian:linux-image-cloud",
    without=(
        *DOCS,
        "debconf",
        "gcc-12-base",
        "/usr/lib/*/gconv",  # character set conversions
        "/usr/lib/*/libnsl.so.1",  # NIS
    ),
    users={"api": User(uid=900, home="/srv/api")},
    files={"/srv/api/main.py": File("api/main.py")},
    services=(
        Service(
            "api",
            "/usr/local/bin/uvicorn main:app --app-dir /srv/api --host 0.0.0.0 --port 8000 --no-access-log",
            user="api",
            ready="http:8000/health",
        ),
    ),
    formats=("kernel_initrd",),
    arches=("x86_64", "aarch64"),
    budget=Budget(size="56 MiB"),
)


def test_answers(guest):
    answer = guest.http.get("/health", port=8000)
    assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"})


def test_checks_what_it_is_sent(guest):
    """By pydantic, whose core is compiled: the wheel was the one for this machine."""
    for order, status in (({"item": "tea", "count": 2}, 200), ({"item": "tea", "count": 0}, 422), ({}, 422)):
        answer = guest.http.request(
            "POST", "/orders", port=8000, body=json.dumps(order).encode(), headers={"Content-Type": "application/json"}
        )
        assert answer.status == status, answer.text


def test_opens_one_port_as_an_ordinary_user(guest):
    assert listening(guest) == {8000}
    pid = guest.run("pidof uvicorn || pidof python3.11").check().text.split()[0]
    assert guest.read(f"/proc/{pid}/status").decode().count("Uid:\t900\t900") == 1


def test_nothing_was_compiled_or_installed_inside(tree):
    assert not [path for path in tree if path.endswith(".pyc") or "/pip/" in path]
