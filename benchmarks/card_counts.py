"""What Mixtral-8x7B's true shape asks of a card, counted without one: kernels, synchronisations, bytes, roofline.

    python benchmarks/card_counts.py                   # of this code
    python benchmarks/card_counts.py --before COMMIT   # of the code of a commit, to stand beside it

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

CASES = {
    "train 2 x 1,024": {"what": "train", "rows": 2},
    "train 8 x 1,024": {"what": "train", "rows": 8},
    "train packed 8,192": {"what": "train", "rows": 1, "sft": {"packing": True, "packing_length": 8192}},
    "train packed 16,384": {"what": "train", "rows": 1, "sft": {"packing": True, "packing_length": 16384}},
    "train 2 x 1,024, fp16": {"what": "train", "rows": 2, "compute_dtype": "float16"},
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
    paths = os.pathsep.join([str(code), str(ROOT / "tests")])
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
            if counts := values.get(column, {}).get(case):
                cells = "".join(
                    f"{counts[name]:>22,.{1 if 'giga' in name or 'gib' in name else 0}f}" for name in columns
                )
                lines.append(f"{case + ', ' + column:<36}{cells}")
    return lines


@click.command(help=__doc__)
@click.option("--before", metavar="COMMIT", help="Count the code of this commit, as the figures before.")
@click.option("--only", default="", help="Cases that begin so.")
def main(before: str | None, only: str) -> None:
    start = busy()
    place = ROOT / RECORDS / "card_counts.json"
    values = json.loads(place.read_text())["values"] if place.is_file() else {}
    cases = [case for case in CASES if case == only or (only not in CASES and case.startswith(only))]
    with tempfile.TemporaryDirectory() as name:
        code = Path(name) / "code" if before else ROOT
        git = ["git", "-C", str(ROOT), "worktree"]
        if before:
            subprocess.run([*git, "add", "--quiet", "--detach", str(code), before], check=True)
        try:
            found = {}
            for case in cases:
                found[case] = count(case, code)
                print(f"{case:<28}", *(f"{name} {value:,}" for name, value in found[case].items()), flush=True)
        finally:
            if before:
                subprocess.run([*git, "remove", "--force", str(code)], check=True)
    column = "before" if before else "after"
    values |= {column: values.get(column, {}) | found}
    wall, cores, own = (after - begun for begun, after in zip(start, busy(), strict=True))
    load = round(max(0.0, cores - own) / wall, 1)
    write_record("card_counts", Path(__file__), "python benchmarks/card_counts.py", values, table(values), load)


if __name__ == "__main__":
    main()
