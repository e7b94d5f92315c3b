"""A run that is broken off goes on to the same bytes; a checkpoint is whole or does not count."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from stand_ins.processes import alive
from stand_ins.training_case import (
    BASE,
    OPTIONS,
    ROOT,
    ROWS,
    checkpoints,
    outcome,
    run,
    start,
    write_case,
    write_params,
)

from aurora.core.files import sha256_file
from aurora.core.parquet import write_parquet
from aurora.pipeline.params import load_params
from aurora.sft.checkpoints import WEIGHTS, Checkpoints, fingerprint
from aurora.sft.train import train
from aurora.sft.trainer import LabelledPositionsTrainer

pytestmark = pytest.mark.minutes

SFT = {"eval_steps": 3, "save_steps": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """What an uninterrupted run leaves, with dropout; computed in this process."""
    folder = write_case(tmp_path_factory.mktemp("whole"), **SFT)
    drop(folder)
    here = Path.cwd()
    os.chdir(folder)
    try:
        train_here(folder)
    finally:
        os.chdir(here)
    return outcome(folder)


@pytest.fixture(scope="module")
def whole_stage(tmp_path_factory) -> dict[str, bytes]:
    """The same of the stage's own process, which sums in another order than this one."""
    folder = write_case(tmp_path_factory.mktemp("whole_stage"), **SFT)
    drop(folder)
    status, log = run(folder)
    assert status == 0, log
    return outcome(folder)


def drop(folder: Path) -> None:
    """Sets a dropout, so that the state of the random numbers matters."""
    path = folder / "params.yaml"
    path.write_text(path.read_text().replace("lora_dropout: 0.0", "lora_dropout: 0.1"))


def train_here(folder: Path) -> str:
    """The stage without a process of its own."""
    params = load_params(folder / "params.yaml")
    try:
        return train(BASE, ROWS, Path("models/adapter"), Path("out"), params.sft, params.quantization)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def case(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_case(tmp_path, **SFT)
    drop(tmp_path)
    return tmp_path


class Broken(Exception):
    pass


def break_at(monkeypatch, step: int) -> None:
    """Training stops with an exception in the middle of step `step` + 1."""
    usual = LabelledPositionsTrainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        if self.state.global_step == step:
            raise Broken
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(LabelledPositionsTrainer, "compute_loss", compute_loss)


@pytest.mark.parametrize(
    "step", [7, pytest.param(6, marks=pytest.mark.minutes)], ids=["within an epoch", "where an epoch begins"]
)
def test_a_broken_run_goes_on_to_the_same_bytes(case: Path, whole, monkeypatch, capsys, step: int):
    with monkeypatch.context() as patched:
        break_at(patched, step)
        with pytest.raises(Broken):
            train_here(case)
    assert [path.name for path in checkpoints(case)] == ["checkpoint-4", "checkpoint-6"]  # at most two
    assert not (case / "models/adapter").exists() and not (case / "out").exists()
    train_here(case)
    assert "going on from" in capsys.readouterr().err
    assert outcome(case) == whole
    assert not checkpoints(case)


@pytest.mark.parametrize("way", ["broken", pytest.param("killed", marks=pytest.mark.slow)])
def test_a_training_of_experts_from_an_adapter_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch, way: str):
    """LoRA on experts and attention, which goes on from another training's adapter."""
    lora = {"r": 2, "target_modules": ["q_proj", "o_proj"], "target_parameters": ["gate_up_proj", "down_proj"]}
    settings = SFT | {"num_train_epochs": 1}
    settings["lora"] = load_params(ROOT / "params.yaml").sft.lora.model_dump() | lora

    def finish(name: str, whole: bool = True) -> None:
        monkeypatch.chdir(tmp_path / name)
        if way == "killed":
            status, log = run(tmp_path / name, python=() if whole else ("-c", KILL.format(AMID_A_CHECKPOINT)))
            assert status == (0 if whole else -signal.SIGKILL), log
        elif whole:
            train_here(tmp_path / name)
        else:
            with monkeypatch.context() as patched, pytest.raises(Broken):
                break_at(patched, 3)
                train_here(tmp_path / name)

    monkeypatch.chdir(write_case(tmp_path / "first", **settings, stop_after_steps=2))
    train_here(tmp_path / "first")
    first = tmp_path / "first/models/adapter"
    start_from = {"adapter": "start", "rev": None, "sha256": sha256_file(first / WEIGHTS)}
    for name in ("whole", way):
        shutil.copytree(first, write_case(tmp_path / name, **settings, start_from=start_from) / "start")
    finish("whole")
    finish(way, whole=False)
    assert [path.name for path in checkpoints(tmp_path / way)] == ["checkpoint-2"]
    finish(way)
    found = outcome(tmp_path / way)
    assert found == outcome(tmp_path / "whole")
    assert found[f"models/adapter/{WEIGHTS}"] != (first / WEIGHTS).read_bytes()


def test_the_caller_s_environment_shapes_no_byte(case: Path, whole_stage, monkeypatch):
    """Each of these has given other weights, or a run that hung, with nothing said."""
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "OMP_THREAD_LIMIT": "1",
        "OMP_DYNAMIC": "true",
        "MKL_DYNAMIC": "true",
        "OMP_NUM_THREADS": "1",
        "PMI_SIZE": "2",
        "WORLD_SIZE": "2",
        "MKL_CBWR": "AVX2",
        "ATEN_CPU_CAPABILITY": "default",
    }.items():
        monkeypatch.setenv(name, value)
    status, log = run(case)
    assert status == 0, log
    assert outcome(case) == whole_stage
    (line,) = (line for line in log.splitlines() if line.startswith("ignores "))
    assert {"ACCELERATE_MIXED_PRECISION", "ATEN_CPU_CAPABILITY", "MKL_CBWR"} <= set(re.findall(r"\w+", line))


def test_a_training_whose_outputs_are_lost_by_dvc_is_not_run_again(case: Path, whole, monkeypatch):
    """DVC may be killed, or its disk fill up, after the stage has ended and before dvc.lock names the adapter."""
    monkeypatch.setenv("DVC_STAGE", "sft")
    train_here(case)
    assert len(checkpoints(case)) == 1 and not list(case.glob(".aurora/sft/*/datasets"))
    for folder in ("models", "out"):
        shutil.rmtree(case / folder)
    break_at(monkeypatch, 0)  # a step of training would fail
    train_here(case)
    assert outcome(case) == whole


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_bnb_8bit", "adamw_torch_4bit"])
def test_every_optimiser_s_state_comes_back(case: Path, monkeypatch, optim: str):
    if optim == "adamw_torch_4bit":
        pytest.importorskip("torchao")
    # r 128: matrices of 4,096 weights, from which on states are kept in 8 and 4 bits
    lora = {"r": 128, "lora_alpha": 128, "lora_dropout": 0.1, "target_modules": ["q_proj", "o_proj"]}
    write_params(case, optim=optim, lora=lora, **SFT)
    train_here(case)
    expected = outcome(case)
    shutil.rmtree(case / "models")
    shutil.rmtree(case / "out")
    with monkeypatch.context() as patched:
        break_at(patched, 7)
        with pytest.raises(Broken):
            train_here(case)
    train_here(case)
    assert outcome(case) == expected


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("bytes", marks=pytest.mark.minutes),
        pytest.param("missing", marks=pytest.mark.slow),
        pytest.param("sums", marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(case: Path, whole, monkeypatch, capsys, damage: str):
    with monkeypatch.context() as patched:
        break_at(patched, 7)
        with pytest.raises(Broken):
            train_here(case)
    newest = checkpoints(case)[-1]
    file = newest / ("sha256.json" if damage == "sums" else "optimizer.pt")
    if damage == "missing":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1 if damage == "bytes" else 0x80
        file.write_bytes(content)
    train_here(case)
    lines = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(lines) == 1 and "checkpoint-6 is damaged" in lines[0] and lines[0].endswith("going on from step 4")
    assert outcome(case) == whole


def test_no_whole_checkpoint_means_from_the_beginning(tmp_path: Path, capsys):
    store = Checkpoints(tmp_path, limit=2)
    (tmp_path / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "staging/checkpoint-6").mkdir(parents=True)
    assert store.take_last_whole() is None
    assert (
        "checkpoint-5 is damaged (sha256.json is missing); removed, going on from the beginning"
        in capsys.readouterr().err
    )
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_pruned_by_step_not_by_name(tmp_path: Path):
    store = Checkpoints(tmp_path, limit=2)
    for step in (8, 9, 10, 100):
        folder = store.staging / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes([step]))
        store.publish(step)
    assert store.steps() == [10, 100] and store.take_last_whole() == store.path(100)


def test_the_fingerprint_covers_every_input(case: Path):
    params = write_params(case, **SFT)

    def now(**sft) -> str:
        changed = params.sft.model_copy(update=sft)
        return fingerprint(BASE, ROWS, changed, params.quantization, "cpu")

    first = now()
    assert first == now()
    # The same rows per step in another layout go on from the same checkpoints.
    assert first == now(processes=2, gradient_accumulation_steps=1, accelerate_config="machines.yaml")
    other = [now(seed=1), fingerprint(BASE, ROWS, params.sft, params.quantization, "card")]
    turned = params.quantization.model_copy(update={"double_quant": False})
    other.append(fingerprint(BASE, ROWS, params.sft, turned, "cpu"))
    (BASE / "manifest.json").write_text("{}")
    other.append(now())
    (BASE / "more.safetensors").write_bytes(b"")
    other.append(now())
    from stand_ins.training_case import rows

    for name in ("train", "held_out"):
        write_parquet(ROWS / f"{name}.parquet", rows(3, seed=9))
        other.append(now())
    assert len({first, *other}) == len(other) + 1


# `stages` comes first, as under `python -m`: it settles how the processor adds up.
KILL = """
import os, signal
import stages
from aurora.sft import checkpoints, train
from aurora.sft.trainer import LabelledPositionsTrainer
{}
from stages.sft import main
main()
"""
PAUSED = """
import stages
import time
from pathlib import Path
from aurora.sft.trainer import LabelledPositionsTrainer
usual = LabelledPositionsTrainer.compute_loss
def compute_loss(self, *args, **kwargs):
    while self.state.global_step >= 4 and Path("pause").exists():
        time.sleep(0.05)
    return usual(self, *args, **kwargs)
LabelledPositionsTrainer.compute_loss = compute_loss
from stages.sft import main
main()
"""
AMID_A_CHECKPOINT = """
publish = checkpoints.Checkpoints.publish
def killed(self, step):
    os.kill(os.getpid(), signal.SIGKILL) if step == 4 else publish(self, step)
checkpoints.Checkpoints.publish = killed
"""
AMID_THE_ADAPTER = """
train.write_json = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_killed_processes_go_on_to_the_same_bytes(case: Path, whole_stage):
    status, _ = run(case, python=("-c", KILL.format(AMID_A_CHECKPOINT)))
    assert status == -signal.SIGKILL
    assert [path.name for path in checkpoints(case)] == ["checkpoint-2"]
    assert list(case.glob(".aurora/sft/*/checkpoints/staging/checkpoint-4"))
    status, log = run(case, python=("-c", KILL.format(AMID_THE_ADAPTER)))
    assert status == -signal.SIGKILL and "checkpoint-2" in log
    assert list(case.glob("models/.adapter.*.partial")) and not (case / "models/adapter").exists()
    status, log = run(case)
    assert status == 0, log
    assert outcome(case) == whole_stage
    assert sorted(path.name for path in (case / "models").iterdir()) == ["adapter", "checkpoints"]


def test_ctrl_c_and_termination_go_on_to_the_same_bytes(case: Path, whole_stage):
    def hear() -> None:  # what a shell starts in the background ignores SIGINT
        signal.signal(signal.SIGINT, signal.default_int_handler)

    interrupted = KILL.format(AMID_A_CHECKPOINT.replace("SIGKILL", "SIGINT"))
    status, log = run(case, python=("-c", interrupted), preexec_fn=hear)
    assert status == 130 and "sft: interrupted; dvc repro goes on from the last checkpoint" in log
    assert "Traceback" not in log and [path.name for path in checkpoints(case)] == ["checkpoint-2"]
    status, log = run(case, python=("-c", KILL.format(AMID_THE_ADAPTER.replace("SIGKILL", "SIGTERM"))))
    assert status == -signal.SIGTERM and "checkpoint-2" in log
    status, log = run(case)
    assert status == 0, log
    assert outcome(case) == whole_stage


def test_a_disk_that_fills_up_leaves_nothing_half_written(case: Path):
    def fill() -> None:  # no file may grow beyond this, as on a full disk: the adapter fits, the optimiser does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    status, log = run(case, preexec_fn=fill)
    assert status == 1 and "Traceback" not in log
    (line,) = [line for line in log.splitlines() if line.startswith("error:")]
    assert "the checkpoint of step 2 could not be written" in line and "last good one is none" in line
    assert "bytes free" in line and "free some space and run dvc repro" in line
    assert not checkpoints(case) and not list(case.glob(".aurora/sft/*/checkpoints/staging"))


def test_two_processes_train_as_one_and_go_on_when_killed(case: Path):
    sft = SFT | {"num_train_epochs": 6}  # long enough to be killed; no dropout, whose masks would differ
    write_params(case, processes=2, gradient_accumulation_steps=1, **sft)
    process = start(case)
    while process.poll() is None and not checkpoints(case):
        time.sleep(0.05)
    ranks = children(process.pid)
    assert len(ranks) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while any(map(alive, ranks)):
        assert time.monotonic() < deadline, "a process outlived the stage"
        time.sleep(0.02)
    status, log = run(case)
    assert status == 0, log
    assert "going on from" in log
    two = (case / "out/curve.csv").read_text()
    shutil.rmtree(case / "out")
    params = write_params(case, **sft)
    train(BASE, ROWS, Path("models/adapter"), Path("out"), params.sft, params.quantization)
    torch.use_deterministic_algorithms(False)
    one = (case / "out/curve.csv").read_text()
    cells = [[line.split(",") for line in text.splitlines()[1:]] for text in (one, two)]
    assert len(cells[0]) == len(cells[1]) == 37  # 22 rows in steps of 4: the last of an epoch is not full
    for mine, theirs in zip(*cells, strict=True):
        assert [bool(cell) for cell in mine] == [bool(cell) for cell in theirs]
        assert [float(cell) for cell in mine if cell] == pytest.approx(
            [float(cell) for cell in theirs if cell], abs=1e-4
        )


def children(process: int) -> list[int]:
    """Processes below this one."""
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [found for child in map(int, listed) for found in [child, *children(child)]]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_and_the_record_tells(case: Path, first: int, then: int):
    sft = SFT | {"num_train_epochs": 6}
    write_params(case, processes=first, gradient_accumulation_steps=2 // first, **sft)
    process = start(case)
    while process.poll() is None and not checkpoints(case):
        time.sleep(0.05)
    process.kill()
    process.wait()
    write_params(case, processes=then, gradient_accumulation_steps=2 // then, **sft)
    status, log = run(case)
    assert status == 0 and re.search(rf"going on from .*, in {then} processes instead of {first}", log), log
    layouts = json.loads((case / "models/adapter/training.json").read_text())["layouts"]
    assert [each["processes"] for each in layouts] == [first, then]
    assert layouts[0]["from_step"] == 0 < layouts[1]["from_step"]
    mixed = (case / "out/curve.csv").read_text()
    shutil.rmtree(case / "out")
    params = write_params(case, **sft)
    train(BASE, ROWS, Path("models/adapter"), Path("out"), params.sft, params.quantization)
    torch.use_deterministic_algorithms(False)
    assert "layouts" not in json.loads((case / "models/adapter/training.json").read_text())
    cells = [
        [float(cell or -1) for line in text.splitlines()[1:] for cell in line.split(",")]
        for text in (mixed, (case / "out/curve.csv").read_text())
    ]
    assert cells[0] == pytest.approx(cells[1], abs=1e-4)


# dash stays between DVC and its command, where bash gives way to it.
@pytest.mark.parametrize("shell", [pytest.param("bash", marks=pytest.mark.slow), "dash"])
def test_dvc_killed_alone_leaves_no_orphan_and_a_second_start_is_refused(case: Path, whole_stage, shell: str):
    found = shutil.which(shell) or pytest.skip(f"needs {shell}")
    (case / "paused.py").write_text(PAUSED)
    (case / "pause").touch()
    command = " ".join([sys.executable, "paused.py", *OPTIONS])
    (case / "dvc.yaml").write_text(
        f"stages:\n  sft:\n    cmd: {command}\n    deps: [base, rows]\n    params: [quantization, sft]\n    outs: [models/adapter, out]\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "SHELL": found}
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], cwd=case, check=True)
    with (case / "dvc.txt").open("w") as log:
        repro = subprocess.Popen([*dvc, "repro"], cwd=case, env=environment, stdout=log, stderr=log)
    while repro.poll() is None and not checkpoints(case):
        time.sleep(0.05)
    (stage,) = [
        number
        for number in children(repro.pid)
        if Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[1:2] == [b"paused.py"]
    ]
    status, log = run(case)
    assert status == 1 and log.startswith(f"error: .aurora/sft/lock: process {stage} is working here")
    repro.kill()
    repro.wait()
    for _ in range(500):
        if not alive(stage):
            break
        time.sleep(0.01)
    assert not alive(stage)
    (case / "pause").unlink()
    done = subprocess.run([*dvc, "repro"], cwd=case, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from" in done.stdout + done.stderr
    assert outcome(case) == whole_stage
