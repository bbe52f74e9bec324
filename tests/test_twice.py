"""Building twice: every kind of leak into an artifact is found, and what it changed is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagekit import cli, elsewhere

KEYS = Path(__file__).parents[1] / "fixtures" / "keys"
FORMAT = '''
"""A format that lets something of this machine into the image."""

{imports}
import io, tarfile
from imagekit.artifact import Format, Written

def write(tree, *, job):
    value = str({value}).encode()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in (("etc/same", b"same"), ("etc/leak", value)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return {{"root": Written(job.store.write([file.getvalue()]), len(file.getvalue()), {{}})}}

FORMAT = Format(write, suffixes={{"root": ".{name}"}}, kind="root", bootable=False)
'''
LEAKS = {  # name -> modules, and an expression that is not the same everywhere
    "hour": ("time", "time.strftime('%Y-%m-%d %H')"),
    "date": ("datetime", "datetime.date.today()"),
    "now": ("datetime", "datetime.datetime.now().year"),
    "random": ("uuid", "uuid.uuid4()"),
    "user": ("os", "os.getuid()"),
    "user_name": ("getpass", "getpass.getuser()"),
    "home": ("pathlib", "pathlib.Path.home()"),
    "umask": ("os", "(mask := os.umask(0), os.umask(mask))[0]"),
    "host": ("socket", "socket.gethostname()"),
    "zone": ("time", "time.timezone"),
    "language": ("os", "os.environ.get('LC_ALL')"),
    "folder_order": ("os", "os.listdir('/proc/self')[0]"),
    "scan_order": ("os", "next(os.scandir('/proc/self')).name"),
    "hash_order": ("os", "hash('some words')"),
    "processors": ("os", "len(os.sched_getaffinity(0))"),
    "temporary": ("tempfile", "tempfile.gettempdir()"),
    "cache": ("os", "job.store.location"),
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in which a definition may name any of these formats, and a good one."""
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS / "test.key"))
    points = "".join(f"leaky_{name} = leaky_{name}\n" for name in LEAKS)
    (tmp_path / "leaky-1.dist-info").mkdir()
    (tmp_path / "leaky-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: leaky\nVersion: 1\n")
    (tmp_path / "leaky-1.dist-info/entry_points.txt").write_text(f"[imagekit.formats]\n{points}")
    for name, (imports, value) in LEAKS.items():
        text = FORMAT.format(imports=f"import {imports}", value=value, name=name)
        (tmp_path / f"leaky_{name}.py").write_text(text)
    return tmp_path


def check(project, *formats):
    """The exit status and the lines of `imagekit build --check`, in a process that finds the formats."""
    (project / "toy.py").write_text(f'from imagekit import Image\nimage = Image("toy", formats={formats})\n')
    run = [sys.executable, "-m", "imagekit.cli"]
    env = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{Path(cli.__file__).parents[1]}"}
    subprocess.run([*run, "lock", "toy.py"], cwd=project, env=env, check=True, capture_output=True)
    words = ["build", "--check", "toy.py", "--arch", "x86_64"]
    done = subprocess.run([*run, *words], cwd=project, env=env, check=False, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, done.stdout + done.stderr


def test_every_leak_is_found_and_named(project):
    code, said = check(project, "tar", *(f"leaky_{name}" for name in LEAKS))
    assert code == 1
    assert "toy x86_64 tar  built twice, the same" in said
    for name in LEAKS:
        if name != "processors" or os.cpu_count() > 1:
            assert f"toy x86_64 leaky_{name}: root: /etc/leak: " in said, said
    assert "leaky_user: root: /etc/leak: " in said
    assert f"{os.getuid()} against {elsewhere.USER}" in said
    assert not list((project / "cache/rebuilt").iterdir())


def test_what_is_the_same_is_said_and_what_was_otherwise(project):
    for _ in range(2):  # asked again it is done again
        code, said = check(project, "oci", "docker")
        assert (code, said.count("built twice, the same")) == (0, 2)
        assert "otherwise in the second build: user and host name, umask, number of processors, time, order of" in said


def test_a_build_that_fails_elsewhere_is_told(project):
    broken = (project / "leaky_user.py").read_text().replace("str(os.getuid())", "{0: 'x'}[os.getuid()]")
    (project / "leaky_user.py").write_text(broken.replace("{0:", f"{{{os.getuid()}:"))
    code, said = check(project, "leaky_user")
    assert code == 1
    assert "toy.py builds here, and not elsewhere: " in said
    assert f"KeyError: {elsewhere.USER}" in said


def test_nothing_is_changed_that_cannot_be(monkeypatch, tmp_path):
    def refused():
        raise OSError("no")

    monkeypatch.setattr(elsewhere, "CONDITIONS", {"one": refused, "other": lambda: None})
    monkeypatch.setattr(sys, "argv", ["elsewhere", str(tmp_path / "told"), "this"])
    monkeypatch.setattr(elsewhere.runpy, "run_module", lambda *_, **__: None)
    elsewhere.main()
    assert (tmp_path / "told").read_text() == "other"
