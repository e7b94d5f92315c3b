"""What Mixtral-8x7B's true shape asks of a card, counted without one: kernels, synchronisations, bytes, roofline.

    python benchmarks/card_counts.py                   # of this code; the figures before are kept from the record
    python benchmarks/card_counts.py --before COMMIT   # of a commit, by its own counter, and of this code

Each case runs the project's own code on fake tensors (tests/stand_ins/fake_cuda) with two and with three layers. The
roofline is that of an H100: a limit by counting, and no measurement. Writes the record card_counts.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from records import RECORDS, ROOT, busy, write_record

MEASURES = ("aurora/model", "aurora/sft", "aurora/eval")

EXPERT_LORA = {
    "target_modules": ["q_proj", "v_proj"], "target_parameters": ["gate_up_proj", "down_proj"], "lora_dropout": 0.0
}  # fmt: skip
CASES = {
    "train 2 x 1,024": {"what": "train", "rows": 2},
    "train 8 x 1,024": {"what": "train", "rows": 8},
    "train packed 8,192": {"what": "train", "rows": 1, "sft": {"packing": True, "packing_length": 8192}},
    "train packed 16,384": {"what": "train", "rows": 1, "sft": {"packing": True, "packing_length": 16384}},
    "train 2 x 1,024, fp16": {"what": "train", "rows": 2, "compute_dtype": "float16"},
    "train 2 x 1,024, LoRA on experts": {"what": "train", "rows": 2, "sft": {"lora": EXPERT_LORA}},
    "decode 1": {"what": "replies", "rows": 1, "length": 512},
    "decode 16": {"what": "replies", "rows": 16, "length": 512},
    "decode 17": {"what": "replies", "rows": 17, "length": 512},
    "questions, 16,384 on 3,000": {"what": "questions", "length": 16384},
}
LAYERS = 32
SEEN = (2, 3)  # layers that are run; every layer is alike, so that what one more adds gives the whole
KEPT = (
    "kernels", "synchronisations", "tera_operations", "gigabytes", "dequantized_gigabytes", "filled_gigabytes",
    "roofline_ms", "peak_gib", "planned_gib",
)  # fmt: skip


def count(case: str, code: Path) -> dict[str, float]:
    """The counts of a case at LAYERS layers with the package of the folder `code`."""
    asked = [json.dumps(CASES[case] | {"layers": layers}) for layers in SEEN]
    paths = os.pathsep.join([str(code), str(code / "tests")])
    command = [sys.executable, "-W", "ignore", "-m", "stand_ins.fake_cuda.cases", *asked]
    done = subprocess.run(
        command, cwd=code, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    few, more = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    return whole(few, more)


def whole(few: dict, more: dict) -> dict[str, float]:
    """The counts of all layers from those of two small models."""
    found = {"tokens": few["tokens"]}
    for name in KEPT:
        each = (more[name] - few[name]) / (SEEN[1] - SEEN[0])
        found[name] = round(few[name] + (LAYERS - SEEN[0]) * each, 2)
    return found | {"tokens_per_second": round(found["tokens"] / found["roofline_ms"] * 1e3)}


def table(values: dict[str, dict]) -> list[str]:
    """Before and after, side by side."""
    columns = (
        "kernels",
        "synchronisations",
        "dequantized_gigabytes",
        "filled_gigabytes",
        "tokens_per_second",
        "peak_gib",
    )
    lines = ["tokens/s: an H100's roofline".ljust(36) + "".join(f"{name[:20]:>22}" for name in columns)]
    for case in CASES:
        for column in ("before", "after"):
            if counts := values[column].get(case):
                cells = "".join(
                    f"{counts[name]:>22,.{1 if 'giga' in name or 'gib' in name else 0}f}" for name in columns
                )
                lines.append(f"{case + ', ' + column:<36}{cells}")
    return lines


def counts_of(commit: str | None, cases: list[str]) -> dict[str, dict[str, float]]:
    """The counts of cases at a commit, or of the code as it stands."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        code = Path(name) / "code" if commit else ROOT
        git = ["git", "-C", str(ROOT), "worktree"]
        if commit:
            subprocess.run([*git, "add", "--quiet", "--detach", str(code), commit], check=True)
        try:
            for case in cases:
                found[case] = count(case, code)
                print(f"{case:<28}", *(f"{name} {value:,}" for name, value in found[case].items()), flush=True)
        finally:
            if commit:
                subprocess.run([*git, "remove", "--force", str(code)], check=True)
    return found


@click.command(help=__doc__)
@click.option("--before", metavar="COMMIT", help="Count the code of this commit too, as the figures before.")
@click.option("--only", help="Print the counts of the cases that begin so; no record is written.")
def main(before: str | None, only: str | None) -> None:
    start = busy()
    if only is not None:
        counts_of(before, [case for case in CASES if case == only] or [case for case in CASES if case.startswith(only)])
        return
    kept = json.loads((ROOT / RECORDS / "card_counts.json").read_text(encoding="utf-8"))["values"]
    values = {"before_commit": kept["before_commit"], "before": kept["before"]}
    if before:
        revision = subprocess.check_output(["git", "-C", str(ROOT), "rev-parse", before], text=True).strip()
        values = {"before_commit": revision, "before": counts_of(revision, list(CASES))}
    values["after"] = counts_of(None, list(CASES))
    wall, cores, own = (after - begun for begun, after in zip(start, busy(), strict=True))
    load = round(max(0.0, cores - own) / wall, 1)
    lines = [f"before: the code of commit {values['before_commit'][:12]}", *table(values)]
    command = " ".join(["python benchmarks/card_counts.py", *(["--before", before] if before else [])])
    write_record("card_counts", Path(__file__), command, values, lines, load)


if __name__ == "__main__":
    main()
