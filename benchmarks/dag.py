"""What DVC's bookkeeping costs: nothing to do, start-up of each stage, and a gigabyte to a remote and back.

    make repro && python benchmarks/dag.py [--size 1.0] [--repeat 5]

Runs in this working tree, whose stages must be up to date. Times are medians, and stand beside the same question to a
project of two stages. A stage's start-up is that of `--help`; the heaviest library that it imports by then is what
importing later could save. Push and pull of one file of random bytes stand beside cp for a folder, beside rclone's own copy
for an S3 server that it serves on loopback, and beside scp for an OpenSSH server (make environment; apt-get install
openssh-server).
"""

import getpass
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from stand_ins.remote_servers import S3, OpenSsh  # noqa: E402 (helpers of the tests, which are no package)

MEASURES = ("stages",)

BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
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
        print(f"{path.stem:<24}{spent:>9.2f}{bare:>12.2f}{spent / bare:>8.1f}  {heaviest(traced)}", flush=True)


def heaviest(traced: str) -> str:
    """The library outside this project and Python whose import took longest, of `-X importtime`'s lines."""
    rows = re.findall(r"import time:\s+\d+ \|\s+(\d+) \|\s+([\w.]+)", traced)
    own = {*sys.stdlib_module_names, "aurora", "stages"}
    found = [(int(spent), name) for spent, name in rows if name.split(".")[0] not in own and "." not in name]
    spent, name = max(found, default=(0, "none"))
    return f"{name} {spent / 1e6:.2f} s"


def transfers(size: int) -> None:
    """Push and pull of one file, beside the plain copy to the same place."""
    print(f"\n{'1 file of ' + format(size / 1e9, '.2g') + ' GB':<24}{'MB/s':>9}{'plain copy':>12}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        project, store = place / "project", place / "store"
        for folder in (project, store):
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
        for kind, plain in ((S3, rclone), (OpenSsh, scp)):
            try:
                server = kind(place / kind.__name__)
            except pytest.skip.Exception as missing:
                print(f"{kind.__name__}: not measured; {missing}")
                continue
            server.start()
            try:
                url, options = server.remote()
                secret_options, secrets = server.secrets()
                ENVIRONMENT.update(secrets)
                remote = kind.__name__.lower()
                run(project, "dvc", "remote", "add", remote, url)
                for option, value in (options | secret_options).items():
                    run(project, "dvc", "remote", "modify", "--local", remote, option, value)
                there, back = (seconds(place, command) for command in plain(server, secrets))
                compare(project, remote, size, there, back)
            finally:
                server.kill()


def rclone(server: S3, secrets: dict[str, str]) -> tuple[list[str], list[str]]:
    """rclone's own copy of the model to the server and back."""
    key, secret = secrets["AWS_ACCESS_KEY_ID"], secrets["AWS_SECRET_ACCESS_KEY"]
    endpoint = f"http://127.0.0.1:{server.port}"
    away = f":s3,provider=Rclone,endpoint='{endpoint}',access_key_id={key},secret_access_key={secret}:bucket/plain"
    return ["rclone", "copy", "project/model", away], ["rclone", "copy", away, "from_s3"]


def scp(server: OpenSsh, secrets: dict[str, str]) -> tuple[list[str], list[str]]:
    """scp of the model to the server and back."""
    command = ["scp", "-q", "-B", "-P", str(server.port), "-i", str(server.folder / "right")]
    for option in ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"):
        command += ["-o", option]
    away = f"{getpass.getuser()}@127.0.0.1:{server.objects}/plain"
    return [*command, "project/model", away], [*command, away, "from_ssh"]


def compare(project: Path, remote: str, size: int, there: float, back: float) -> None:
    """Two lines: push and pull, with an empty cache and working tree before the pull."""
    pushed = seconds(project, ["dvc", "push", "--quiet", "--remote", remote])
    for made in (".dvc/cache", ".dvc/tmp"):
        shutil.rmtree(project / made, ignore_errors=True)
    (project / "model").unlink()
    pulled = seconds(project, ["dvc", "pull", "--quiet", "--remote", remote])
    for name, ours, plain in ((f"push, {remote}", pushed, there), (f"pull, {remote}", pulled, back)):
        print(f"{name:<24}{size / ours / 1e6:>9.0f}{size / plain / 1e6:>12.0f}{plain / ours:>8.2f}", flush=True)


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
