"""A stage starts from a known environment and from its own sources, whatever its caller has set or left behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aurora.core.environment import KEPT, OF_LAUNCHER, REFUSED, REMOVED, SET, start_from_known
from aurora.core.errors import ResourceError

ROOT = Path(__file__).parent.parent.parent
LAUNCHED = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}


@pytest.mark.parametrize("name", SET)
def test_what_shapes_bytes_is_set_whatever_it_was(name: str):
    environ = {name: "other", "HOME": "/home/me"}
    start_from_known(environ)
    assert environ == {"HOME": "/home/me"} | SET


@pytest.mark.parametrize("pattern", REMOVED)
def test_what_changes_a_recipe_is_removed_and_named(pattern: str, capsys: pytest.CaptureFixture[str]):
    name = pattern.replace("*", "X")
    environ = {name: "1"}
    start_from_known(environ)
    assert environ == SET
    said = capsys.readouterr().err
    quiet = name.endswith("_NUM_THREADS")
    assert said == ("" if quiet else f"ignores {name} of the environment; params.yaml has the recipe\n")


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_had_its_effect_is_refused(name: str):
    with pytest.raises(ResourceError, match=rf"^{name}=1 .*; run: env -u {name} dvc repro$"):
        start_from_known({name: "1"})
    start_from_known({name: ""})


@pytest.mark.parametrize("name", KEPT)
def test_what_shapes_no_byte_is_kept(name: str):
    environ = {name: "1"}
    start_from_known(environ)
    assert environ == {name: "1"} | SET


def test_what_the_launcher_tells_its_processes_is_theirs_alone():
    told = LAUNCHED | {pattern.replace("*", "X"): "1" for pattern in OF_LAUNCHER if pattern not in LAUNCHED}
    told |= {"OMP_NUM_THREADS": "3", "ACCELERATE_MIXED_PRECISION": "no"}
    environ = dict(told)
    start_from_known(environ)
    assert environ == told | SET
    environ = told | {"TORCHELASTIC_RUN_ID": ""}
    del environ["TORCHELASTIC_RUN_ID"]
    start_from_known(environ)
    assert not environ.keys() & told.keys()


@pytest.mark.parametrize(
    ("name", "value"), [("MIXED_PRECISION", "bf16"), ("DYNAMO_BACKEND", "INDUCTOR"), ("USE_FSDP", "true")]
)
def test_a_launcher_of_another_recipe_is_refused(name: str, value: str):
    with pytest.raises(ResourceError, match=rf"^ACCELERATE_{name}={value}: the launcher asks for"):
        start_from_known(LAUNCHED | {f"ACCELERATE_{name}": value})


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The code alone, in a folder of its own."""
    for name in ("aurora/__init__.py", "aurora/core", "stages/__init__.py"):
        source, target = ROOT / name, tmp_path / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)
    (tmp_path / "stages/show.py").write_text(
        "import os, sys, rensa, click, logging\nfrom aurora.core import errors\n"
        "print(rensa.__file__, click.__file__, logging.__file__, errors.__file__, sep='\\n')\n"
        "print(getattr(errors, 'OLD', ''), os.environ.get('OMP_DYNAMIC'), sep='\\n')\n"
    )
    return tmp_path


def show(folder: Path, **environment: str) -> list[str]:
    """What stages/show.py prints: where four modules come from, and more."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-m", "stages.show"],
        cwd=folder,
        env=environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("place", ["", "elsewhere"], ids=["in the root", "on PYTHONPATH"])
def test_no_file_shadows_a_library(checkout: Path, place: str):
    (checkout / place).mkdir(exist_ok=True)
    for name in ("rensa", "click", "logging", "flash_attn"):
        (checkout / place / f"{name}.py").write_text("raise SystemExit('shadowed')")
    found = show(checkout, PYTHONPATH=str(checkout / place))
    assert not any(path.startswith(str(checkout)) for path in found[:3])
    assert found[3] == str(checkout / "aurora/core/errors.py")


@pytest.mark.parametrize("name", ["aurora/core/errors.py", "stages/__init__.py"])
def test_a_compiled_file_of_the_same_size_and_second_is_not_run(checkout: Path, name: str):
    file = checkout / name
    text = file.read_text()
    old = f"{text}\nOLD = 'old'\nimport aurora.core.errors; aurora.core.errors.OLD = 'old'\n"
    file.write_text(old)
    stamp = file.stat().st_mtime
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(file)], env=environ, check=True)
    file.write_text(text + "#" * (len(old.encode()) - len(text.encode())))
    os.utime(file, (stamp, stamp))
    assert show(checkout)[4] == ""


def test_what_scikit_learn_gives_its_children_is_removed_without_a_word(capsys: pytest.CaptureFixture[str]):
    environ = {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}
    start_from_known(environ)
    assert not {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"} & environ.keys()
    assert capsys.readouterr().err == ""
    environ["KMP_DUPLICATE_LIB_OK"] = "FALSE"  # somebody's choice
    start_from_known(environ)
    assert "ignores KMP_DUPLICATE_LIB_OK" in capsys.readouterr().err


SMALL_PRODUCTS = """
import sys, time
if sys.argv[1] == "known": import stages
import torch
torch.set_num_threads(2)
a = torch.randn(128, 512)
for _ in range(200): a @ a.T  # starts the threads
started = time.process_time()
for _ in range(3000): a @ a.T
print(time.process_time() - started)
"""


def processor_seconds(environment: str) -> float:
    """Of many small products on two threads, in the `known` environment of a stage or in `another`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", SMALL_PRODUCTS, environment]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.slow
def test_threads_that_wait_beside_busy_processes_take_no_processor():
    alone = processor_seconds("known")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        assert processor_seconds("known") < 1.5 * alone
    finally:
        for process in busy:
            process.kill()
            process.wait()
