"""The small profile as a user meets it, in a fresh clone of HEAD: from empty, again, after an edit, and under load.

    python benchmarks/pipeline.py [--learning-rate 2e-3] [--busy 4]

Runs `dvc repro` with this environment and prints seconds, their share of the first run, the peak memory of all its
processes together (PSS, sampled), and the stages that ran. Then it runs from empty once more beside busy processes.
It ends non-zero if a run fails, if the run under load takes more than three times the first, or gives other bytes, and
says whether dvc.lock, metrics and report are still those of the commit after the first run. Run it on an idle machine.
Writes the record small_profile.
"""

import json
import os
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
from records import write_record

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
        running = psutil.Popen(
            [DVC, "repro"], cwd=folder, env=surroundings(folder), stdout=output, stderr=output
        )
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
    return {
        "busy_processes": count,
        "busy_minutes": round(seconds / 60, 1),
        "busy_times": round(seconds / idle, 2),
    }


@click.command()
@click.option("--learning-rate", default="2e-3", show_default=True, help="Of the edit before the third run.")
@click.option(
    "--busy",
    "count",
    default=4,
    show_default=True,
    help="Busy processes beside the last run; 0: no such run.",
)
def main(learning_rate: str, count: int) -> None:
    """Run the small profile three times in a fresh clone, and once under load in another."""
    load, measured = os.getloadavg()[0], {}
    with tempfile.TemporaryDirectory() as name:
        folder = cloned(Path(name) / "clone")
        print(f"{'dvc repro':<28}{'seconds':>9}{'of the first':>14}{'peak GiB':>10}  stages that ran")
        first = None
        for title in ("from empty", "again", f"learning_rate {learning_rate}"):
            if title.startswith("learning_rate"):
                params = folder / "params.yaml"
                params.write_text(re.sub(RATE, f"  learning_rate: {learning_rate}", params.read_text()))
            seconds, peak, stages = repro(folder)
            first = first or seconds
            ran = f"all {len(stages)}" if title == "from empty" else ", ".join(stages) or "none"
            print(
                f"{title:<28}{seconds:>9.1f}{seconds / first:>13.3f}x{peak / 2**30:>10.2f}  {ran}", flush=True
            )
            if title == "from empty":
                difference = changed(folder)
                shapes = [AURORA, "inspect", "data/raw/model/base", "--json"]
                found = subprocess.run(
                    shapes, cwd=folder, env=surroundings(folder), capture_output=True, text=True, check=True
                )
                measured = {
                    "minutes": round(seconds / 60, 1),
                    "peak_gib": round(peak / 2**30, 2),
                    "base_parameters": json.loads(found.stdout)["total"]["parameters"],
                }
            elif title == "again":
                measured["again_seconds"] = round(seconds, 1)
        kept = f"changed:\n{difference}" if difference else "as committed, byte for byte"
        print(f"dvc.lock, metrics/ and REPORT.md after the first run: {kept}")
    if count:
        measured |= under_load(count, first, difference)
    write_record("small_profile", measured, load)
    sys.exit(measured.get("busy_times", 0) > MOST)


if __name__ == "__main__":
    main()
