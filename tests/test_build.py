"""Building: the same bytes whoever builds, right after whatever happened, and one message when it cannot be."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from hashlib import sha256
from pathlib import Path

import pytest
from debian_archive import Item, archive, folders
from test_kmod import module

from imagekit import artifact, build, cli, definition, key, sbom, toolbox
from imagekit.errors import Problem
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

KEYS = Path(__file__).parents[1] / "fixtures" / "keys"
DEFINITION = """
from imagekit import Image, File, Text, Budget
image = Image(
    name="tiny",
    packages=("debian:hello",),
    kernel="debian:linux-image-cloud",
    files={"/etc/motd": File("motd"), "/bin/x": Text("#!/bin/sh\\n", mode=0o755)},
    arches=("x86_64",),
)
"""
VERSION = "6.1.0-1-cloud-amd64"
MODULES = f"./usr/lib/modules/{VERSION}/kernel"


def fill(debian):
    """Packages as small as they can be: a program with a library, a kernel with modules, and what early boot needs."""
    debian.add("hello", [*folders("usr", "usr/bin"), Item("./usr/bin/hello", b"\x7fELF hello" * 999, mode=0o755)],
               architecture="amd64", fields={"Depends": "libhello (>= 1)"})  # fmt: skip
    debian.add("libhello", [*folders("usr", "usr/lib"), Item("./usr/lib/libhello.so.1", os.urandom(999))])
    modules = {
        "virtio": {},
        "virtio_pci": {"depends": ["virtio"]},
        "virtio_net": {"depends": ["virtio"]},
        "virtio_blk": {},
    }
    items = [Item(f"{MODULES}/{name}.ko", module(**info)) for name, info in modules.items()]
    items.append(Item(f"./boot/vmlinuz-{VERSION}", b"MZ" * 80000))
    parents = folders("boot", "usr", "usr/lib", "usr/lib/modules", MODULES[2:].rpartition("/")[0], MODULES[2:])
    debian.add(f"linux-image-{VERSION}", [*parents, *items], architecture="amd64")
    debian.add("linux-image-cloud-amd64", folders(), architecture="amd64", fields={"Depends": f"linux-image-{VERSION}"})
    for name, path in (
        ("busybox-static", "bin/busybox"),
        ("runit", "usr/sbin/runit"),
        ("libc6", "lib64/ld-linux-x86-64.so.2"),
    ):
        debian.add(name, [*folders(path.rpartition("/")[0]), Item(f"./{path}", b"\x7fELF" + name.encode(), mode=0o755)])
    debian.publish()


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    with archive(tmp_path_factory.mktemp("mirror")) as made:
        fill(made)
        yield made


@pytest.fixture
def project(tmp_path, debian, monkeypatch):
    """A project with a locked definition, a cache of its own, and the tiny archive as its mirror."""
    debian.use(monkeypatch)
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS / "test.key"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "motd").write_text("welcome\n")
    (tmp_path / "tiny.py").write_text(DEFINITION)
    assert cli.main(["lock", "tiny.py"]) == 0
    return tmp_path


def digests(folder):
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def run(*words, **env):
    command = [sys.executable, "-m", "imagekit.cli", *words]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def make(project, format="tar"):
    path, signer = project / "tiny.py", key.read(KEYS / "test.key")
    image, lock = definition.load(path), build.read_lock(path)
    wanted = {"arch": "x86_64", "format": format, "key": signer, "store": open_store()}
    return build.artifact(image, folder=project, lock=lock, **wanted)


@pytest.mark.parametrize(
    ("variable", "words", "expected"),
    [("auto", [], "tree"), ("host", [], "host"), ("host", ["--tools", "tree"], "tree"), ("", ["--tools=host"], "host")],
)
@pytest.mark.usefixtures("project")
def test_a_format_gets_its_programs_from_where_they_were_asked_for(monkeypatch, variable, words, expected):
    modes = []

    def write(*_, job, **__):
        job.tools("mke2fs")
        raise Problem("that is enough")

    monkeypatch.setenv("IMAGEKIT_TOOLS", variable)
    monkeypatch.setattr(toolbox, "tools", lambda *names, mode, **_: modes.append((*names, mode)))
    monkeypatch.setattr(build, "_write", write)
    assert cli.main(["build", "tiny.py", "--format", "kernel_initrd", *words]) == 1
    assert modes == [("mke2fs", expected)]


def test_one_command_writes_signed_artifacts(project):
    assert cli.main(["build", "tiny.py", "-o", "out"]) == 0
    assert sorted(digests("out")) == [
        "tiny_0_x86_64.cmdline", "tiny_0_x86_64.initrd", "tiny_0_x86_64.kernel", "tiny_0_x86_64.kernel_initrd.cdx.json",
        "tiny_0_x86_64.kernel_initrd.manifest.json", "tiny_0_x86_64.kernel_initrd.manifest.json.minisig",
        "tiny_0_x86_64.tar.cdx.json", "tiny_0_x86_64.tar.gz",
        "tiny_0_x86_64.tar.manifest.json", "tiny_0_x86_64.tar.manifest.json.minisig",
    ]  # fmt: skip
    public = str(KEYS / "test.pub")
    assert cli.main(["verify", "out/tiny_0_x86_64.initrd", "out/tiny_0_x86_64.tar.manifest.json", "--key", public]) == 0
    manifest = json.loads(Path("out/tiny_0_x86_64.kernel_initrd.manifest.json").read_text())
    names = ["busybox-static", "hello", "libc6", "libhello", f"linux-image-{VERSION}", "runit"]
    assert [package["name"] for package in manifest["packages"]] == names
    assert {p["role"]: p["sha256"] for p in manifest["parts"]}["kernel"] == sha256(b"MZ" * 80000).hexdigest()
    assert manifest["lock"] == build.read_lock(project / "tiny.py").digest
    assert manifest["largest"][0][0] == "/boot/kernel"
    document = Path("out/tiny_0_x86_64.kernel_initrd.cdx.json").read_bytes()
    named = manifest.pop("sbom")
    assert document == sbom.cyclonedx(manifest)
    assert (named["sha256"], named["size"]) == (sha256(document).hexdigest(), len(document))
    assert b'"pkg:deb/debian/busybox-static@' in document
    assert b"?arch=amd64&distro=debian-12" in document


def test_a_manifest_is_the_same_before_and_after_it_was_written():
    largest = build._largest(Tree({"/a": file(b"1"), "/c": file(b"333"), "/b": file(b"333")}))
    assert json.loads(json.dumps(largest)) == largest == [["/b", 3], ["/c", 3], ["/a", 1]]


def test_the_tar_is_the_tree(project):
    made = make(project)
    tree = build.tree(definition.load(project / "tiny.py"), folder=project, lock=build.read_lock(project / "tiny.py"),
                      arch="x86_64", store=open_store())  # fmt: skip
    with (
        made.opened(key.read(KEYS / "test.pub")) as opened,
        tarfile.open(fileobj=io.BytesIO(opened.read("root"))) as tar,
    ):
        members = {"/" + member.name: member for member in tar}
        assert members.keys() == set(tree)
        assert tar.extractfile("etc/motd").read() == b"welcome\n"
    assert {p for p in tree if p.endswith(".ko")} == {f"{MODULES[1:]}/virtio{end}.ko" for end in ("", "_pci", "_net")}


def test_the_same_bytes_for_every_user_zone_mask_and_folder(project, tmp_path):
    assert run("build", "tiny.py", "-o", "one").returncode == 0
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    for name in ("tiny.lock", "motd", "tiny.py"):  # another order of creation
        shutil.copyfile(project / name, elsewhere / name)
        (elsewhere / name).chmod(0o600)
    settings = {"TZ": "Asia/Tokyo", "LANG": "tr_TR.UTF-8", "PYTHONHASHSEED": "7", "HOME": str(elsewhere),
                "IMAGEKIT_CACHE": str(elsewhere / "cache")}  # fmt: skip
    other_user = ["unshare", "--user", "--map-user=1234", "--map-group=1235"]
    build_it = [sys.executable, "-m", "imagekit.cli", "build", str(elsewhere / "tiny.py"), "-o", str(elsewhere / "out")]
    done = subprocess.run([*other_user, *build_it], env={**os.environ, **settings}, umask=0o077, cwd="/",
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert digests("one") == digests(elsewhere / "out")


def test_nothing_changed_says_the_same_and_touches_nothing(project):
    for name in ("tiny.py", "motd", "tiny.lock"):
        os.utime(project / name, (1, 1))
    first = run("build", "tiny.py", "-o", "out")
    stamps = list((project / "cache" / "stamps").iterdir()) if (project / "cache" / "stamps").exists() else []
    if not stamps:  # imagekit's own files were written a moment ago, in a checkout that is new
        time.sleep(0.1)
        first = run("build", "tiny.py", "-o", "out")
    before = {path: path.stat().st_mtime_ns for path in (project / "out").iterdir()}
    second = run("build", "tiny.py", "-o", "out")
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    assert before == {path: path.stat().st_mtime_ns for path in (project / "out").iterdir()}


@pytest.mark.parametrize("change", ["file", "definition", "output"])
def test_every_change_is_noticed(project, change):
    assert run("build", "tiny.py", "-o", "out").returncode == 0
    before = digests("out")
    if change == "file":
        (project / "motd").write_text("other\n")
    elif change == "definition":
        (project / "tiny.py").write_text(DEFINITION.replace('name="tiny"', 'name="tiny", version="1"'))
    else:
        (project / "out" / "tiny_0_x86_64.tar.gz").write_bytes(b"")
    assert run("build", "tiny.py", "-o", "out").returncode == 0
    assert digests("out") == before if change == "output" else digests("out") != before


def test_builds_offline_once_the_store_has_the_packages(project, debian, monkeypatch):
    make(project)
    monkeypatch.setenv("IMAGEKIT_MIRROR", "http://127.0.0.1:9/debian")
    asked = len(debian.mirror.requests)
    (project / "motd").write_text("changed\n")
    assert make(project, "kernel_initrd").size > 0
    assert len(debian.mirror.requests) == asked


def test_a_build_asks_the_mirror_for_packages_alone(project, debian):
    debian.mirror.requests.clear()
    make(project)
    assert debian.mirror.requests
    assert all("/pool/" in path for path in debian.mirror.requests)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda project: (project / "tiny.lock").unlink(), "tiny.lock is missing"),
        (lambda project: edit(project / "tiny.lock", "hello", "hallo"), "was edited"),
        (
            lambda project: edit(project / "tiny.py", '"debian:hello"', '"debian:hello", "debian:runit"'),
            "behind its definition",
        ),
        (lambda project: edit(project / "tiny.py", "image =", "image = ("), "tiny.py:"),
        (lambda project: edit(project / "tiny.py", "name=", "nom="), "unknown field 'nom'"),
        (lambda project: edit(project / "tiny.py", '"/bin/x"', '"/etc/motd"'), "'/etc/motd' is given twice"),
        (lambda project: (project / "motd").unlink(), "cannot read motd"),
    ],
)
def test_what_is_wrong_is_one_message_with_a_cause(project, spoil, words):
    spoil(project)
    done = run("build", "tiny.py", "-o", "out")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project / "out").exists()


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_lock_check_tells_which_lock_is_behind(project, capsys):
    assert cli.main(["lock", "--check", "tiny.py"]) == 0
    edit(project / "tiny.py", '"debian:hello"', '"debian:hello", "debian:runit"')
    assert cli.main(["lock", "--check", "tiny.py"]) == 1
    assert "behind its definition" in capsys.readouterr().out


def test_an_unknown_package_is_told_when_locking(project, capsys):
    edit(project / "tiny.py", '"debian:hello"', '"debian:helo"')
    assert cli.main(["lock", "tiny.py"]) == 1
    assert "helo" in capsys.readouterr().err


def test_a_damaged_artifact_is_made_again(project):
    made = make(project)
    part = made.path.parent / made.parts[0].file
    whole = part.read_bytes()
    part.chmod(0o600)
    part.write_bytes(whole[:-1] + b"x")  # the object of the store is the same file: it is damaged too
    again = make(project)
    assert again.digest == made.digest
    assert (again.path.parent / again.parts[0].file).read_bytes() == whole


@pytest.mark.parametrize("victim", ["objects", "notes", "artifacts"])
def test_any_damage_to_the_cache_is_healed(project, victim):
    """Every file of the cache in turn is cut short: the next build gives the same bytes."""
    reference = make(project).digest
    shutil.copytree(project / "cache", project / "good", symlinks=True)
    files = sorted(p.relative_to(project / "cache") for p in (project / "cache" / victim).rglob("*") if p.is_file())
    assert files
    for name in files:
        shutil.rmtree(project / "cache")
        shutil.copytree(project / "good", project / "cache", symlinks=True)
        if victim != "artifacts":
            shutil.rmtree(project / "cache" / "artifacts")
        bad = project / "cache" / name
        bad.chmod(0o600)
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
        assert make(project).digest == reference, f"after damage to {name}"


KILLED_AT_EVERY_STEP = """
import os, shutil, signal, sys
from hashlib import sha256
from pathlib import Path
from imagekit import cli

def building(out, dies_at=0):
    pid = os.fork()
    if not pid:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        for name in ("replace", "rename", "link", "unlink", "fchmod"):
            setattr(os, name, dying(getattr(os, name), dies_at))
        os._exit(cli.main(["build", "tiny.py", "--format", "tar", "-o", out]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

calls = 0
def dying(real, at):
    def call(*args, **more):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    return call

def digests(out):
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in Path(out).iterdir()}

assert cli.main(["build", "tiny.py", "--format", "tar", "-o", "reference"]) == 0  # imports all: every try is a fork
for step in range(1, 1000):
    for folder in ("cache", "out"):
        shutil.rmtree(folder, ignore_errors=True)
    ended = building("out", step)
    if ended == 0:
        break
    assert ended == -signal.SIGKILL, ended
    assert building("out") == 0, f"after a kill at step {step}"
    assert digests("out") == digests("reference"), f"after a kill at step {step}"
print(f"\\ntried {step - 1} held {step - 1}")
"""


@pytest.mark.usefixtures("project")
def test_a_build_killed_at_any_step_leaves_the_next_one_right():
    done = subprocess.run([sys.executable, "-c", KILLED_AT_EVERY_STEP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-3]) >= 20, "fewer steps than a build has"


def test_two_builds_at_once_make_one_artifact(project):
    command = [sys.executable, "-m", "imagekit.cli", "build", "tiny.py", "--format", "tar"]
    both = [subprocess.Popen([*command, "-o", out], stderr=subprocess.PIPE, text=True) for out in ("a", "b")]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert digests("a") == digests("b")
    assert not list((project / "cache" / "drafts").iterdir())
    assert sum("writing tar" in text for text in said) == 1, "the second one takes what the first one made"


def test_a_full_disk_is_told_and_leaves_nothing_wrong(project):
    reference = make(project).digest
    shutil.rmtree(project / "cache")
    limit = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))"
    )
    words = ["build", "tiny.py", "--format", "tar", "-o", "out"]
    code = f"{limit}\nimport sys\nfrom imagekit import cli\nsys.exit(cli.main({words!r}))"
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert make(project).digest == reference


def test_a_full_folder_is_told_and_has_no_half_of_an_artifact(project, small, capsys):
    make(project)  # the cache has it
    (small / "filler").write_bytes(bytes((3 << 20) - (64 << 10)))
    assert cli.main(["build", "tiny.py", "--format", "tar", "-o", str(small / "out")]) == 1
    said = capsys.readouterr().err
    assert f"cannot write {small}/out/tiny_0_x86_64.tar" in said
    assert "No space left on device" in said
    assert "make room" in said
    assert not list((small / "out").iterdir())


def test_another_key_makes_another_artifact(project, tmp_path):
    other = key.new()
    key.save(other, tmp_path / "other.key")
    first = make(project)
    assert cli.main(["build", "tiny.py", "--format", "tar", "-o", "out", "--key", str(tmp_path / "other.key")]) == 0
    second = artifact.load(Path("out/tiny_0_x86_64.tar.gz"))
    assert second.verified(other)
    assert not second.verified(key.read(KEYS / "test.pub"))
    assert first.verified(key.read(KEYS / "test.pub"))


def test_a_format_or_architecture_that_the_image_has_not(project):
    with pytest.raises(Problem, match="not made for it: unknown arch"):
        build.artifact(definition.load(project / "tiny.py"), folder=project, lock=build.read_lock(project / "tiny.py"),
                       arch="aarch64", format="tar", key=key.read(KEYS / "test.key"), store=open_store())  # fmt: skip
