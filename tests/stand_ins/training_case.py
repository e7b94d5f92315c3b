"""A folder in which the sft stage runs in seconds: a tiny base, random rows, and params.yaml."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
from ruamel.yaml import YAML
from stand_ins.tiny_mixtral import write_model

from aurora.core.files import write_json
from aurora.core.parquet import write_parquet
from aurora.pipeline.params import Params, load_params

ROOT = Path(__file__).parent.parent.parent
BASE, ROWS = Path("base"), Path("rows")
OPTIONS = ["--base", "base", "--rows", "rows", "--adapter", "models/adapter"]
OPTIONS += ["--checkpoints", "models/checkpoints", "--out", "out"]


def rows(count: int, seed: int) -> pyarrow.Table:
    """Rows as format leaves them: <s>, a prompt that is masked, an answer that is trained, </s>."""
    draw = random.Random(seed)
    content = {"id": [], "input_ids": [], "labels": []}
    for number in range(count):
        prompt = [1, *(draw.randrange(3, 32000) for _ in range(draw.randrange(2, 12)))]
        answer = [*(draw.randrange(3, 300) for _ in range(draw.randrange(1, 20))), 2]
        content["id"].append(f"row{seed}-{number:03}")
        content["input_ids"].append(prompt + answer)
        content["labels"].append([-100] * len(prompt) + answer)
    kind = pyarrow.list_(pyarrow.int32())
    return pyarrow.table(
        {
            "id": content["id"],
            "input_ids": pyarrow.array(content["input_ids"], kind),
            "labels": pyarrow.array(content["labels"], kind),
        }
    )


def write_case(folder: Path, **sft: object) -> Path:
    """Base, rows and params.yaml in `folder`; `sft` replaces values of that section."""
    write_model(folder / BASE)
    write_json(folder / BASE / "manifest.json", {"source": "base"})
    write_parquet(folder / ROWS / "train.parquet", rows(22, seed=0))
    write_parquet(folder / ROWS / "held_out.parquet", rows(5, seed=1))
    write_params(folder, **sft)
    return folder


def write_params(folder: Path, **sft: object) -> Params:
    """params.yaml of the small profile, made small: 12 steps of 2 x 2 rows in two epochs."""
    content = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    small = {"num_train_epochs": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    small |= {"effective_batch_size": 4, "warmup_steps": 2, "threads": 1, "learning_rate": 0.01}
    small |= {"logging_steps": 1, "eval_steps": 4, "save_steps": 2, "save_total_limit": 2}
    content["sft"] |= small | sft
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(content, file)
    return load_params(folder / "params.yaml")


def start(folder: Path, *, python: tuple[str, ...] = (), **options: object) -> subprocess.Popen:
    """The stage's command in `folder`, its output in log.txt; `python` replaces `-m stages.sft`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)  # which torch sets in a test process that has loaded its compiler
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, *(python or ("-m", "stages.sft")), *OPTIONS],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            **options,
        )


def run(folder: Path, **options: object) -> tuple[int, str]:
    """Exit status and output of the stage."""
    process = start(folder, **options)
    return process.wait(), (folder / "log.txt").read_text()


def outcome(folder: Path) -> dict[str, bytes]:
    """Every byte that the stage leaves to the next."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in ("models/adapter", "out")
        for path in sorted((folder / name).rglob("*"))
    }


def checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints, in the order of their steps."""
    found = folder.glob(".aurora/sft/*/checkpoints/checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))
