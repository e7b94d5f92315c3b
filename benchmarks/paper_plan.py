"""What `aurora plan` says of the paper's run on one card of 80 GB: memory and disk by arithmetic.

    python benchmarks/paper_plan.py

Runs in a clone of HEAD, so that outputs of this working tree do not count as done.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline import AURORA, cloned, surroundings

MEASURES = ("aurora/commands/plan.py", "aurora/sft/footprint.py", "aurora/sft/plan.py", "profiles/paper.yaml")


def main() -> None:
    """Print and record GiB in training, inference and on disk."""
    with tempfile.TemporaryDirectory() as name:
        folder = cloned(Path(name) / "clone")
        shutil.copy(folder / "profiles/paper.yaml", folder / "params.yaml")
        environment = surroundings(folder) | {"PYTHONPATH": str(folder)}
        command = [AURORA, "plan", "--json", "--memory-gib", "80"]
        # Its status is 1 where this machine's disk is too small for the run.
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not done.stdout:
        sys.exit(done.stderr)
    plan = json.loads(done.stdout)
    sizes = {f"{part}_gib": round(sum(plan[part].values()) / 2**30, 2) for part in ("training", "inference", "disk")}
    for part, size in sizes.items():
        print(f"{part:<16}{size:>8.2f}")
    print(json.dumps(sizes))


if __name__ == "__main__":
    main()
