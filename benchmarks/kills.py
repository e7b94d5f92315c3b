"""Kills of dvc, of a stage, or of both at random moments of the small profile, and what `dvc repro` makes of it.

    python benchmarks/kills.py [--kills 30] [--seed 0]

In a clone of HEAD `dvc repro` runs from empty, is killed (SIGKILL), started again, and so on. Each kill has a stage drawn
for it, and comes at a random moment of the time that this stage takes, or of a later one where it is done; kills are in
the order of the stages, so that every start goes on from the last. At the end it runs whole.
Looked for are processes that outlive a killed dvc, starts that a leftover lock refuses, and a dvc.lock, metrics or report
that differ from those of the commit. It ends non-zero where one is found.
"""

import random
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
SECONDS = {
    "fetch": 45,
    "clean": 3,
    "format": 3,
    "sft": 60,
    "merge": 8,
    "eval": 20,
    "report": 3,
}  # about, on 2 cores
STAGES = tuple(SECONDS)
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

    def stage(self, dvc: psutil.Popen) -> str | None:
        """The module of stages that runs now."""
        try:
            children = dvc.children(recursive=True)
        except psutil.Error:
            return None
        found = [words for child in children if (words := words_of(child))[1:2] == ["-m"]]
        names = [words[2].removeprefix("stages.") for words in found if words[2:]]
        return next((name for name in names if name in STAGES), None)

    def reach(self, dvc: psutil.Popen, wanted: str) -> None:
        """Waits until this stage or a later one runs, or dvc has ended."""
        later = STAGES[STAGES.index(wanted) :]
        while dvc.poll() is None and self.stage(dvc) not in later:
            time.sleep(0.02)

    def kill(self, dvc: psutil.Popen, target: str) -> str:
        """Kills what `target` names, waits for the rest to end, and returns the stage that was running."""
        stage, children = self.stage(dvc) or "dvc itself", dvc.children(recursive=True)
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


def finish(run: Run) -> str:
    """Runs to the end; what is wrong, or nothing."""
    if status := run.start().wait():
        return f"dvc repro ended with status {status}: {run.log()[-1500:]}"
    return changed(run.folder)


def torture(run: Run, kills: int, draw: random.Random) -> list[str]:
    """Kills so many times, finishes, and returns what was wrong; a line for each kill goes to stdout."""
    faults = []
    for number, drawn in enumerate(sorted(draw.choices(STAGES, k=kills), key=STAGES.index), 1):
        wanted = drawn
        while True:
            target, moment = draw.choice(TARGETS), draw.uniform(0, SECONDS[wanted])
            dvc = run.start()
            run.reach(dvc, wanted)
            try:
                status = dvc.wait(moment)
            except psutil.TimeoutExpired:
                break
            if status:
                return [*faults, f"before kill {number}: status {status}: {run.log()[-1500:]}"]
            if difference := changed(run.folder):
                faults.append(f"before kill {number}: {difference}")
            (run.folder / "REPORT.md").unlink()  # so that there is something to kill again
            wanted = "report"
        stage = run.kill(dvc, target)
        left = wait_until_alone(run)
        faults += [f"kill {number}: {' '.join(words_of(process))} outlived {target}" for process in left]
        for process in left:
            process.kill()
        print(f"{number:<6}{target:<8}{wanted:<8}{moment:>8.1f}  {stage:<12}{len(left)} left", flush=True)
    if fault := finish(run):
        faults.append(f"at the end: {fault}")
    return faults


@click.command()
@click.option("--kills", default=30, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(kills: int, seed: int) -> None:
    """Kill, run again, compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = cloned(Path(name).resolve() / "clone")
        (folder / "dvc.lock").unlink()
        print(f"{'kill':<6}{'of':<8}{'behind':<8}{'by s':>8}  {'stage':<12}processes left")
        faults = torture(Run(folder), kills, random.Random(seed))
    for fault in faults:
        print(fault)
    print(
        f"{kills} kills: {len(faults)} faults; dvc.lock, metrics/ and REPORT.md are {'NOT ' * bool(faults)}those of the commit"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
