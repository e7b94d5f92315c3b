"""How far apart trainings end that differ in nothing but the order of their sums.

    dvc repro format && python benchmarks/rounding.py [--precision fp32,bf16] [--epochs 5]

Runs the sft stage's own command on the base and the rows of the small profile three times in each precision: as
params.yaml has it, once more, and with half the batch on the device and twice the accumulation, which is the same
recipe. On a CPU the second ends in the bytes of the first. On a card it may not: then its line is the tolerance within
which that card repeats a training.
"""

import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy
from resume import COMMAND, ENVIRONMENT, ROOT
from ruamel.yaml import YAML
from safetensors.numpy import load_file

MEASURES = ("aurora/sft",)

COMPUTE = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def train(folder: Path, precision: str, epochs: float, accumulation: int) -> tuple[dict, dict, bytes]:
    """Losses by step and kind, the adapter's tensors, and its bytes."""
    folder.mkdir()
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["quantization"]["compute_dtype"] = COMPUTE[precision]
    params["sft"] |= {
        "precision": precision,
        "num_train_epochs": epochs,
        "per_device_train_batch_size": params["sft"]["effective_batch_size"] // accumulation,
        "gradient_accumulation_steps": accumulation,
    }
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    done = subprocess.run(
        COMMAND, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    with (folder / "out/curve.csv").open(encoding="utf-8", newline="") as file:
        losses = {
            (kind, row["step"]): float(row[kind])
            for row in csv.DictReader(file)
            for kind in ("loss", "held_out_loss")
            if row[kind]
        }
    weights = folder / "adapter/adapter_model.safetensors"
    return losses, load_file(weights), weights.read_bytes()


def compare(name: str, one: tuple, other: tuple) -> dict[str, float]:
    """Prints a line of the table; returns its figures."""
    gaps = {
        kind: max(abs(one[0][key] - other[0][key]) for key in one[0] if key[0] == kind)
        for kind in ("loss", "held_out_loss")
    }
    square = sum(float(numpy.sum((one[1][key] - other[1][key]) ** 2)) for key in one[1])
    size = sum(float(numpy.sum(weight**2)) for weight in one[1].values())
    gaps["adapter"] = (square / size) ** 0.5
    same = "equal" if one[2] == other[2] else "differ"
    print(f"{name:<44}{same:>8}{gaps['loss']:>14.1e}{gaps['held_out_loss']:>16.1e}{gaps['adapter']:>14.1e}", flush=True)
    return {key: float(f"{gap:.1e}") for key, gap in gaps.items()}


@click.command()
@click.option("--precision", default="fp32,bf16", show_default=True, help="Of fp32, bf16 and fp16.")
@click.option("--epochs", default=None, type=float, help="Epochs; those of params.yaml where it is left out.")
def main(precision: str, epochs: float | None) -> None:
    """Print a line for each pair of trainings."""
    whole = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))["sft"]
    epochs = epochs or whole["num_train_epochs"]
    print(f"{'against the training of params.yaml':<44}{'bytes':>8}{'loss':>14}{'held-out loss':>16}{'adapter':>14}")
    values = {}
    with tempfile.TemporaryDirectory() as name:
        for kind in precision.split(","):
            first = train(Path(name, f"{kind}-first"), kind, epochs, 1)
            compare(f"{kind}, again", first, train(Path(name, f"{kind}-again"), kind, epochs, 1))
            values[kind] = compare(
                f"{kind}, half the batch, twice accumulated", first, train(Path(name, f"{kind}-split"), kind, epochs, 2)
            )
        metrics = json.loads(Path(name, f"{kind}-first/out/metrics.json").read_text(encoding="utf-8"))
    print(
        f"{metrics['steps']} steps; greatest difference of a logged loss in nats a token; of the adapter, relative, in "
        "the Euclidean norm"
    )
    print(json.dumps(values | {"steps": metrics["steps"]}))


if __name__ == "__main__":
    main()
