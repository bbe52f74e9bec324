"""package.toml: what is right is read, what is wrong is told with what would be right."""

import pytest

from imagekit import recipe
from imagekit.errors import Problem
from imagekit.image import Directory, File, Symlink, Text
from imagekit.package import Origin
from imagekit.recipe import Limits, Source

HEAD = 'name = "hello"\nversion = "1.0"\nlicence = "MIT"\narchitecture = "all"\n'
FILES = '[files]\n"/usr/bin/hello" = "hello.sh"\n'
BUILD = '[build]\nimage = "toolchain.py"\nsteps = [["make"]]\n'
D = "ab" * 32


def read(tmp_path, text):
    (tmp_path / "package.toml").write_text(text)
    return recipe.read(tmp_path)


def test_everything_that_it_may_hold(tmp_path):
    made = read(
        tmp_path,
        'name = "hello"\nversion = "1.0-1"\nlicence = "MIT AND (GPL-2.0-only OR curl)"\narchitecture = ["x86_64"]\n'
        'notes = ["user: hello"]\nsetuid = ["/bin/su"]\norigin = {source = "greet", version = "2"}\n'
        f'[[source]]\npath = "src"\n[[source]]\nurl = "https://x.example/a.tar"\nsha256 = "{D}"\n'
        '[files]\n"/bin/hello" = "hello.sh"\n"/usr/a" = {fetched = "a.tar", mode = "0600", owner = 5}\n'
        '"/etc/b" = {text = "b\\n", group = 6}\n"/usr/c" = {symlink = "a"}\n"/var/d" = {directory = true, mode="750"}',
    )
    assert made.architectures == ("x86_64",)
    assert (made.origin, made.notes, made.setuid) == (Origin("greet", "2"), ("user: hello",), ("/usr/bin/su",))
    assert made.sources == (Source("src", "", "src"), Source("https://x.example/a.tar", D, "a.tar"))
    assert made.files == {
        "/bin/hello": File("hello.sh"),
        "/usr/a": File("a.tar", 0o600, owner=5),
        "/etc/b": Text("b\n", group=6),
        "/usr/c": Symlink("a"),
        "/var/d": Directory(0o750),
    }
    assert made.fetched == {"/usr/a": "a.tar"}
    assert made.build is None


def test_steps_and_limits(tmp_path):
    made = read(tmp_path, HEAD + BUILD + 'env = {CC = "tcc"}\nlimits = {seconds = 5, memory = "64 MiB", output = 1000}')
    assert made.build == recipe.Steps("toolchain.py", (("make",),), {"CC": "tcc"}, Limits(5, 64 << 20, 256, 1000))
    assert made.origin == Origin("hello", "1.0")
    assert recipe.read(tmp_path / "package.toml") == made


def changed(old, new):
    assert old in HEAD
    return HEAD.replace(old, new) + FILES


BAD = {
    "no TOML": ("name = ", "is no TOML"),
    "not UTF-8": (b"\xff", "is no TOML"),
    "deep": ("a = " + "[" * 5000, "is no TOML"),
    "huge": ("#" * (recipe.MAX_TEXT + 1), "larger than"),
    "key twice": (HEAD + 'name = "x"\n' + FILES, "is no TOML"),
    "a query": (HEAD + f'[[source]]\nurl = "https://x.example/a?b"\nsha256 = "{D}"\n' + FILES, "has a query"),
    "credentials": (HEAD + f'[[source]]\nurl = "https://u:p@x.example/a"\nsha256 = "{D}"\n' + FILES, "credentials"),
    "unknown key": (HEAD + 'licens = "MIT"\n' + FILES, "unknown key 'licens'\n  hint: did you mean 'licence'"),
    "no name": (changed('name = "hello"\n', ""), 'it has no name\n  hint: name = "hello"'),
    "no licence": (changed('licence = "MIT"\n', ""), "it has no licence"),
    "empty licence": (changed('"MIT"', '""'), "licence: '' is none"),
    "licence that is none": (changed('"MIT"', '"MIT AND"'), "licence: 'MIT AND' is none"),
    "licence with one bracket": (changed('"MIT"', '"(MIT"'), "is none"),
    "name that leads out": (changed('"hello"', '"../hello"'), "name: '../hello' is none"),
    "upper-case name": (changed('"hello"', '"Hello"'), "name: 'Hello' is none"),
    "number as version": (changed('"1.0"', "1.0"), "version: 1.0 is no text"),
    "epoch": (changed('"1.0"', '"1:1.0"'), "version: '1:1.0' is none"),
    "architecture of Debian": (changed('"all"', '"amd64"'), "unknown architecture 'amd64'"),
    "all and one": (changed('"all"', '["all", "x86_64"]'), "architecture: .* is none"),
    "no architecture": (changed('"all"', "[]"), "architecture: .* is none"),
    "neither": (HEAD, "either .files. to lay out or .build. steps"),
    "both": (HEAD + FILES + BUILD, "one of the two, not both"),
    "files is no table": (HEAD + "files = 1", "files: 1 is no table"),
    "relative path": (HEAD + '[files]\n"usr/x" = "x"', "'usr/x' is a relative path"),
    "path that leads out": (HEAD + '[files]\n"/usr/../x" = "x"', "is no path"),
    "path twice": (HEAD + '[files]\n"/bin/x" = "x"\n"/usr/bin/x" = "y"', "given twice"),
    "file from elsewhere": (HEAD + '[files]\n"/x" = "../x"', "not beside"),
    "absolute file": (HEAD + '[files]\n"/x" = "/etc/passwd"', "not beside"),
    "unknown kind": (HEAD + '[files]\n"/x" = {link = "y"}', "files: /x: unknown key 'link'"),
    "two kinds": (HEAD + '[files]\n"/x" = {text = "y", symlink = "z"}', "text and symlink"),
    "mode alone": (HEAD + '[files]\n"/x" = {mode = "0755"}', "files: /x has nothing"),
    "mode as a number": (HEAD + '[files]\n"/x" = {file = "x", mode = 755}', "octal digits in quotes"),
    "mode of a symlink": (HEAD + '[files]\n"/x" = {symlink = "x", mode = "0755"}', "neither mode nor owner"),
    "owner by name": (HEAD + '[files]\n"/x" = {file = "x", owner = "www"}', "only an image has names"),
    "negative owner": (HEAD + '[files]\n"/x" = {file = "x", owner = -1}', "owner = -1"),
    "fetched from nowhere": (HEAD + '[files]\n"/x" = {fetched = "x"}', "unknown source 'x'"),
    "zero byte": (HEAD + '[files]\n"/x" = {text = "\\u0000"}', "is no text"),
    "source of nothing": (HEAD + "[[source]]\n" + FILES, "either a url or a path"),
    "source of both": (HEAD + '[[source]]\nurl = "https://x/y"\npath = "y"\n' + FILES, "either a url or a path"),
    "URL without a digest": (HEAD + '[[source]]\nurl = "https://x/y"\n' + FILES, "'' is no sha256"),
    "digest with a blank": (HEAD + f'[[source]]\npath = "y"\nsha256 = " {D[1:]}"\n' + FILES, "is no sha256"),
    "short digest": (HEAD + '[[source]]\npath = "y"\nsha256 = "ab"\n' + FILES, "is no sha256"),
    "file: URL": (HEAD + f'[[source]]\nurl = "file:///etc/passwd"\nsha256 = "{D}"\n' + FILES, "is no address"),
    "URL as path": (HEAD + '[[source]]\npath = "file://etc/passwd"\n' + FILES, "not beside"),
    "source that leads out": (HEAD + '[[source]]\npath = "a/../../b"\n' + FILES, "not beside"),
    "absolute source": (HEAD + '[[source]]\npath = "/etc"\n' + FILES, "not beside"),
    "source's name": (HEAD + '[[source]]\npath = "y"\nname = "../y"\n' + FILES, "'../y' is no name"),
    "two sources of one name": (HEAD + '[[source]]\npath = "a/y"\n[[source]]\npath = "b/y"\n' + FILES, "one name"),
    "note that steers": (HEAD + 'notes = ["\\u001b[2J"]\n' + FILES, "notes: .* is none"),
    "setuid that leads out": (HEAD + 'setuid = ["/a/../b"]\n' + FILES, "no path of a package"),
    "no steps": (HEAD + '[build]\nimage = "t.py"', "there are no steps"),
    "step as a string": (HEAD + '[build]\nimage = "t.py"\nsteps = ["make"]', "a step: 'make' is no list"),
    "empty step": (HEAD + '[build]\nimage = "t.py"\nsteps = [[]]', "has no program"),
    "image elsewhere": (HEAD + BUILD.replace("toolchain", "../t"), "no definition beside"),
    "image that is none": (HEAD + BUILD.replace(".py", ".sh"), "no definition beside"),
    "fixed variable": (HEAD + BUILD + 'env = {PATH = "/x"}', "'PATH' cannot be set"),
    "odd variable": (HEAD + BUILD + 'env = {"A=B" = "/x"}', "cannot be set"),
    "unknown limit": (HEAD + BUILD + "limits = {cpu = 1}", "limits: unknown key 'cpu'"),
    "limit of nothing": (HEAD + BUILD + "limits = {seconds = 0}", "seconds = 0"),
    "limit that is true": (HEAD + BUILD + "limits = {seconds = true}", "seconds = True"),
    "limit without a measure": (HEAD + BUILD + 'limits = {memory = "much"}', "is no size"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong(tmp_path, name):
    text, said = BAD[name]
    (tmp_path / "package.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(Problem, match=said) as caught:
        recipe.read(tmp_path)
    assert caught.value.message.startswith(str(tmp_path))
    assert caught.value.hint or "larger" in said


def test_no_package_there(tmp_path):
    with pytest.raises(Problem, match=r"cannot read .*package.toml: No such file"):
        recipe.read(tmp_path)
