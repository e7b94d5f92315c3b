"""The stage in several processes: what must agree, and several machines on one loopback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins.training_case import OPTIONS, ROOT, run, start, write_case, write_params

from aurora.core.errors import ParamsError
from aurora.launch import check_workers, is_worker, launch

MACHINE = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
num_machines: 2
machine_rank: {rank}
main_process_ip: 127.0.0.1
main_process_port: {port}
num_processes: 2
same_network: true
rdzv_backend: static
mixed_precision: 'no'
use_cpu: false
gpu_ids: all
"""


def test_another_number_of_processes_than_stated_is_refused(tmp_path: Path, monkeypatch):
    sft = write_params(tmp_path, processes=2, gradient_accumulation_steps=1).sft
    monkeypatch.delenv("RANK", raising=False)
    assert not is_worker()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert is_worker()
    check_workers("sft", sft)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ParamsError, match=r"sft\.processes is 2, but 4 were started"):
        check_workers("sft", sft)


def test_a_missing_file_of_machines_is_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sft = write_params(tmp_path, processes=2, gradient_accumulation_steps=1, accelerate_config="no.yaml").sft
    with pytest.raises(ParamsError, match=r"no\.yaml not found; write it by: accelerate config --config_file no\.yaml"):
        launch("sft", sft, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MACHINE.format(rank=0, port=1) + "num_machine: 2\n",
            r"^two\.yaml: accelerate does not take it \(.*num_machine.*write it again by: accel",
        ),
        ("{", r"^two\.yaml: not YAML"),
        ("", r"^two\.yaml: expected sections"),
        ("[1, 2]\n", r"^two\.yaml: expected sections"),
    ],
)
def test_a_damaged_file_of_machines_is_one_line(tmp_path: Path, monkeypatch, text: str, message: str):
    monkeypatch.chdir(tmp_path)
    sft = write_params(tmp_path, processes=2, gradient_accumulation_steps=1, accelerate_config="two.yaml").sft
    Path("two.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message):
        launch("sft", sft, [])


@pytest.mark.slow
def test_a_fault_in_one_process_is_said_without_a_traceback(tmp_path: Path):
    write_case(tmp_path, processes=2, gradient_accumulation_steps=1, learning_rate=0.99, max_grad_norm=1e30)
    # Weights that overflow float32 within the run: B grows by the learning rate, and the norms square it.
    text = (tmp_path / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("lora_alpha: 64", "lora_alpha: 1e+40"))
    status, log = run(tmp_path)
    lines = [line for line in log.splitlines() if line.startswith("error:")]
    assert status == 1 and lines and "Traceback" not in log
    assert all(re.search(r" is (nan|inf) at step \d+, rows row0-", line) for line in lines)


@pytest.mark.slow
def test_two_machines_train_as_one_process(tmp_path: Path):
    write_case(tmp_path)
    assert run(tmp_path)[0] == 0
    one = (tmp_path / "out/curve.csv").read_text()
    write_params(tmp_path, processes=2, gradient_accumulation_steps=1, accelerate_config="accelerate.yaml")
    for rank, name in enumerate(("accelerate.yaml", "other.yaml")):
        (tmp_path / name).write_text(MACHINE.format(rank=rank, port=20000 + os.getpid() % 20000))
    first = start(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = ["-m", "accelerate.commands.launch", "--config_file", "other.yaml", "--mixed_precision", "no"]
    second = subprocess.run(
        [sys.executable, *command, "-m", "stages.sft", *OPTIONS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 0, second.stderr
    assert first.wait(60) == 0
    two = (tmp_path / "out/curve.csv").read_text()
    cells = [[cell for line in text.splitlines()[1:] for cell in line.split(",")] for text in (one, two)]
    assert [float(cell or -1) for cell in cells[1]] == pytest.approx([float(cell or -1) for cell in cells[0]], abs=2e-5)
