"""What Mixtral-8x7B's true shape asks of a card, counted without one: kernels, synchronisations, bytes, roofline.

    python benchmarks/card_counts.py                   # of this code
    python benchmarks/card_counts.py --before COMMIT   # of the code of a commit, to stand beside it

Each case runs the project's own code on fake tensors (tests/stand_ins/fake_cuda), in a minute or two on a CPU. The
roofline is that of an H100: a limit by counting, and no measurement. Writes the record card_counts.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from records import RESULTS, write_record

ROOT = Path(__file__).parent.parent
PACKED = '{"packing": true, "packing_length": %d}'
CASES = {
    "train 2 x 1,024": ["train", "--rows", "2"],
    "train 8 x 1,024": ["train", "--rows", "8"],
    "train packed 8,192": ["train", "--rows", "1", "--sft", PACKED % 8192],
    "train packed 16,384": ["train", "--rows", "1", "--sft", PACKED % 16384],
    "train 2 x 1,024, fp16": ["train", "--rows", "2", "--compute-dtype", "float16"],
    "decode 1": ["replies", "--rows", "1", "--length", "512"],
    "decode 16": ["replies", "--rows", "16", "--length", "512"],
    "decode 17": ["replies", "--rows", "17", "--length", "512"],
    "questions, 16,384 on 3,000": ["questions", "--length", "16384"],
}
KEPT = (
    "kernels", "synchronisations", "tera_operations", "gigabytes", "dequantized_gigabytes", "filled_gigabytes",
    "roofline_ms", "tokens", "peak_gib", "planned_gib",
)  # fmt: skip


def count(case: str, code: Path, layers: int) -> dict[str, float]:
    """The counts of one case with the package of the folder `code`."""
    paths = os.pathsep.join([str(code), str(ROOT / "tests")])
    command = [sys.executable, "-W", "ignore", "-m", "stand_ins.fake_cuda.cases", *CASES[case]]
    done = subprocess.run(
        [*command, "--layers", str(layers)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    kept = {name: found[name] for name in KEPT}
    return kept | {"tokens_per_second": round(found["tokens"] / found["roofline_ms"] * 1e3)}


@click.command(help=__doc__)
@click.option("--before", metavar="COMMIT", help="Count the code of this commit, as the figures before.")
@click.option("--layers", default=32, show_default=True, help="Layers of the model; no record with fewer.")
@click.option("--only", default="", help="Cases that begin so; no record.")
def main(before: str | None, layers: int, only: str) -> None:
    place = RESULTS / "card_counts.json"
    values = json.loads(place.read_text())["values"] if place.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        code = ROOT
        if before:
            code = Path(name) / "code"
            git = ["git", "-C", str(ROOT), "worktree"]
            subprocess.run([*git, "add", "--quiet", "--detach", str(code), before], check=True)
        try:
            found = {}
            for case in CASES:
                if case.startswith(only):
                    found[case] = count(case, code, layers)
                    print(case, found[case], flush=True)
        finally:
            if before:
                subprocess.run([*git, "remove", "--force", str(code)], check=True)
    if layers == 32 and not only:
        write_record("card_counts", values | {"before" if before else "after": found}, load=0.0)


if __name__ == "__main__":
    main()
