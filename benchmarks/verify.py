"""`aurora verify` beside md5sum, over the same files in the same run.

    python benchmarks/verify.py [--gib 10] [--rounds 3]

Makes a project of DVC's with one output folder of random files, hard-linked to the cache, and reads it by turns with
`md5sum`, one process a core, and with `aurora verify`. Prints seconds, GiB/s, and the ratio of both in each round; ends
non-zero where the median ratio is below 0.8 (verify must reach 0.8 of md5sum's speed).
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

MEASURES = ("aurora/commands/verify.py", "aurora/pipeline/integrity.py")

BIN = Path(sys.executable).parent
DVC_YAML = "stages:\n  make: {cmd: 'true', outs: [data]}\n"
FILES = 40  # as the shards of a large model
LEAST = 0.8


def make(folder: Path, gib: float) -> None:
    """A project whose output holds so many GiB."""
    (folder / "data").mkdir()
    (folder / "dvc.yaml").write_text(DVC_YAML)
    size = int(gib * 2**30 / FILES)
    for number in range(FILES):
        with (folder / f"data/{number:02}.bin").open("wb") as file:
            for start in range(0, size, 2**24):
                file.write(os.urandom(min(2**24, size - start)))
    for command in (
        "init --quiet --no-scm",
        "config cache.type hardlink",
        "commit --quiet --force",
        "checkout --quiet --relink",
    ):
        subprocess.run([BIN / "dvc", *command.split()], cwd=folder, check=True)


def seconds(folder: Path, command: str) -> float:
    """How long a shell command takes."""
    started = time.perf_counter()
    subprocess.run(["bash", "-c", command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


@click.command()
@click.option("--gib", default=10.0, show_default=True)
@click.option("--rounds", default=3, show_default=True)
def main(gib: float, rounds: int) -> None:
    """Measure by turns."""
    cores = len(os.sched_getaffinity(0))
    ratios = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        make(folder, gib)
        print(f"{'round':<7}{'md5sum s':>10}{'GiB/s':>8}{'verify s':>10}{'GiB/s':>8}{'ratio':>8}", flush=True)
        for number in range(1, rounds + 1):
            plain = seconds(folder, f"find data -type f -print0 | xargs -0 -n 1 -P {cores} md5sum")
            ours = seconds(folder, f"{BIN}/aurora verify")
            ratios.append(plain / ours)
            print(
                f"{number:<7}{plain:>10.1f}{gib / plain:>8.2f}{ours:>10.1f}{gib / ours:>8.2f}{ratios[-1]:>8.2f}",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.2f}, at least {LEAST}")
    print(json.dumps({"gib": gib, "rounds": rounds, "median_ratio": round(statistics.median(ratios), 2)}))
    sys.exit(statistics.median(ratios) < LEAST)


if __name__ == "__main__":
    main()
