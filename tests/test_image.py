"""An Image that cannot be right is refused when it is made, in words that name the image and the field."""

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest

import imagekit
from imagekit import Budget, Directory, File, Image, Service, Static, Step, Symlink, Text, User
from imagekit.errors import Problem
from imagekit.image import argv, path_of

NGINX = Service("nginx", "/usr/sbin/nginx -g 'daemon off;'", ready="tcp:80")


def service(name: str = "s", command: Any = "/bin/s", **more: Any) -> dict[str, Any]:
    return {"services": (Service(name, command, **more),)}


GOOD: tuple[dict[str, Any], ...] = (
    {},
    {"packages": ("debian:nginx-light",), "kernel": "debian:linux-image-cloud"},
    {"files": {"/a": Text("x"), "/b/": Directory(), "/c": Symlink("a"), "/d": File("web/d")}},
    {"users": {"www-data": User(33), "root": User(0)}, "groups": {"adm": 4}},
    {"services": (NGINX, Service("php", ("/usr/bin/php",), after=("nginx",), restart="on-failure"))},
    {"onboot": (Step("one", "/bin/one"),), "onshutdown": (Step("one", "/bin/one", timeout=0.5),)},
    {"services": (NGINX,), "onboot": (Step("nginx", "/bin/x"),)},  # a step and a service may share a name
    {"network": Static("192.0.2.10/24", gateway="192.0.2.1", dns=("192.0.2.53",))},
    {"network": Static("2001:db8::1/64")},
    {"network": "none", "version": "1.2~rc1".replace("~", "+"), "arches": ("aarch64",)},
    service(ready="http:8080/health?x=1"),
    service(ready="http:80"),
    service(ready="file:/run/ready"),
    service(ready="command:redis-cli ping"),
)
BAD: tuple[tuple[dict[str, Any], str], ...] = (
    ({"package": ("debian:a",)}, r"unknown field 'package'\n  hint: did you mean 'packages'\? known: arches, budget"),
    ({"packages": "debian:a"}, r"packages is a str, not a tuple\n  hint: write packages=\('debian:a',\)"),
    ({"packages": ["debian:a"]}, "packages is a list, not a tuple"),
    ({"packages": (7,)}, "packages: 7 is not a str"),
    ({"packages": ("nginx",)}, r"packages: 'nginx' names no source\n  hint: write 'debian:nginx'"),
    ({"packages": ("debian:",)}, "packages: 'debian:' names no source"),
    ({"packages": ("debian:a", "debian:a")}, "packages: 'debian:a' is given twice"),
    ({"kernel": "linux"}, "'linux' names no source"),
    ({"kernel": None}, "kernel: None is not a str"),
    ({"version": "1/2"}, "version: '1/2' is no version"),
    ({"version": 1}, "version: 1 is not a str"),
    ({"arches": ("x86",)}, r"unknown architecture 'x86'\n  hint: did you mean 'x86_64'\?"),
    ({"arches": ()}, "must each name at least one"),
    ({"formats": ()}, "must each name at least one"),
    ({"formats": ("tar", "tar")}, "formats: 'tar' is given twice"),
    ({"files": ["/a"]}, r"files: \['/a'\] is not a mapping"),
    ({"files": {"etc/motd": Text("")}}, r"files: 'etc/motd' is a relative path\n  hint: write '/etc/motd'"),
    ({"files": {"/etc/../x": Text("")}}, "is no path of an image"),
    ({"files": {"/": Directory()}}, "files: '/' is no path of an image"),
    ({"files": {"//./": Directory()}}, "is no path of an image"),
    ({"files": {"/a\nb": Text("")}}, "is no path of an image"),
    ({"files": {"/a": "text"}}, r"'text' is none of File, Text, Symlink, Directory\n  hint: write Text\('text'\)"),
    ({"files": {"/bin/x": Text(""), "/usr/bin/x": Text("")}}, "files: /usr/bin/x is given twice, as '/bin/x' and"),
    ({"files": {"/a/": Text(""), "//a": Text("")}}, "files: /a is given twice"),
    ({"files": {"/a": File("/etc/passwd")}}, "'/etc/passwd' is not beside the definition"),
    ({"files": {"/a": File("../../secret")}}, "is not beside the definition"),
    ({"without": ("usr/share/doc",)}, "without: 'usr/share/doc' is a relative path"),
    ({"users": {"www": 33}}, r"users: 'www' is no user\n  hint: write users="),
    ({"users": {"a b": User(1)}}, "users: 'a b' is no user"),
    ({"users": {"a": User(-1)}}, "users: 'a' is no user"),
    ({"users": {"a": User(2**32 - 1)}}, "users: 'a' is no user"),
    ({"users": {"a": User(5), "b": User(5)}}, "users: 'b' and 'a' have the same id 5"),
    ({"groups": {"a": "5"}}, "groups: 'a': '5' is no group"),
    ({"groups": {"a:b": 5}}, "groups: 'a:b': 5 is no group"),
    ({"services": (NGINX, NGINX)}, "services: 'nginx' is given twice"),
    ({"services": ("nginx",)}, "services: 'nginx' is not a Service"),
    ({"onboot": (NGINX,)}, "is not a Step"),
    (service(name="a/b"), "services: 'a/b' is no name"),
    (service(command="nginx"), "s: the command 'nginx' does not begin with an absolute path"),
    (service(command=""), "does not begin with an absolute path"),
    (service(command=()), "does not begin with an absolute path"),
    (service(command="/bin/sh -c 'x"), "does not split into words: No closing quotation"),
    (service(restart="sometimes"), "services: s: unknown restart policy 'sometimes'\n  hint: .*on-failure"),
    (service(ready="80"), r"services: s: ready='80' is no condition\n  hint: tcp:80"),
    (service(ready="tcp:0"), "is no condition"),
    (service(ready="tcp:65536"), "is no condition"),
    (service(ready="file:run/x"), "is no condition"),
    (service(ready="command:"), "is no condition"),
    (service(stop_timeout=0), "s: a timeout of 0 is no number of seconds"),
    (service(stop_timeout="10"), "s: a timeout of '10' is no number of seconds"),
    ({"onboot": (Step("s", "/bin/s", timeout=float("nan")),)}, "s: a timeout of nan is no number"),
    (service(after=("ngin",)) | {}, "services: s: after: unknown service 'ngin'"),
    (service(after=("s",)), "services: s wait for each other"),
    (
        {"services": (Service("a", "/a", after=("b",)), Service("b", "/b", after=("a",)), NGINX)},
        r"services: a, b wait for each other\n  hint: break the circle",
    ),
    ({"network": "static"}, "network: 'static' is none of"),
    ({"network": Static("192.0.2.10")}, "'192.0.2.10' has no prefix length"),
    ({"network": Static("192.0.2.300/24")}, "192.0.2.300"),
    ({"network": Static("192.0.2.1/24", dns=("dns.example",))}, "dns.example"),
    ({"network": Static("192.0.2.1/24", interface="eth 0")}, "'eth 0' is no name of an interface"),
    ({"budget": "40 MiB"}, "budget: '40 MiB' is not a budget"),
    ({"budget": Budget(size="40 mib")}, r"budget: size '40 mib' is no measure\n  hint: a number and one of B, kB, KiB"),
    ({"budget": Budget(size="lots")}, "budget: size 'lots' is no measure"),
    ({"budget": Budget(size=-1)}, "budget: size -1 is no measure"),
    ({"budget": Budget(boot="3 h")}, r"budget: boot '3 h' is no measure\n  hint: a number and one of s, ms, min"),
)


@pytest.mark.parametrize("given", GOOD, ids=str)
def test_a_right_image_is_made(given: dict[str, Any]) -> None:
    image = Image("web", **given)
    assert all(getattr(image, name) == value for name, value in given.items())


@pytest.mark.parametrize(("given", "words"), BAD, ids=[str(given)[:60] for given, _ in BAD])
def test_a_wrong_image_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words) as caught:
        Image("web", **given)
    assert caught.value.message.startswith("image 'web': ")


@pytest.mark.parametrize("name", ["", "Web", "a b", "-a", "a/b", "a\n", ".."])
def test_a_name_is_a_file_name(name: str) -> None:
    with pytest.raises(Problem, match="is no name"):
        Image(name)


def test_it_is_a_value() -> None:
    image = Image("web", files={"/a": Text("x")})
    assert image == Image("web", files={"/a": Text("x")})
    assert replace(image, version="2") != image
    with pytest.raises(FrozenInstanceError):
        image.name = "other"  # type: ignore[misc]
    with pytest.raises(Problem, match="image 'web': version"):
        replace(image, version="!")


def test_it_has_at_most_twenty_fields() -> None:
    assert len(fields(Image)) <= 20


@pytest.mark.parametrize(
    ("given", "size"),
    [("", None), ("40 MiB", 40 << 20), ("1.5kB", 1500), (7, 7), ("7 B", 7), ("2 GB", 2 * 10**9), ("0", 0)],
)
def test_sizes(given: str | int, size: int | None) -> None:
    assert Budget(size=given).size_bytes == size


@pytest.mark.parametrize(
    ("given", "seconds"), [("", None), ("3 s", 3.0), ("250ms", 0.25), (1.5, 1.5), ("2 min", 120.0)]
)
def test_times(given: str | float, seconds: float | None) -> None:
    assert Budget(boot=given).boot_seconds == seconds


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/bin/sh", "/usr/bin/sh"),
        ("/lib64/ld.so", "/usr/lib64/ld.so"),
        ("/usr/bin/sh", "/usr/bin/sh"),
        ("//etc//./x/", "/etc/x"),
        ("/libexec/x", "/libexec/x"),
        ("/", "/"),
    ],
)
def test_paths_have_one_form(written: str, path: str) -> None:
    assert path_of(written) == path
    assert path_of(path) == path


def test_commands_are_split_as_words_are_and_by_no_shell() -> None:
    assert argv("/bin/a 'b c' $HOME;") == ("/bin/a", "b c", "$HOME;")
    assert argv(("/bin/a", "b c")) == ("/bin/a", "b c")


def test_public_names_are_those_that_are_listed() -> None:
    for name in imagekit.__all__:
        assert getattr(imagekit, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Imag'; it has Image, File"):
        _ = imagekit.Imag  # type: ignore[attr-defined]
