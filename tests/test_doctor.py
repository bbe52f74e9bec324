"""doctor: each finding has its state, and what is not well says how to mend it."""

import os
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from imagekit import doctor, host, key, mirror, toolbox
from imagekit.errors import Problem
from imagekit.stores.directory import open_store
from imagekit.targets import _kvm

Status = namedtuple("Status", "f_bavail f_frsize")


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "cache")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.delenv("IMAGEKIT_KEY", raising=False)


def only(lines):
    [line] = lines
    return line


def test_everything_has_a_state_and_what_is_not_well_a_mend(store):
    lines = doctor.examine(store)
    assert {line.name for line in lines} >= {"python", "venv", "mirror", "keyring", "cache", "namespaces", "kvm", "key"}
    assert {line.name for line in lines} >= set(toolbox.GROUPS)
    for line in lines:
        assert line.state in ("ok", "warn", "bad")
        assert line.found
        assert line.mend or line.state == "ok", line


def test_a_finding_that_fails_is_a_finding(store, monkeypatch):
    def broken(*_, **__):
        raise Problem("no such thing", "mend it")

    monkeypatch.setattr(host, "run", broken)
    [line] = [line for line in doctor.examine(store) if line.name == "namespaces"]
    assert line[1:] == ("bad", "no such thing", "mend it")


def test_nothing_is_changed(store, tmp_path):
    doctor.examine(store)
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "cache/objects").exists()  # nothing was fetched
    assert not any((tmp_path / "cache/tools").iterdir()) if (tmp_path / "cache/tools").exists() else True


@pytest.mark.parametrize(
    ("in_one", "ensurepip", "state", "words"),
    [(True, False, "ok", "/"), (False, True, "ok", "./run makes one"), (False, False, "warn", "cannot make one")],
)
def test_virtual_environment(store, monkeypatch, in_one, ensurepip, state, words):
    monkeypatch.setattr(sys, "prefix", "/a/venv" if in_one else sys.base_prefix)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: ensurepip or None)
    line = only(doctor.virtual_environment(store))
    assert (line.state, words in line.found) == (state, True)
    assert ("apt install python3." in line.mend) == (state == "warn")


def test_mirror(store, monkeypatch):
    monkeypatch.setenv(mirror.VARIABLE, "http://mirror.invalid/debian")
    assert only(doctor.mirror(store))[1:3] == ("ok", "http://mirror.invalid/debian (IMAGEKIT_MIRROR)")
    monkeypatch.setenv(mirror.VARIABLE, "nonsense")
    line = only(doctor.mirror(store))
    assert (line.state, line.mend) == ("bad", "give http://HOST/PATH or https://HOST/PATH")


def test_keyring(store, monkeypatch, tmp_path):
    assert only(doctor.keyring(store)).state == "ok"
    monkeypatch.setenv(mirror.KEYRING_VARIABLE, str(tmp_path / "nowhere.gpg"))
    line = only(doctor.keyring(store))
    assert (line.state, "nowhere.gpg" in line.found, "IMAGEKIT_KEYRING" in line.mend) == ("bad", True, True)


@pytest.mark.parametrize(("free", "state"), [(100 << 20, "bad"), (1 << 30, "warn"), (10 << 30, "ok")])
def test_cache_by_free_space(store, monkeypatch, free, state):
    monkeypatch.setattr(os, "statvfs", lambda _: Status(free // 4096, 4096))
    line = only(doctor.cache(store))
    assert (line.state, "GB free" in line.found, bool(line.mend)) == (state, True, state != "ok")


def test_cache_that_cannot_be_written(store, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    line = only(doctor.cache(store))
    assert (line.state, "No space left" in line.found, "IMAGEKIT_CACHE" in line.mend) == ("bad", True, True)


@pytest.mark.parametrize(
    ("done", "state", "words"),
    [
        (host.Done(0, b"writable\n", b""), "ok", ""),
        (host.Done(0, b"read-only\n", b""), "warn", "overlays do not"),
        (host.Done(125, b"", b"imagekit: cannot make a user namespace: Denied\n"), "warn", "a user namespace: Denied"),
    ],
)
def test_namespaces(store, monkeypatch, done, state, words):
    monkeypatch.setattr(host, "run", lambda *_, **__: done)
    line = only(doctor.namespaces(store))
    assert (line.state, words in line.found, bool(line.mend)) == (state, True, state != "ok")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("user/max_user_namespaces", "0\n", "sysctl user.max_user_namespaces=15000"),
        ("kernel/unprivileged_userns_clone", "0\n", "sysctl kernel.unprivileged_userns_clone=1"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1\n", "apparmor_restrict_unprivileged_userns=0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "0\n", "in a container"),
    ],
)
def test_the_setting_that_forbids_is_named(monkeypatch, tmp_path, name, value, words):
    monkeypatch.setattr(doctor, "SYSTEM", tmp_path)
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text(value)
    assert words in doctor._allow()


@pytest.mark.parametrize(
    ("own", "fetched", "state", "words"),
    [
        (True, "", "ok", "mkfs 4.2"),
        (False, "pinned", "ok", "the pinned tree, in the cache (this machine has none of it)"),
        (False, "newer", "warn", "the mirror has dropped"),
        (False, "", "ok", "fetched when first needed, 2.5 MB"),
    ],
)
def test_tools(store, monkeypatch, own, fetched, state, words):
    found = toolbox.Found("host", "4.2", Path("/x"), ())
    monkeypatch.setattr(toolbox, "GROUPS", {"fat": toolbox.GROUPS["fat"]})
    monkeypatch.setattr(toolbox, "TOOLS", {"mkfs": toolbox.Tool("fat", "/usr/bin/mkfs")})
    monkeypatch.setattr(toolbox, "on_host", lambda *_: (found, "mkfs 4.2") if own else (None, "no mkfs"))
    monkeypatch.setattr(toolbox, "fetched", lambda *_: fetched)
    monkeypatch.setattr(toolbox, "size", lambda _: 2_500_000)
    line = only(doctor.tools(store))
    assert (line.name, line.state, words in line.found) == ("fat", state, True), line


def test_a_broken_lock_of_the_tools_is_told(store, monkeypatch):
    def broken(*_):
        raise Problem("the lock was edited", "take it from git again")

    monkeypatch.setattr(toolbox, "on_host", lambda *_: (None, "none"))
    monkeypatch.setattr(toolbox, "fetched", broken)
    assert {(line.state, line.mend) for line in doctor.tools(store)} == {("bad", "take it from git again")}


@pytest.mark.parametrize(
    ("present", "here", "answer", "state", "words"),
    [
        (False, True, None, "warn", "there is no /dev/kvm"),
        (True, False, None, "warn", "not tried"),
        (True, True, _kvm.Probe(True, "a probe guest ran"), "ok", "a probe guest ran"),
        (True, True, _kvm.Probe(False, "present, but a probe guest did not run (x)"), "warn", "did not run (x)"),
        (True, True, _kvm.Probe(False, "/dev/kvm does not open: Permission denied"), "warn", "Permission denied"),
    ],
)
def test_kvm(store, monkeypatch, tmp_path, present, here, answer, state, words):
    monkeypatch.setattr(_kvm, "DEVICE", tmp_path if present else tmp_path / "nowhere")
    monkeypatch.setattr(toolbox, "on_host", lambda *_: (None, "none"))
    monkeypatch.setattr(toolbox, "fetched", lambda *_: "pinned" if here else "")
    monkeypatch.setattr(toolbox, "tools", lambda *_, **__: None)
    monkeypatch.setattr(_kvm, "probe", lambda *_: answer)
    line = only(doctor.kvm(store))
    assert (line.state, words in line.found) == (state, True)
    assert ("usermod -aG kvm" in line.mend) == ("denied" in words)


def test_key(store, tmp_path, monkeypatch):
    line = only(doctor.key(store))
    assert (line.state, "imagekit key new" in line.mend) == ("warn", True)
    path = key.default_path()
    path.parent.mkdir(parents=True)
    key.save(key.new(), path)
    assert only(doctor.key(store)).state == "ok"
    monkeypatch.setenv("IMAGEKIT_KEY", str(tmp_path / "other.key"))
    assert "other.key" in only(doctor.key(store)).found
    monkeypatch.delenv("IMAGEKIT_KEY")
    path.chmod(0o644)
    line = only(doctor.key(store))
    assert (line.state, "chmod 600" in line.mend) == ("bad", True)
