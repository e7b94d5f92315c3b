"""A profile as a user meets it, in a fresh clone of HEAD: from empty, again, after an edit, and under load.

    python benchmarks/pipeline.py [--profile profiles/smol.yaml] [--learning-rate 2e-3] [--busy 4] [--keep FOLDER]

Runs `dvc repro` with this environment and prints seconds, their share of the first run, the peak memory of all its
processes together (PSS, sampled), and the stages that ran; then the disk that environment and clone take, and the scores
of both models. `--busy` runs it from empty once more beside processes that compute all the time. It ends non-zero if a
run fails, or if the run under load takes more than three times the first or gives other bytes. Of the small profile it
says whether dvc.lock, metrics and report are still those of the commit.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psutil

MEASURES = (
    "stages", "aurora/adapter", "aurora/benchmarks", "aurora/checkpoints", "aurora/clean", "aurora/core", "aurora/eval",
    "aurora/fetch", "aurora/format", "aurora/intake", "aurora/launch", "aurora/lora", "aurora/merge", "aurora/model",
    "aurora/prompt", "aurora/report", "aurora/sft", "aurora/small_base", "aurora/sources",
)  # fmt: skip

ROOT = Path(__file__).resolve().parent.parent
DVC = Path(sys.executable).with_name("dvc")
AURORA = Path(sys.executable).with_name("aurora")
MOST = 3  # times the idle run, under load
RATE = r"(?m)^  learning_rate: \S+$"


def tree_bytes(process: psutil.Process) -> int:
    """Proportional set size of a process and all that it has started, in bytes."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total


def surroundings(folder: Path) -> dict[str, str]:
    """The environment of a command in a clone: this one's commands, and nothing of the caller's."""
    return {"PATH": f"{DVC.parent}:/usr/bin:/bin", "HOME": str(folder.parent), "HF_HUB_OFFLINE": "1"}


def cloned(folder: Path) -> Path:
    """A clone of HEAD in the new folder `folder`."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def changed(folder: Path) -> str:
    """What git sees as changed: nothing if dvc.lock, metrics and report are those of the commit."""
    command = ["git", "status", "--porcelain"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def repro(folder: Path) -> tuple[float, int, list[str]]:
    """Seconds, peak bytes and the stages that ran."""
    log = folder.with_name("log.txt")
    started, peak = time.perf_counter(), 0
    with log.open("w") as output:
        running = psutil.Popen([DVC, "repro"], cwd=folder, env=surroundings(folder), stdout=output, stderr=output)
        while running.poll() is None:
            try:
                peak = max(peak, tree_bytes(running))
            except psutil.Error:
                break
            time.sleep(0.5)
        status = running.wait()
    seconds, text = time.perf_counter() - started, log.read_text(errors="replace")
    if status:
        sys.exit(f"{text[-2000:]}\ndvc repro ended with status {status}")
    return seconds, peak, re.findall(r"Running stage '([^']+)'", text)


def disk_bytes(folder: Path) -> int:
    """Bytes on the disk below `folder`, each file once however many hard links it has."""
    return 1024 * int(subprocess.check_output(["du", "-sk", folder], text=True).split()[0])


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def under_load(count: int, idle: float, difference: str) -> dict[str, float]:
    """From empty beside `count` busy processes: minutes, and times the `idle` seconds; exits where it gives other bytes."""
    with tempfile.TemporaryDirectory() as name, busy(count):
        folder = cloned(Path(name) / "clone")
        seconds, peak, stages = repro(folder)
        other = changed(folder) != difference
    title = f"beside {count} busy processes"
    print(f"{title:<28}{seconds:>9.1f}{seconds / idle:>13.3f}x{peak / 2**30:>10.2f}  all {len(stages)}")
    if other:
        sys.exit("under load dvc.lock, metrics or REPORT.md are not what they are without")
    return {"busy_processes": count, "busy_minutes": round(seconds / 60, 1), "busy_times": round(seconds / idle, 2)}


@click.command()
@click.option("--profile", default=None, type=click.Path(exists=True), help="Takes the place of params.yaml.")
@click.option("--learning-rate", default=None, help="Of an edit before a third run.")
@click.option("--busy", "count", default=0, show_default=True, help="Busy processes beside a last run.")
@click.option("--keep", type=click.Path(path_type=Path), help="New folder for the clone, which then stays.")
def main(profile: str | None, learning_rate: str | None, count: int, keep: Path | None) -> None:
    """Run a profile in a fresh clone: twice, after an edit, and under load."""
    measured, difference = {}, ""
    with tempfile.TemporaryDirectory() as name:
        folder = cloned((keep or Path(name) / "clone").resolve())
        params = folder / "params.yaml"
        if profile:
            params.write_text(Path(profile).read_text())
        print(f"{'dvc repro':<28}{'seconds':>9}{'of the first':>14}{'peak GiB':>10}  stages that ran")
        first = None
        edited = [f"learning_rate {learning_rate}"] if learning_rate else []
        for title in ("from empty", "again", *edited):
            if title in edited:
                params.write_text(re.sub(RATE, f"  learning_rate: {learning_rate}", params.read_text()))
            seconds, peak, stages = repro(folder)
            first = first or seconds
            ran = f"all {len(stages)}" if title == "from empty" else ", ".join(stages) or "none"
            print(f"{title:<28}{seconds:>9.1f}{seconds / first:>13.3f}x{peak / 2**30:>10.2f}  {ran}", flush=True)
            if title == "from empty":
                difference = changed(folder)
                measured = {"minutes": round(seconds / 60, 1), "peak_gib": round(peak / 2**30, 1)}
            elif title == "again":
                measured["again_seconds"] = round(seconds, 1)
        measured |= {"base_parameters": parameters(folder)}
        for model in ("base", "tuned"):
            measured[model] = json.loads((folder / f"metrics/{model}.json").read_text())
        measured["disk_gb"] = round((disk_bytes(folder) + disk_bytes(Path(sys.prefix))) / 1e9, 1)
        if not profile:
            kept = f"changed:\n{difference}" if difference else "as committed, byte for byte"
            print(f"dvc.lock, metrics/ and REPORT.md after the first run: {kept}")
    if count and first:
        measured |= under_load(count, first, difference)
    print(json.dumps(measured))
    sys.exit(measured.get("busy_times", 0) > MOST)


def parameters(folder: Path) -> int:
    """Parameters of the base in the clone."""
    shapes = [AURORA, "inspect", "data/raw/model/base", "--json"]
    found = subprocess.run(shapes, cwd=folder, env=surroundings(folder), capture_output=True, text=True, check=True)
    return json.loads(found.stdout)["total"]["parameters"]


if __name__ == "__main__":
    main()
