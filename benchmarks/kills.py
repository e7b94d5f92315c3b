"""Kills of dvc, of a stage, or of both at random moments of the small profile, and what `dvc repro` makes of it.

    python benchmarks/kills.py [--kills 30] [--seed 0] [--mean 40]

In a clone of HEAD `dvc repro` runs from empty and is killed (SIGKILL) after a random time (exponential, of `--mean`
seconds), then started again, and so on; a run that ends before its kill is held against the dvc.lock of the commit, and the next
one begins from empty. Looked for are processes that outlive a killed dvc, starts that a leftover lock refuses, and a
dvc.lock, metrics or report that differ. It ends non-zero where one is found.
"""

import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
from pipeline import DVC, changed, cloned, surroundings

TARGETS = ("dvc", "stage", "both")
MADE = ("data", "models", ".aurora", ".dvc/cache", ".dvc/tmp", "dvc.lock")
PATIENCE = 15  # seconds in which a stage has to follow its dvc


@dataclass(slots=True)
class Run:
    """`dvc repro` in a clone, as the leader of its own session."""

    folder: Path
    command: tuple[str, ...] = (str(DVC), "repro")

    def start(self) -> psutil.Popen:
        """Starts it, with its output added to log.txt beside the clone."""
        with self.folder.with_name("log.txt").open("a") as log:
            return psutil.Popen(
                self.command,
                cwd=self.folder,
                env=surroundings(self.folder),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        """All that it printed."""
        return self.folder.with_name("log.txt").read_text(errors="replace")

    def alive(self) -> list[psutil.Process]:
        """Processes that work in the clone."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == self.folder:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, dvc: psutil.Popen, target: str) -> str:
        """Kills what `target` names, waits for the rest to end, and returns the stage that was running."""
        children = dvc.children(recursive=True)
        stage = next(
            (words[2] for child in children if (words := words_of(child))[1:2] == ["-m"]), "dvc itself"
        )
        for process in {"dvc": [dvc], "stage": children, "both": [dvc, *children]}[target]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.Error:
                continue
        dvc.wait()
        return stage


def words_of(process: psutil.Process) -> list[str]:
    """A process's command line, or nothing if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_until_alone(run: Run) -> list[psutil.Process]:
    """What still works in the clone after a time in which it should have ended."""
    deadline = time.monotonic() + PATIENCE
    while (left := run.alive()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def empty(folder: Path) -> None:
    """Takes the clone back to before its first run, without its lock file."""
    for name in MADE:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def finish(run: Run) -> str:
    """Runs to the end; what is wrong, or nothing."""
    if status := run.start().wait():
        return f"dvc repro ended with status {status}: {run.log()[-1500:]}"
    return changed(run.folder)


def torture(run: Run, kills: int, mean: float, draw: random.Random) -> list[str]:
    """Kills so many times, finishes, and returns what was wrong; a line for each kill goes to stdout."""
    faults, done = [], 0
    while done < kills:
        dvc, target, moment = run.start(), draw.choice(TARGETS), draw.expovariate(1 / mean)
        try:
            status = dvc.wait(moment)
        except psutil.TimeoutExpired:
            stage = run.kill(dvc, target)
            done += 1
            left = wait_until_alone(run)
            faults += [f"kill {done}: {' '.join(words_of(process))} outlived {target}" for process in left]
            for process in left:
                process.kill()
            print(f"{done:<6}{target:<8}{moment:>8.1f}  {stage:<16}{len(left)} left", flush=True)
            continue
        if status:
            return [*faults, f"after kill {done}: status {status}: {run.log()[-1500:]}"]
        if difference := changed(run.folder):
            faults.append(f"after kill {done}: {difference}")
        print(
            f"      whole run ends in {'other bytes' if difference else 'the bytes of the commit'}",
            flush=True,
        )
        empty(run.folder)
    if fault := finish(run):
        faults.append(f"at the end: {fault}")
    return faults


@click.command()
@click.option("--kills", default=30, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--mean", default=40.0, show_default=True, help="Seconds until a kill.")
def main(kills: int, seed: int, mean: float) -> None:
    """Kill, run again, compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = cloned(Path(name).resolve() / "clone")
        (folder / "dvc.lock").unlink()
        print(f"{'kill':<6}{'of':<8}{'after s':>8}  {'stage':<16}processes left")
        faults = torture(Run(folder), kills, mean, random.Random(seed))
    for fault in faults:
        print(fault)
    print(
        f"{kills} kills: {len(faults)} faults; dvc.lock, metrics/ and REPORT.md are {'NOT ' * bool(faults)}those of the commit"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
