"""Records of what benchmark scripts measure: benchmarks/results/NAME.json, from which the docs take their figures."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("dvc", "torch", "transformers")


def write_record(name: str, values: dict[str, object], load: float) -> None:
    """Writes values that this command measured, with commit, machine, versions, and the load beside the measurement.

    `load` is the mean number of other busy processes (os.getloadavg() before the start).
    """
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    ).stdout.strip()
    record = {
        "command": " ".join(["python", os.path.relpath(sys.argv[0], RESULTS.parent.parent), *sys.argv[1:]]),
        "commit": commit,
        "load": round(load, 1),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "values": values,
        "versions": {"python": platform.python_version()}
        | {item: version(item) for item in LIBRARIES if find_spec(item)},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
