"""The claim: clean and format take memory that does not grow with the rows, and time that grows as they do; eval in two
processes gives the bytes of one.

    make repro && AURORA_REAL_DATA=FOLDER python benchmarks/scale.py [--rows 176678] [--times 1 --times 3 --times 10] [--folder FOLDER]

For each multiple of the rows it writes the sources of benchmarks/clean.py, runs both stages as DVC does, and samples
the memory of all their processes together (PSS, in which shared pages count once) and the disk below the folder that
the stage writes, twice a second. `slope` is the exponent of growth between the first multiple and each: 1 is a
straight line. Then eval of the small profile's tuned model runs in one process and in two, of one thread each.
"""

import json
import math
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import click
import mistral_common
import yaml
from clean import PAPER, write_benchmarks, write_sources
from pipeline import tree_bytes
from psutil import Process

MEASURES = ("aurora/clean", "aurora/format", "aurora/eval", "aurora/launch")

ROOT = Path(__file__).resolve().parent.parent
LAYOUT = {"alpaca_data_zh_51k": "alpaca", "alpaca_gpt4_data_zh": "alpaca", "sharegpt_70k": "sharegpt"}
STAGES = {
    "clean": ["--instructions", "instructions", "--benchmarks", "benchmark", "--out", "clean"],
    "format": ["--conversations", "clean/conversations.parquet", "--tokenizer", "tokenizer", "--out", "format"],
}
EVAL = shlex.split(
    "--model models/merged --benchmarks data/raw/benchmark --rows data/format/held_out.parquet"
    " --prompts samples/prompts.yaml --prompt-sources data/raw/prompts --own-tasks samples/tasks"
)


@click.command()
@click.option("--rows", default=sum(PAPER.values()), show_default=True)
@click.option("--times", default=(1, 3, 10), multiple=True, show_default=True, help="Multiples of the rows.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work, 20 GB at 10 times the rows.")
def main(rows: int, times: tuple[int, ...], folder: Path | None) -> None:
    found: dict[str, list[dict]] = {stage: [] for stage in STAGES}
    for each in times:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            written = prepare(Path(name), rows * each)
            for stage, arguments in STAGES.items():
                measured = {"rows": rows * each, "read_gb": written / 1e9, **run(stage, arguments, Path(name))}
                first = (found[stage] or [measured])[0]
                if each > times[0]:
                    grown = math.log(measured["rows"] / first["rows"])
                    measured["slope"] = math.log(measured["seconds"] / first["seconds"]) / grown
                found[stage].append(measured)
                told = ", ".join(f"{key} {value:,.2f}" for key, value in measured.items())
                print(f"{stage}: {told}", flush=True)
                written = Path(name, "clean/conversations.parquet").stat().st_size
    with tempfile.TemporaryDirectory(dir=folder) as name:
        found["eval"] = evaluated(Path(name))
    rounded = {
        stage: [{key: round(value, 3) for key, value in each.items()} for each in measured]
        for stage, measured in found.items()
    }
    print(json.dumps(rounded))


def prepare(folder: Path, rows: int) -> int:
    """Fetched sources, benchmarks, tokeniser and params.yaml in `folder`; bytes of the sources."""
    for kind in ("instructions", "benchmark"):
        (folder / kind).mkdir()
    sources = write_sources(folder / "instructions", rows)
    write_benchmarks(folder / "benchmark")
    for manifest in folder.glob("*/*/manifest.json"):
        content = json.loads(manifest.read_text()) | {"uri": "generated", "licence": "Apache-2.0"}
        for file in content["files"]:
            file["bytes"] = (manifest.parent / file["path"]).stat().st_size
        manifest.write_text(json.dumps(content))
    (folder / "tokenizer").mkdir()
    vocabulary = Path(mistral_common.__file__).parent / "data/tokenizer.model.v1"
    shutil.copy(vocabulary, folder / "tokenizer/tokenizer.model")
    params = yaml.safe_load((ROOT / "profiles/paper.yaml").read_text())
    entries = {name: ("instructions", LAYOUT[name]) for name in PAPER}
    entries |= {path.name: ("benchmark", path.name) for path in (folder / "benchmark").iterdir()}
    params["sources"] = {
        name: {"kind": kind, "uri": "generated", "format": layout, "licence": "Apache-2.0"}
        for name, (kind, layout) in entries.items()
    }
    params["downloads"] = {}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return sum((source / "rows.json").stat().st_size for source in sources.values())


def evaluated(folder: Path) -> list[dict]:
    """What eval of the tuned model takes in one process and in two; ends where their outputs differ in a byte."""
    for name in ("data", "models", "samples"):
        (folder / name).symlink_to(ROOT / name)
    params, found = yaml.safe_load((ROOT / "params.yaml").read_text()), []
    for processes in (1, 2):
        params["eval"] |= {"processes": processes, "threads": 1}
        (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        shutil.rmtree(folder / ".aurora", ignore_errors=True)  # what an earlier evaluation remembers
        found.append({"processes": processes, **run("eval", [*EVAL, "--out", f"scores/{processes}"], folder)})
        told = ", ".join(f"{key} {value:,.2f}" for key, value in found[-1].items())
        print(f"eval: {told}", flush=True)
    one, two = (
        {path.relative_to(scores): path.read_bytes() for path in scores.rglob("*") if path.is_file()}
        for scores in (folder / "scores/1", folder / "scores/2")
    )
    if unlike := sorted(str(path) for path in one.keys() | two.keys() if one.get(path) != two.get(path)):
        raise SystemExit(f"two processes wrote other bytes than one: {', '.join(unlike)}")
    return found


def run(stage: str, arguments: list[str], folder: Path) -> dict[str, float]:
    """Seconds, CPU seconds, peak GiB (PSS) and peak GB of disk of one stage."""
    disk_before, cpu_before, start = used_bytes(folder), cpu_seconds(), time.perf_counter()
    peak = disk = 0
    child = subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    process = Process(child.pid)
    while child.poll() is None:
        peak, disk = max(peak, tree_bytes(process)), max(disk, used_bytes(folder) - disk_before)
        time.sleep(0.5)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(f"{stage} ended with {child.returncode}")
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu_before,
        "peak_gib": peak / 2**30,
        "disk_gb": max(disk, used_bytes(folder) - disk_before) / 1e9,
    }


def cpu_seconds() -> float:
    """CPU seconds of all that has been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def used_bytes(folder: Path) -> int:
    """Bytes of the files below a folder, of which some may go while they are counted."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_blocks * 512
    return total


if __name__ == "__main__":
    main()
