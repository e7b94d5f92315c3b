"""Kills of dvc, of a stage, or of both at random moments of the small profile or of a merge, and what comes of it.

    python benchmarks/kills.py [--kills 100] [--merges 20] [--seed 0]

In a clone of HEAD `dvc repro` runs whole, and its dvc.lock, metrics and report are committed there. Two branches run different
stages, and `aurora merge && dvc repro` of one into the other is killed (SIGKILL) at a random moment and begun again.
Then `dvc repro` runs from empty, is killed, started again, and so on. Each kill has a stage drawn for it, and comes at a
random moment of the time that this stage takes, or of a later one where it is done; kills are in the order of the stages, so
that every start goes on from the last. At the end it runs whole.
Looked for are processes that outlive a killed dvc, starts that a leftover lock refuses, a dvc.lock, metrics or report that
differ from those of a run or of a merge that nobody killed, and a training that begins anew where a checkpoint was, or runs
in a merge at all. It ends non-zero where one is found.
"""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
import psutil
from pipeline import DVC, MEASURES, changed, cloned, surroundings  # noqa: F401 (records.py reads MEASURES)

TARGETS = ("dvc", "stage", "both")
SECONDS = {"fetch": 45, "clean": 3, "format": 3, "sft": 60, "merge": 8, "eval": 20, "report": 3}  # about, on 2 cores
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
        log = self.folder.with_name("log.txt")
        return log.read_text(errors="replace") if log.is_file() else ""

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


def trained_again(run: Run, told: int, checkpoint: bool) -> list[str]:
    """A line if the log, from its character `told` on, has a training from the first step although a checkpoint was there."""
    since = run.log()[told:]
    again = checkpoint and "tokens/s" in since and "going on from" not in since
    return ["sft began anew though a checkpoint was there"] if again else []


def empty(folder: Path) -> None:
    """Leaves nothing of what has run but what git has, without dvc.lock."""
    said(folder, "git", "switch", "--quiet", "--force", "start")
    for left in ("data", "models", ".aurora", ".dvc/cache", ".dvc/tmp", "dvc.lock"):
        path = folder / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def finish(run: Run) -> str:
    """Runs to the end; what is wrong, or nothing."""
    if status := run.start().wait():
        return f"dvc repro ended with status {status}: {run.log()[-1500:]}"
    return changed(run.folder)


def torture(run: Run, kills: int, draw: random.Random) -> list[str]:
    """Kills so many times, finishes, and returns what was wrong; a line for each kill goes to stdout."""
    faults, told, checkpoint = [], 0, False
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
        faults += [f"kill {number}: {line}" for line in trained_again(run, told, checkpoint)]
        told, checkpoint = len(run.log()), any(run.folder.glob(".aurora/sft/*/checkpoints/checkpoint-*"))
        faults += [f"kill {number}: {' '.join(words_of(process))} outlived {target}" for process in left]
        for process in left:
            process.kill()
        print(f"{number:<6}{target:<8}{wanted:<8}{moment:>8.1f}  {stage:<12}{len(left)} left", flush=True)
    if fault := finish(run):
        faults.append(f"at the end: {fault}")
    return [*faults, *trained_again(run, told, checkpoint)]


def said(folder: Path, *command: str, check: bool = True) -> str:
    """What a command prints in a clone."""
    environment = surroundings(folder) | {"PYTHONPATH": str(folder)}
    for role in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{role}_NAME": "Kills", f"GIT_{role}_EMAIL": "kills@example.org"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if check and done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
    return done.stdout


def branch(folder: Path, name: str, key: str, value: str) -> None:
    """A branch off the commit that has run with another value of a key of params.yaml."""
    said(folder, "git", "switch", "--quiet", "--create", name, "start")
    said(folder, str(DVC), "checkout", "--force")
    params = folder / "params.yaml"
    params.write_text(re.sub(rf"(?m)^( +){key}: \S+$", rf"\g<1>{key}: {value}", params.read_text()))
    said(folder, str(DVC), "repro")
    said(folder, "git", "commit", "--all", "--quiet", f"--message={name}")


def begin_merge(folder: Path, runs: Path) -> None:
    """The state in which git stops, with the run cache as it was before any merge."""
    said(folder, "git", "reset", "--hard", "--quiet", "loss")
    said(folder, str(DVC), "checkout", "--force")
    shutil.rmtree(folder / ".dvc/cache/runs")
    shutil.copytree(runs, folder / ".dvc/cache/runs")
    said(folder, "git", "merge", "rate", check=False)


def torture_merge(folder: Path, kills: int, draw: random.Random) -> list[str]:
    """Kills so many merges, finishes each, and returns what was wrong."""
    branch(folder, "rate", "learning_rate", "2e-3")
    branch(folder, "loss", "loss_rows", "16")
    runs = folder.with_name("runs")
    shutil.copytree(folder / ".dvc/cache/runs", runs)
    merge = f"{DVC.with_name('aurora')} merge; {DVC} repro"
    begin_merge(folder, runs)
    began = time.monotonic()
    said(folder, "sh", "-c", merge)
    seconds, whole = time.monotonic() - began, said(folder, "git", "diff", "loss")
    faults = []
    for number in range(1, kills + 1):
        begin_merge(folder, runs)
        run = Run(folder, ("sh", "-c", merge))
        moment, told, process = draw.uniform(0, seconds), len(run.log()), run.start()
        try:
            process.wait(moment)
        except psutil.TimeoutExpired:
            run.kill(process, "both")
        faults += [f"merge {number}: {' '.join(words_of(left))} outlived" for left in wait_until_alone(run)]
        if run.start().wait():
            faults.append(f"merge {number}: {run.log()[told:][-1500:]}")
        if said(folder, "git", "diff", "loss") != whole:
            faults.append(f"merge {number}: not what a merge that nobody killed gives")
        if "Running stage 'sft'" in run.log()[told:]:
            faults.append(f"merge {number}: trained again")
        print(f"merge {number:<6}killed after {moment:>5.1f} s of {seconds:.1f}", flush=True)
    return faults


@click.command()
@click.option("--kills", default=100, show_default=True)
@click.option("--merges", default=20, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(kills: int, merges: int, seed: int) -> None:
    """Kill, run again, compare."""
    faults, draw = [], random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = cloned(Path(name).resolve() / "clone")
        said(folder, "git", "switch", "--quiet", "--create", "start")
        said(folder, str(DVC), "repro")
        said(folder, "git", "commit", "--all", "--quiet", "--allow-empty", "--message=not killed")
        if merges:
            faults += torture_merge(folder, merges, draw)
        if kills:
            empty(folder)
            print(f"{'kill':<6}{'of':<8}{'behind':<8}{'by s':>8}  {'stage':<12}processes left")
            faults += torture(Run(folder), kills, draw)
    for fault in faults:
        print(fault)
    print(
        f"{kills} kills, {merges} killed merges: {len(faults)} faults; dvc.lock, metrics/ and REPORT.md are"
        f" {'NOT ' * bool(faults)}what they are without a kill"
    )
    print(json.dumps({"kills": kills, "merges": merges, "seed": seed, "faults": len(faults)}))
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
