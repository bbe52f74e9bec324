"""Units for systemd and jobs for Nomad: what they say, that their own readers take them, and what is refused."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import signed_rig

from imagekit import bundle, cli, key, plugs, unit
from imagekit.errors import Problem
from imagekit.image import Image, Service
from imagekit.unit import Program, Volume, Wishes
from imagekit.units import nomad, systemd

Said = pytest.CaptureFixture[str]
HOME = Path(__file__).parent.parent
SIGNER = key.read(HOME / "fixtures/keys/test.key")
WEB = Program("web", "web 1", "x86_64", "/srv/web.tar.gz", False, "ab" * 32, ("/usr/sbin/nginx", "-g", "daemon off;"))
FETCHED = replace(WEB, file="https://example.org/a/web_1.tar.gz?token=%41")
APP = replace(WEB, file="/opt/app", is_bundle=True, command=())
PLAIN = Wishes(key=SIGNER.public_text())
WORDS = ("", "a b", '"', "\\", "\n\t", "\x01\x7f\x85\u2028", "é😀",
         "${HOME}", "$${", "$$${x}", "%{if}", "%%{", "${~", "~}",
         "$", "%", "$%{", "%${", "{{", "<<EOF", "#", "//", "'`", '"}\n}\njob "x" {}')  # fmt: skip
TOY = """from imagekit import Image, Service, Text

one = Service("one", "/one --port 80", ready="http:80/health?x=1", stop_timeout=2.5)
two = Service("two", ("/two", "$x"), after=("one",), env={"K": "a b"}, user="www")
image = Image(name="web", version="1.2", services=(one, two))
"""


def rows(text: str, section: str) -> Mapping[str, list[str]]:
    """The rows of a section of a unit, each key with its values."""
    found: dict[str, list[str]] = {}
    for line in text.partition(f"[{section}]\n")[2].partition("\n[")[0].splitlines():
        name, _, value = line.partition("=")
        found.setdefault(name, []).append(value)
    return found


def parsed(text: str) -> Any:
    """A job as python-hcl2 reads it, strings as what they say."""
    hcl2 = pytest.importorskip("hcl2")
    return hcl2.loads(text, serialization_options=hcl2.SerializationOptions(strip_string_quotes=True))["job"][0]


def task(text: str, name: str = "web") -> Any:
    (job,) = parsed(text).values()
    (group,) = (group for groups in job["group"] for group in groups.values())
    return next(found[name] for found in group["task"] if name in found)


def as_template(text: str) -> str:
    """What Nomad makes of a word of a config when it starts the task: a template without expressions says this."""
    assert not re.search(r"(?<![$])[$]\{(?!NOMAD)|(?<!%)%\{", text)
    return re.sub(r"([$%])\1\{", r"\1{", text)


def test_a_service_says_what_the_image_is_and_how_it_is_run() -> None:
    text = systemd.write([WEB], PLAIN)["web.service"]
    service = rows(text, "Service")
    command = ':imagekit run --trust %d/image.pub /srv/web.tar.gz -- /usr/sbin/nginx -g "daemon off;"'
    assert service["ExecStart"] == [command]
    assert [service[name] for name in ("Type", "Restart", "KillMode", "TimeoutStopSec")] == [
        ["exec"], ["always"], ["mixed"], ["10"]]  # fmt: skip
    assert service["SetCredential"] == ["image.pub:" + SIGNER.public_text().replace("\n", "\\x0a")]
    assert not {"DynamicUser", "MemoryMax", "CPUQuota", "TasksMax"} & service.keys()
    assert rows(text, "Unit")["After"] == ["network.target"]
    assert WEB.sha256 in text


@pytest.mark.parametrize(
    ("program", "wishes", "section", "row"),
    [
        (APP, {}, "Service", "ExecStart=:/opt/app"),
        (replace(APP, command=("/x", "%n $y")), {}, "Service", '/opt/app --bundle-exec /x "%%n $y"'),
        (WEB, {"trust": "/etc/a b.pub"}, "Service", ' run --trust "/etc/a b.pub" /srv/web.tar.gz -- '),
        (replace(WEB, user="www", env={"A": "%"}), {}, "Service", ' -e "A=%%" --user www /srv/web.tar.gz -- '),
        (WEB, {"volumes": (Volume("/a", "/b", True),)}, "Service", " -v /a:/b:ro /srv"),
        (WEB, {"volumes": (Volume("/a%", "/b", False),)}, "Service", 'ReadWritePaths="/a%%"'),
        (WEB, {"credentials": (("tls", "/etc/k"),)}, "Service", " -v %d:%d:ro /srv"),
        (WEB, {"credentials": (("tls", "/etc/k"),)}, "Service", "LoadCredential=tls:/etc/k"),
        (WEB, {"memory": 1 << 20, "cpus": 0.5, "pids": 7}, "Service", "MemoryMax=1048576\nCPUQuota=50%\nTasksMax=7\n"),
        (WEB, {"unprivileged": True}, "Service", "DynamicUser=yes"),
        (WEB, {"unprivileged": True}, "Service", "\nCapabilityBoundingSet=\n"),
        (WEB, {"unprivileged": True}, "Service", "CacheDirectory=web"),
        (replace(WEB, file="/home/me/web.tar.gz"), {}, "Service", "ProtectHome=read-only"),
        (replace(WEB, restart="never"), {}, "Service", "Restart=no"),
        (FETCHED, {}, "Unit", "Wants=network-online.target"),
        (replace(WEB, after=("a", "b+c")), {}, "Unit", "Wants=a.service b\\x2bc.service"),
        (WEB, {"listen": ("80",)}, "Unit", "Requires=web.socket\nAfter=network.target web.socket\n"),
        (WEB, {"listen": ("80",)}, "Install", "Also=web.socket"),
    ],
)  # fmt: skip
def test_a_wish_is_a_row(program: Program, wishes: dict[str, Any], section: str, row: str) -> None:
    text = systemd.write([program], replace(PLAIN, **wishes))["web.service"]
    assert row in text.partition(f"[{section}]\n")[2].partition("\n[")[0]


def test_a_socket_listens_where_it_was_asked() -> None:
    texts = systemd.write([WEB], replace(PLAIN, listen=("80", "127.0.0.1:81", "[::1]:82", "/run/a.sock", "@web")))
    assert [*texts] == ["web.service", "web.socket"]
    listen = rows(texts["web.socket"], "Socket")["ListenStream"]
    assert listen == ["80", "127.0.0.1:81", "[::1]:82", "/run/a.sock", "@web"]


def test_the_name_of_a_unit_is_escaped_as_systemd_does() -> None:
    assert [*systemd.write([replace(WEB, name="g++@1/é")], PLAIN)] == ["g\\x2b\\x2b\\x401\\x2f\\xc3\\xa9.service"]


@pytest.mark.parametrize(
    ("program", "wishes", "words"),
    [
        (APP, {"volumes": (Volume("/a", "/b", True),)}, "a bundle takes no volumes"),
        (replace(APP, file="https://example.org/app"), {}, "systemd starts no program from https"),
        (replace(APP, file="/opt/a'b"), {}, "systemd starts no program"),
        (replace(APP, file="/opt/a\nExecStart=/bin/false"), {}, "systemd starts no program"),
        (WEB, {"imagekit": "bin/image kit"}, "systemd starts no program"),
        (replace(WEB, file="/tmp/web.tar.gz"), {}, "has temporary folders of its own"),
        (WEB, {"credentials": (("a", "/x\nUser=root"),)}, "systemd takes no path"),
        (WEB, {"volumes": (Volume('/x"y', "/b", False),)}, "systemd takes no path"),
        (replace(WEB, name="x" * 248), {}, "is no name of a unit"),
        *[(WEB, {"listen": (bad,)}, "is no address") for bad in ("", "0", "65536", "x", "80\n", "1:80", "%i", "/a b")],
    ],
)  # fmt: skip
def test_what_a_unit_cannot_say_is_refused(program: Program, wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words):
        systemd.write([program], replace(PLAIN, **wishes))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd here; test_units_guest has one")
@pytest.mark.parametrize(
    "wishes", [{}, {"unprivileged": True, "listen": ("80",), "pids": 5, "memory": 1 << 20, "cpus": 2}]
)
def test_systemd_of_this_machine_has_nothing_to_say(tmp_path: Path, wishes: dict[str, Any]) -> None:
    started = replace(WEB, command=("/x", *WORDS), env={"A": "b c"})
    for name, text in systemd.write([started], replace(PLAIN, imagekit="/bin/sh", **wishes)).items():
        (tmp_path / name).write_text(text)
    asked = ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_job_fetches_the_file_by_its_checksum_and_tells_how_it_is_run() -> None:
    program = replace(FETCHED, ready="http:80/health", env={"A": "b"}, user="www-data")
    (name, text), = nomad.write([program], replace(PLAIN, memory=(1 << 20) + 1, cpus=1.5, pids=9)).items()  # fmt: skip
    found = task(text)
    assert name == "web.nomad.hcl"
    assert found["driver"] == "raw_exec"
    (artifact,), (config,) = found["artifact"], found["config"]
    assert artifact["source"] == FETCHED.file
    assert artifact["destination"] == "local/web_1.tar.gz"
    assert artifact["options"][0]["checksum"] == f"sha256:{FETCHED.sha256}"
    assert artifact["options"][0]["archive"] == "false"
    assert found["template"][0]["data"] == SIGNER.public_text()
    assert [config["command"], *config["args"]] == [
        "imagekit", "run", "--trust", "${NOMAD_TASK_DIR}/image.pub", "-e", "A=b", "--user", "www-data",
        "--memory", "1048577", "--cpus", "1.5", "--pids", "9", "${NOMAD_TASK_DIR}/web_1.tar.gz", "--",
        "/usr/sbin/nginx", "-g", "daemon off;",
    ]  # fmt: skip
    assert found["resources"][0]["memory"] == 2
    assert found["service"][0]["check"][0]["path"] == "/health"
    assert parsed(text)["web"]["group"][0]["web"]["network"][0]["port"][0]["p80"]["static"] == 80


@pytest.mark.parametrize(
    ("arch", "name"), [("x86_64", "amd64"), ("armhf", "arm"), ("riscv64", "riscv64"), ("any", None)]
)
def test_a_job_is_for_machines_of_its_architecture(arch: str, name: str | None) -> None:
    rules = parsed(nomad.write([replace(WEB, arch=arch)], PLAIN)["web.nomad.hcl"])["web"]["constraint"]
    assert [rule["value"] for rule in rules] == ["linux", *([name] if name else [])]


def test_every_word_of_a_job_is_what_it_was() -> None:
    program = replace(WEB, command=("/x", *WORDS), env={f"V{n}": word for n, word in enumerate(WORDS)})
    args = [*map(as_template, task(nomad.write([program], PLAIN)["web.nomad.hcl"])["config"][0]["args"])]
    assert args[args.index("--") + 1 :] == ["/x", *WORDS]
    assert [arg for arg in args if re.match(r"V\d+=", arg)] == [f"V{n}={word}" for n, word in enumerate(WORDS)]


def test_a_bundle_is_started_by_itself_and_by_the_driver_that_isolates() -> None:
    found = task(
        nomad.write([replace(APP, file="https://x.org/app")], replace(PLAIN, unprivileged=True))["web.nomad.hcl"]
    )
    assert found["driver"] == "exec"
    assert found["config"][0]["command"] == "${NOMAD_TASK_DIR}/app"
    assert found["config"][0]["args"] == []
    assert "template" not in found


@pytest.mark.parametrize(
    ("programs", "wishes", "words"),
    [
        ([WEB], {"listen": ("80",)}, "Nomad opens no sockets"),
        ([replace(WEB, name="a b")], {}, "is no name of a Nomad job"),
        ([replace(WEB, command=("/x", "\udcff"))], {}, "cannot say"),
        ([replace(WEB, command=("/x", "e\u0301"))], {}, "cannot say"),  # HCL would make one character of the two
        ([replace(WEB, env={"A": "\r"})], {}, "cannot say"),
        ([replace(WEB, file="https://x.org/${NOMAD_X}")], {}, "Nomad would put a value"),
        ([WEB, replace(WEB, name="b", restart="never")], {}, "starts again always, on failure or never"),
        ([APP], {"volumes": (Volume("/a", "/b", True),)}, "a bundle takes no volumes"),
    ],
)
def test_what_a_job_cannot_say_is_refused(programs: list[Program], wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(Problem, match=words):
        nomad.write(programs, replace(PLAIN, **wishes))


@pytest.mark.parametrize(
    ("text", "made"), [("/a:/b", Volume("/a", "/b", False)), ("/a:/b:ro", Volume("/a", "/b", True))]
)
def test_a_volume_is_read(text: str, made: Volume) -> None:
    assert unit.volume(text) == made
    assert str(made) == text


@pytest.mark.parametrize(
    ("read", "bad"),
    [
        (unit.volume, ("", "/a", "a:/b", "/a:b", "/a:/b:rw", "/a:/b:ro:x", "/a:/b:", ":")),
        (unit.credential, ("", "a", "a:b", ":/a", "a/b:/c", "../a:/c")),
        (unit.size, ("", "0", "-1", "1.5G", "5X", "1 M")),
    ],
)
def test_what_is_no_wish_is_refused(read: Any, bad: tuple[str, ...]) -> None:
    for text in bad:
        with pytest.raises(Problem, match="is no "):
            read(text)


def test_services_are_named_after_the_image_and_ordered() -> None:
    services = (Service("db", "/db"), Service("web", "/web", after=("db",), env={"A": "1"}))
    both = unit.of_definition(Image(name="shop", services=services), (), file=WEB)
    assert [(one.name, one.command, one.after) for one in both] == [
        ("web-db", ("/db",), ()), ("web-web", ("/web",), ("web-db",))]  # fmt: skip
    (one,) = unit.of_definition(Image(name="shop", services=services[:1]), ("db",), file=WEB)
    assert one.name == "web"
    for bad, words in (((), "has no services"), (services, "unknown service 'x'")):
        with pytest.raises(Problem, match=words):
            unit.of_definition(Image(name="shop", services=bad), ("x",), file=WEB)
    with pytest.raises(Problem, match="no name of a variable"):
        unit.of_definition(Image(name="shop", services=(Service("a", "/a", env={"A-B": ""}),)), (), file=WEB)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a definition of two services, toy.py, its image, and an image that starts nothing by itself."""
    monkeypatch.setenv("IMAGEKIT_KEY", str(HOME / "fixtures/keys/test.key"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.py").write_text(TOY)
    signed_rig.signed(tmp_path, signed_rig.SMALL, name="web.tar.gz")
    about = signed_rig.ABOUT._replace(arguments=())
    signed_rig.signed(tmp_path, signed_rig.SMALL, name="mute.tar.gz", about=about)
    signed_rig.signed(tmp_path, signed_rig.SMALL, name="others.tar.gz", by=signed_rig.OTHER)
    (tmp_path / "bad.tar.gz").write_bytes((tmp_path / "web.tar.gz").read_bytes().replace(b"web", b"wab"))
    return tmp_path


def test_a_definition_gives_its_services_and_its_file_the_digest(folder: Path, capsys: Said) -> None:
    place = "https://x.org/toy.tar.gz"
    assert cli.main(["unit", "nomad", "toy.py", "--file", "web.tar.gz", "--at", place]) == 0
    text = capsys.readouterr().out
    digest = subprocess.run(["sha256sum", folder / "web.tar.gz"], capture_output=True, text=True, check=True).stdout
    first, second = task(text, "web-one"), task(text, "web-two")
    assert first["artifact"][0]["options"][0]["checksum"] == f"sha256:{digest.split()[0]}"
    assert first["lifecycle"][0] == {"hook": "prestart", "sidecar": True, "__is_block__": True}
    assert first["kill_timeout"] == "2500ms"
    assert second["config"][0]["args"][-8:] == [
        "-e", "K=a b", "--user", "www", "${NOMAD_TASK_DIR}/toy.tar.gz", "--", "/two", "$x"]  # fmt: skip


def test_one_service_is_written_to_a_folder(folder: Path, capsys: Said) -> None:
    asked = ["unit", "systemd", "toy.py", "--file", "web.tar.gz", "--service", "two", "-o", "out", "--at", "/a"]
    assert cli.main(asked) == 0
    assert capsys.readouterr().out == "out/web-two.service\n"
    text = (folder / "out/web-two.service").read_text()
    assert rows(text, "Unit")["After"] == ["network.target web-one.service"]
    assert rows(text, "Unit")["Description"] == ["web 1.2"]


@pytest.mark.usefixtures("folder")
def test_a_signed_file_starts_its_own_program_or_another(capsys: Said) -> None:
    assert cli.main(["unit", "systemd", "web.tar.gz", "--at", "/srv/web.tar.gz"]) == 0
    assert rows(capsys.readouterr().out, "Service")["ExecStart"][0].endswith("/image.pub /srv/web.tar.gz")
    words = ["mute.tar.gz", "--at", "/a", "--listen", "80", "-v", "/b:/c", "--pids", "5", "--", "/x", "-c", "--"]
    assert cli.main(["unit", "systemd", *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# web.service\n")
    assert "\n# web.socket\n" in said
    assert rows(said, "Service")["ExecStart"][0].endswith(" -v /b:/c /a -- /x -c --")


@pytest.mark.parametrize("read_only", [False, True])
def test_a_bundle_is_started_unless_its_launcher_is_another(folder: Path, capsys: Said, read_only: bool) -> None:
    bundle.bundle(folder / "web.tar.gz", folder / "app", keys=[SIGNER], read_only=read_only)
    assert cli.main(["unit", "systemd", "app", "--at", "/opt/app"]) == 0
    assert rows(capsys.readouterr().out, "Service")["ExecStart"] == [":/opt/app"]
    whole = (folder / "app").read_bytes()
    for evil in (b"\x7fELF" + bytes(4092) + whole[4096:], bytes(4096) + whole, b"#!/bin/sh\n".ljust(4096) + whole):
        (folder / "app").write_bytes(evil)
        assert cli.main(["unit", "systemd", "app", "--at", "/opt/app"]) == 1
        assert "app: its launcher is none that this imagekit has" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("toy.py", "a definition is no file that could be started"),
        ("toy.py --file web.tar.gz --service x", "unknown service 'x'"),
        ("toy.py --file web.tar.gz -- /x", "a definition says itself"),
        ("toy.py --file web.tar.gz --at /a --listen 80", "sockets are handed to one service"),
        ("toy.py --file bad.tar.gz --at /a", "bad.tar.gz: "),
        ("web.tar.gz --file web.tar.gz", "--service and --file go with a definition"),
        ("web.tar.gz --service one", "--service and --file go with a definition"),
        ("web.tar.gz --at web.tar.gz", "is no place"),
        ("mute.tar.gz --at /a", "does not say which program it starts"),
        ("others.tar.gz --at /a", "which is not trusted"),
        ("bad.tar.gz --at /a", "bad.tar.gz: "),
        ("none.tar.gz", "cannot read none.tar.gz"),
        ("toy.py --file none.tar.gz", "cannot read none.tar.gz"),
        (".", "cannot read ."),
        ("web.tar.gz --at /a --memory 1X", "is no size"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_was_asked_wrongly_is_told(capsys: Said, words: str, said: str) -> None:
    assert cli.main(["unit", "systemd", *words.split()]) == 1
    assert said in capsys.readouterr().err


def test_each_supervisor_is_a_file() -> None:
    assert set(plugs.names("units")) >= {"systemd", "nomad"}
