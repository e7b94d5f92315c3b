"""Runs a benchmark script and keeps what it prints as benchmarks/results/NAME.json, from which the docs take figures.

    python benchmarks/records.py [--name NAME] SCRIPT [OPTION…]      # e.g. records.py loading --tiny

A record holds the command, the commit, the machine, the versions, how many cores other work kept busy meanwhile (`load`),
the digest of each file that the script's MEASURES name, the printed lines, and the values of those that are JSON.
A script that ends non-zero leaves no record.
"""

import ast
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import click

from aurora.pipeline.records import RECORDS, code_digest

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("dvc", "torch", "transformers")
EDITED = ("aurora", "benchmarks/*.py", "stages", "params.yaml", "profiles")


def measured_files(script: Path) -> dict[str, str]:
    """Digest of the script and of each Python file below the paths of its MEASURES, by path from the root.

    MEASURES may be those of another script, by import.
    """
    tree = ast.parse(script.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(name.name == "MEASURES" for name in node.names):
            own = {script.relative_to(ROOT).as_posix(): code_digest(script)}
            return measured_files(script.with_name(f"{node.module}.py")) | own
    named = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MEASURES"
    ]
    if not named:
        raise click.ClickException(f"{script.relative_to(ROOT)}: no MEASURES; name the folders that it measures")
    places = [ROOT / place for place in named[0]]
    files = {path for place in places for path in ([place] if place.is_file() else place.rglob("*.py"))} | {script}
    return {path.relative_to(ROOT).as_posix(): code_digest(path) for path in sorted(files)}


def typed(name: str | None, script: Path, options: Sequence[str]) -> str:
    """The command of this process, without the path of real data on this machine."""
    data = ["AURORA_REAL_DATA=FOLDER"] if "AURORA_REAL_DATA" in script.read_text(encoding="utf-8") else []
    named = ["--name", name] if name else []
    return " ".join([*data, "python benchmarks/records.py", *named, script.stem, *options])


def busy() -> tuple[float, float, float]:
    """Clock, seconds in which the cores were busy, and those of this process's ended children."""
    import psutil  # absent where a card is lent

    times, own = psutil.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.monotonic(), times.user + times.nice + times.system, own.ru_utime + own.ru_stime


def write_record(
    name: str, script: Path, command: str, values: dict[str, object], printed: Sequence[str] = (), load: float = 0.0
) -> None:
    """Writes benchmarks/results/NAME.json of what a script measured in this checkout."""
    record = {
        "command": command,
        "commit": subprocess.check_output(["git", "-C", str(ROOT), "rev-parse", "HEAD"], text=True).strip(),
        "load": load,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {"python": platform.python_version()}
        | {item: version(item) for item in LIBRARIES if find_spec(item)},
        "values": values,
        "printed": list(printed),
        "files": measured_files(script),
    }
    target = ROOT / RECORDS / f"{name}.json"
    target.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{target.relative_to(ROOT)}: written", file=sys.stderr)


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--name", help="Name of the record, if not that of the script.")
@click.argument("script")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(name: str | None, script: str, options: tuple[str, ...]) -> None:
    """Run benchmarks/SCRIPT.py and write its record."""
    path = ROOT / "benchmarks" / f"{script}.py"
    measured_files(path)
    if subprocess.check_output(["git", "-C", str(ROOT), "status", "--porcelain", *EDITED], text=True):
        raise click.ClickException("uncommitted changes of code; commit them, so that the record can name its commit")
    start = busy()
    command = [sys.executable, str(path), *options]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    lines = []
    for line in run.stdout:
        print(line, end="", flush=True)
        lines.append(line.rstrip())
    if run.wait():
        sys.exit(f"{path.name} ended with status {run.returncode}; no record is written")
    wall, all_cores, own = (after - before for before, after in zip(start, busy(), strict=True))
    values = [line for line in lines if line.startswith("{")]
    merged = {key: value for line in values for key, value in json.loads(line).items()}
    printed = [line for line in lines if line not in values]
    load = round(max(0.0, all_cores - own) / wall, 1)
    write_record(name or script, path, typed(name, path, options), merged, printed, load)


if __name__ == "__main__":
    main()
