"""`aurora check --trace` finds what a stage reads, writes or connects to beyond what dvc.yaml says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from aurora.core.errors import DataError
from aurora.pipeline.tracing import trace

pytestmark = pytest.mark.minutes

DVC = str(Path(sys.executable).with_name("dvc"))
DVC_YAML = """
stages:
  first:
    cmd: python -m stages.first
    deps: [stages/first.py, given]
    params: [first, {versions.yaml: [numpy]}]
    outs: [made]
  second:
    cmd: python -m stages.second
    deps: [stages/second.py, made/copy.txt]
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
    files |= {"stages/first.py": FIRST, "stages/second.py": SECOND, "versions.yaml": "numpy: '1'\ntrl: '2'\n"}
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
    with Path("stages/second.py").open("a") as file:
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
    Path("dvc.yaml").write_text(
        DVC_YAML.replace("stages/second.py", "stages/second.py, aurora/__init__.py", 1)
    )
    with pytest.raises(DataError, match=r"second fails .*No module named 'aurora\.lifetime'"):
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
        (
            "open(r'{root}/extra.txt')\n",
            "second opens extra.txt, which dvc.yaml does not declare; add it to deps",
        ),
        (
            "import socket\ntry: socket.create_connection(('192.0.2.1', 9), 0.1)\nexcept OSError: pass\n",
            "second connects to 192.0.2.1; only fetch and fetch_hub may",
        ),
        ("open('left.txt', 'w')\n", "second writes left.txt, which dvc.yaml does not list in outs"),
        ("Path('result.txt').unlink()\n", "second does not write result.txt, which dvc.yaml lists in outs"),
    ],
    ids=[
        "a file that may be there",
        "a child process",
        "an absolute path",
        "a connection",
        "a leftover",
        "no output",
    ],
)
def test_what_is_not_declared_is_named(project: Path, edit: str, fault: str):
    assert fault in traced(edit.format(root=project))


def test_loopback_and_the_scratch_folder_are_no_fault(project: Path):
    edit = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 0.1)\nexcept OSError: pass\n"
    assert traced(edit + "Path('.aurora').mkdir()\nopen('.aurora/x', 'w')\n") == ()


def test_a_file_that_no_audit_hook_sees_is_not_there(project: Path):
    edit = "import subprocess\nsubprocess.run(['cat', 'extra.txt'], check=True)\n"
    with pytest.raises(
        DataError, match=r"^second fails where it has only what dvc\.yaml declares: .*extra\.txt"
    ):
        traced(edit)


def test_an_undeclared_parameter_is_not_there(project: Path):
    edit = "from ruamel.yaml import YAML\nYAML(typ='safe').load(Path('params.yaml'))['other']\n"
    with pytest.raises(
        DataError, match=r"second fails .*params\.yaml.*second opens params\.yaml, which dvc\.yaml"
    ):
        traced(edit)


def test_bytes_that_differ_from_the_lock_are_named(project: Path):
    lock = Path("dvc.lock").read_text()
    entry = lock[lock.index("  second:") :]
    size, digest = re.search(r"outs:.*?md5: (\w+)", entry, re.DOTALL)[1], "a" * 32
    Path("dvc.lock").write_text(lock.replace(size, digest))
    assert traced() == ("second: result.txt has other bytes than in dvc.lock",)


def test_a_lock_of_older_code_is_not_held_against_the_outputs(project: Path):
    with Path("stages/second.py").open("a") as file:
        file.write("Path('result.txt').write_text('new')\n")
    with Repo() as repo:
        done = trace(repo)
    assert (done.faults, done.outputs, done.stale) == ((), 1, ("second",))
