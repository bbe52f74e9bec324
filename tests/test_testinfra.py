"""testinfra's `host`: over our guest in a definition, testinfra's own elsewhere; images/bastion.py has a real one."""

import pytest
import toys

from imagekit.guest import Finished

pytest_plugins = "pytester"
pytest.importorskip("testinfra", reason="not installed: pip install 'imagekit[dev]'")


def test_definitions_get_the_guest_and_others_their_own(project: pytest.Pytester) -> None:
    toys.write(project, "images/toy.py", toys.TOY + """
def test_host(host, guest):
    assert host.backend.get_pytest_id() == "imagekit://toy_x86_64-x86_64"
    assert host.run("echo %s", "a b").stdout == "/bin/sh -c echo 'a b'"
""")  # fmt: skip
    toys.write(project, "test_other.py", """
testinfra_hosts = ["local://"]
def test_host(host): assert host.run("echo hello").stdout == "hello\\n"
""")  # fmt: skip
    result = project.runpytest_subprocess("images", "test_other.py", "--arch", "x86_64", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2)


def test_a_definition_s_own_host_stays(project: pytest.Pytester) -> None:
    own = "import pytest\n@pytest.fixture\ndef host(): return 7\ndef test_host(host): assert host == 7\n"
    toys.write(project, "images/toy.py", toys.TOY + own)
    project.runpytest_subprocess("images", "-p", "no:cacheprovider").assert_outcomes(passed=1)


PS = {
    "ps -A -o pid,ppid,user,group,vsz,rss,stat,comm": b"PID H\n    1     0 root root 4m 3m S runit\n"
    b"   86     1 root www 4m 3m S two words\n   99 1 root root 1 1 R ps\n",
    "ps -A -o pid,args": b"PID COMMAND\n    1 runit\n   86 /usr/bin/two words -x  -y\n  100 ps -A\n",
    "readlink -f /bin/ps": b"/usr/bin/busybox\n",
}


class Guest:
    """Answers as a guest with busybox does."""

    target, arch = "toy", "x86_64"

    def run(self, argv: list[str]) -> Finished:
        shell, option, command = argv
        assert (shell, option) == ("/bin/sh", "-c")
        known = PS.get(command)
        return Finished(tuple(argv), 0 if known else 1, known or b"", b"")


def test_processes_of_busybox() -> None:
    from imagekit import testinfra

    process = testinfra.host(Guest()).process
    found = process.get(comm="two words")
    assert (found.pid, found.ppid, found.group, found.args) == (86, 1, "www", "/usr/bin/two words -x  -y")
    assert [each.pid for each in process.filter(user="root")] == [1, 86, 99]
    with pytest.raises(Exception, match="unknown attribute of a process 'pcpu'"):
        process.filter(pcpu=1)
