"""A training that is killed at random moments and started again ends in the bytes of an uninterrupted one.

    python benchmarks/resume.py [--kills 20] [--seed 0] [--processes 1]

Runs the sft stage's own command on the base and the rows of the small profile (dvc repro format), with dropout,
accumulation and a checkpoint every 4 steps, once whole and then once for each kill: SIGKILL, SIGTERM or SIGINT at a
moment drawn over the whole duration, start-up and the writing of the adapter included, and a second start. A run that
ends before its kill is no kill, and another one takes its place.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from ruamel.yaml import YAML

MEASURES = ("aurora/sft",)

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
COMMAND = (
    *(sys.executable, "-m", "stages.sft", "--base", str(ROOT / "data/raw/model/base")),
    *("--rows", str(ROOT / "data/format"), "--adapter", "adapter", "--out", "out", "--checkpoints", "kept"),
)
OUTS = ("adapter", "kept", "out")
CHANGES = {
    "num_train_epochs": 0.2,
    "per_device_train_batch_size": 2,
    "effective_batch_size": 4,
    "logging_steps": 2,
    "eval_steps": 6,
    "save_steps": 4,
    "warmup_steps": 2,
    "threads": 1,
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def write_params(folder: Path, processes: int) -> None:
    """params.yaml of the small profile with the changes above."""
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["sft"] |= CHANGES | {"processes": processes, "gradient_accumulation_steps": 2 // processes}
    params["sft"]["lora"]["lora_dropout"] = 0.1
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)


def start(folder: Path) -> subprocess.Popen:
    """The stage, its output in log.txt. It hears SIGINT, which a shell has its background processes ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(COMMAND, cwd=folder, env=ENVIRONMENT, stdout=log, stderr=log)


def outcome(folder: Path) -> dict[str, bytes]:
    """Every byte that the stage leaves to the next."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in OUTS
        for path in sorted((folder / name).rglob("*"))
    }


@click.command()
@click.option("--kills", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1, 2))
def main(kills: int, seed: int, processes: int) -> None:
    """Print a line for each kill; end with status 1 if any byte differs."""
    moments = random.Random(seed)
    equal = ended = number = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_params(folder, processes)
        began = time.monotonic()
        if start(folder).wait():
            sys.exit((folder / "log.txt").read_text()[-2000:])
        duration = time.monotonic() - began
        whole = outcome(folder)
        print(f"uninterrupted: {duration:.1f} s, {len(whole)} files")
        print(f"{'kill':<6}{'signal':<10}{'after s':>8}{'checkpoints':>14}  bytes")
        while number < kills:
            for left in (*OUTS, "log.txt"):
                path = folder / left
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            moment, sent = moments.uniform(0, duration), SIGNALS[(number + 1) % 3]
            run = start(folder)
            time.sleep(moment)
            run.send_signal(sent)
            if run.wait() == 0:
                ended += 1
                continue
            number += 1
            steps = [path.name.split("-")[1] for path in folder.glob(".aurora/sft/*/checkpoints/checkpoint-*")]
            for left in OUTS:  # as DVC does before it runs the stage again
                shutil.rmtree(folder / left, ignore_errors=True)
            if start(folder).wait():
                sys.exit((folder / "log.txt").read_text()[-2000:])
            same = outcome(folder) == whole
            equal += same
            shown = ",".join(sorted(steps, key=int)) or "none"
            print(
                f"{number:<6}{sent.name:<10}{moment:>8.1f}{shown:>14}  {'equal' if same else 'DIFFERENT'}", flush=True
            )
        print(f"{equal} of {kills} end in equal bytes; {ended} more runs had ended before their kill")
    sys.exit(equal != kills)


if __name__ == "__main__":
    main()
