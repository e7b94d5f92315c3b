"""`aurora check --trace` finds what a stage reads, writes or connects to beyond what dvc.yaml says."""

import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from threading import Thread

import pytest
from dvc.repo import Repo

from aurora.core.errors import DataError
from aurora.pipeline.tracing import sandbox, trace

pytestmark = pytest.mark.minutes

DVC = str(Path(sys.executable).with_name("dvc"))
DVC_YAML = """
stages:
  first:
    cmd: python -m steps.first
    deps: [steps/first.py, given]
    params: [first, {versions.yaml: [data]}]
    outs: [made]
  second:
    cmd: python -m steps.second
    deps: [steps/second.py, made/copy.txt]
    outs: [result.txt]
"""
FIRST = """
from pathlib import Path
from ruamel.yaml import YAML
rate = YAML(typ="safe").load(Path("params.yaml"))["first"]["rate"]
Path("made").mkdir()
Path("made/copy.txt").write_text(Path("given/a.txt").read_text() + str(rate))
"""
SECOND = """
from pathlib import Path
Path("result.txt").write_text(Path("made/copy.txt").read_text())
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    files = {"given/a.txt": "a", "dvc.yaml": DVC_YAML, "params.yaml": "first: {rate: 1e-4}\nother: 1\n"}
    files |= {
        "steps/first.py": FIRST,
        "steps/second.py": SECOND,
        "versions.yaml": "data: {numpy: '1'}\nother: {trl: '2'}\n",
    }
    files |= {"extra.txt": "secret"}
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    subprocess.run(["git", "init", "--quiet"], check=True)
    subprocess.run([DVC, "init", "--quiet"], check=True)
    subprocess.run([DVC, "repro", "--quiet"], check=True)
    return tmp_path


def traced(edit: str = "") -> tuple[str, ...]:
    with Path("steps/second.py").open("a") as file:
        file.write(edit)
    with Repo() as repo:
        done = trace(repo)
    assert done.stages == 2
    return done.faults


def test_a_sound_pipeline_has_no_fault_and_the_bytes_of_its_lock(project: Path, capfd: pytest.CaptureFixture):
    shutil.rmtree("made")  # nothing in the working tree is needed, and nothing there is touched
    Path("result.txt").unlink()
    with Repo() as repo:
        done = trace(repo)
    assert (done.faults, done.outputs, done.stale) == ((), 2, ())
    assert not Path("made").exists() and not Path("result.txt").exists()
    assert "trace 2/2: second" in capfd.readouterr().err


def test_a_module_that_is_installed_alone_is_not_there(project: Path):
    Path("aurora").mkdir()
    Path("aurora/__init__.py").touch()
    Path("dvc.yaml").write_text(DVC_YAML.replace("steps/second.py", "steps/second.py, aurora/__init__.py", 1))
    with pytest.raises(DataError, match=r"second fails .*No module named 'aurora\.core'"):
        traced("import aurora.core.lifetime\n")


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (
            "try: open('extra.txt')\nexcept OSError: pass\n",
            "second opens extra.txt, which dvc.yaml does not declare; add it to deps",
        ),
        (
            "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'open(\"given/a.txt\")'])\n",
            "second opens given/a.txt, which dvc.yaml does not declare; add it to deps",
        ),
        ("open(r'{root}/extra.txt')\n", "second opens extra.txt, which dvc.yaml does not declare; add it to deps"),
        (
            "import socket\ntry: socket.create_connection(('192.0.2.1', 9), 0.1)\nexcept OSError: pass\n",
            "second connects to 192.0.2.1; only fetch_download and fetch_hub may",
        ),
        ("open('left.txt', 'w')\n", "second writes left.txt, which dvc.yaml does not list in outs"),
        ("Path('result.txt').unlink()\n", "second does not write result.txt, which dvc.yaml lists in outs"),
    ],
    ids=["a file that may be there", "a child process", "an absolute path", "a connection", "a leftover", "no output"],
)
def test_what_is_not_declared_is_named(project: Path, edit: str, fault: str):
    try:
        found = traced(edit.format(root=project))
    except DataError as error:  # where the stage does not bear with its absence
        found = str(error)
    assert fault in found


def test_loopback_and_the_scratch_folder_are_no_fault(project: Path):
    edit = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 0.1)\nexcept OSError: pass\n"
    assert traced(edit + "Path('.aurora').mkdir()\nopen('.aurora/x', 'w')\n") == ()


def test_a_file_that_no_audit_hook_sees_is_not_there(project: Path):
    edit = "import subprocess\nsubprocess.run(['cat', 'extra.txt'], check=True)\n"
    with pytest.raises(DataError, match=r"^second fails where it has only what dvc\.yaml declares: .*extra\.txt"):
        traced(edit)


def test_an_undeclared_parameter_is_not_there(project: Path):
    edit = "from ruamel.yaml import YAML\nYAML(typ='safe').load(Path('params.yaml'))['other']\n"
    with pytest.raises(DataError, match=r"second fails .*params\.yaml.*second opens params\.yaml, which dvc\.yaml"):
        traced(edit)


def test_bytes_that_differ_from_the_lock_are_named(project: Path):
    lock = Path("dvc.lock").read_text()
    entry = lock[lock.index("  second:") :]
    size, digest = re.search(r"outs:.*?md5: (\w+)", entry, re.DOTALL)[1], "a" * 32
    Path("dvc.lock").write_text(lock.replace(size, digest))
    assert traced() == (
        "second: result.txt has other bytes than in dvc.lock: of an input that is not declared, or by chance",
    )


def test_a_lock_of_older_code_is_not_held_against_the_outputs(project: Path):
    with Path("steps/second.py").open("a") as file:
        file.write("Path('result.txt').write_text('new')\n")
    with Repo() as repo:
        done = trace(repo)
    assert (done.faults, done.outputs, done.stale) == ((), 1, ("second",))


READ = "try: found = {}\nexcept OSError: found = 'absent'"
# What a stage may depend on beyond its deps and params, each by a way of its own; `found` goes into the output.
PLANTED = {
    "an environment variable": "found = os.environ.get('PLANTED', '')",
    "the number of environment variables": "found = len(os.environ)",
    "a file in the folder for temporary files": READ.format("open('/tmp/planted-{id}').read()"),
    "a file in the home folder": READ.format("Path('~/planted').expanduser().read_text()"),
    "a file read by a library in C++": "import pyarrow\n" + READ.format("pyarrow.OSFile('extra.txt').read()"),
    "a file read by the C library": "import ctypes\nfound = ctypes.CDLL(None).open(b'{root}/extra.txt', 0) > 0",
    "a file read by another program": "found = os.popen('cat extra.txt').read()",
    "a database": "import sqlite3\ntry: found = sqlite3.connect('file:extra.db?mode=ro', uri=True).execute('select 1').fetchone()"
    "\nexcept sqlite3.Error: found = 'absent'",
    "the branch of git": "found = os.popen('git -C {root} symbolic-ref HEAD').read()",
    "a listing of the folder": "found = sorted(os.listdir('.'))",
    "whether a file is there": "found = os.path.exists('dvc.lock')",
    "the time of an input": "found = os.stat('made/copy.txt').st_mtime",
    "the time of a file that is no input": READ.format("os.stat('{root}/extra.txt').st_mtime"),
    "the number of an input's inode": "found = os.stat('made/copy.txt').st_ino",
    "an answer of this machine": "import urllib.request\n"
    + READ.format("urllib.request.urlopen('http://127.0.0.1:{port}', timeout=5).read()"),
    "a socket's file": "import socket\ntry: socket.socket(socket.AF_UNIX).connect('/tmp/planted-{id}.sock')"
    "\nexcept ConnectionRefusedError: found = 'there'\nexcept OSError: found = 'absent'",
    "the host name": "found = os.uname().nodename",
    "the host name in a file": READ.format("open('/etc/hostname').read()"),
    "the number of processors": "found = os.cpu_count()",
    "the processors that may be used": "found = len(os.sched_getaffinity(0))",
    "the user": "import getpass\nfound = getpass.getuser()",
    "the user's number": "found = os.getuid()",
    "the path of the folder": "found = os.getcwd()",
    "the process's number": "found = os.getpid()",
    "the processes of this machine": "found = sum(name.isdigit() for name in os.listdir('/proc'))",
    "the clock": "import time\nfound = time.time()",
    "chance": "found = os.urandom(4)",
    "a module loaded by its name": "from importlib import import_module\n"
    "try: found = import_module(name='steps.more').VALUE\nexcept ImportError: found = 'absent'",
    "a parameter that is not declared": "from ruamel.yaml import YAML\nfound = YAML(typ='safe').load(Path('params.yaml'))"
    " if os.path.exists('params.yaml') else 'absent'",
    "a result of an earlier run": "found = os.path.exists('.dvc/cache')",
}


@pytest.fixture
def answering() -> Iterator[int]:
    """The port of a server of this machine."""
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def plant(project: Path, code: str, port: int, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Writes an input into the second stage, has DVC run it, and returns the files to remove."""
    name = project.parent.name
    code = code.replace("{root}", str(project)).replace("{port}", str(port)).replace("{id}", name)
    monkeypatch.setenv("PLANTED", "value")
    monkeypatch.setenv("HOME", str(project / "home"))
    Path("home").mkdir()
    left = [Path(f"/tmp/planted-{name}"), Path(f"/tmp/planted-{name}.sock")]
    for file in (left[0], Path("home/planted"), Path("steps/more.py")):
        file.write_text("VALUE = 1\n")
    sqlite3.connect("extra.db").close()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(left[1]))
    with Path("steps/second.py").open("a") as file:
        file.write(f"import os\n{code}\nwith open('result.txt', 'a') as file: file.write(repr(found))\n")
    with Repo() as repo:
        repo.reproduce(["second"])
    return left


KINDS = (sandbox.NAMESPACES, sandbox.LANDLOCK, sandbox.NONE)


def promised(root: Path) -> dict[str, dict[str, bool]]:
    """Whether each planted input is caught, by the kind of sandbox, as docs/promises.md has it."""
    text = (root / "docs/promises.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "| caught |" in line]
    return {name: {kind: cell == "caught" for kind, cell in zip(KINDS, cells, strict=True)} for name, *cells in rows}


def test_the_table_of_the_docs_has_every_planted_input(root: Path):
    table = promised(root)
    assert list(table) == list(PLANTED)
    assert all(row[sandbox.NAMESPACES] for row in table.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_input_is_caught(
    project: Path, root: Path, monkeypatch: pytest.MonkeyPatch, answering: int, name: str, kind: str
):
    if KINDS.index(kind) < KINDS.index(sandbox.offered()):
        pytest.skip(f"this kernel lets this user have no {kind}")
    left = plant(project, PLANTED[name], answering, monkeypatch)
    try:
        with Repo() as repo:
            caught = bool(trace(repo, ["second"], kind).faults)
    except DataError as error:
        assert "second fails where it has only what dvc.yaml declares" in str(error)
        caught = True
    finally:
        for path in left:
            path.unlink(missing_ok=True)
    assert caught is promised(root)[name][kind]


def test_what_is_named_is_traced_alone_with_inputs_from_the_cache(project: Path):
    shutil.rmtree("made")
    with Repo() as repo:
        done = trace(repo, ["second"])
        assert (done.stages, done.outputs, done.faults) == (1, 1, ())
        for path in Path(repo.cache.local.path).rglob("*"):
            if path.is_file() and path.read_bytes() == b"a0.0001":
                path.unlink()
        with pytest.raises(
            DataError, match=r"^second: its input made/copy\.txt is not in DVC's cache; dvc pull first$"
        ):
            trace(repo, ["second"])
        with pytest.raises(DataError, match=r"no stage is named third; there are first, second"):
            trace(repo, ["third"])


@pytest.mark.parametrize("kind", [sandbox.LANDLOCK, sandbox.NONE])
def test_a_weaker_sandbox_still_runs_what_is_sound_and_says_what_it_is(project: Path, kind: str):
    if kind == sandbox.LANDLOCK and sandbox.offered() == sandbox.NONE:
        pytest.skip("this kernel has no Landlock")
    with Repo() as repo:
        done = trace(repo, (), kind)
    assert (done.faults, done.outputs, done.kind) == ((), 2, kind)
    edit = (
        "import pyarrow\ntry: found = pyarrow.OSFile('{root}/extra.txt').read().decode()\nexcept OSError: found = ''\n"
    )
    with Path("steps/second.py").open("a") as file:
        file.write(edit.replace("{root}", str(project)) + "with open('result.txt', 'a') as file: file.write(found)\n")
    with Repo() as repo:
        repo.reproduce(["second"])
        assert bool(trace(repo, ["second"], kind).faults) is (kind == sandbox.LANDLOCK)
