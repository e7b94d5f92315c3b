"""Downloads of 2 GB over loopback, and a download whose process is killed:

    .venv/bin/python benchmarks/fetch.py [--megabytes 2048] [--files 8] [--rounds 3] [--folder FOLDER]

The server of tests/stand_ins/hub_server.py runs as a process of its own and serves a model of safetensors shards by the
hub's protocol. aurora.fetch.fetch verifies and lists every byte; curl and huggingface_hub's snapshot_download do not. Each
runs in turn in each round as a process of its own, the clock starts behind the imports, and rates are medians over the
rounds. Peak memory is the greatest resident set of the process.

Then the same snapshot with its process killed at a quarter, half and three quarters: what the server sends beyond the
size was sent twice.
"""

import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

MEASURES = ("aurora/fetch", "aurora/hub", "aurora/intake")

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

COMMIT = "125c431e2ff41a156b9f9076f744d2f35dd6e67a"
SELF = [sys.executable, str(Path(__file__).resolve())]
LABELS = {
    "aurora": "aurora, SHA-256 checked",
    "curl": "curl, nothing checked",
    "snapshot": "snapshot_download, size only",
}


def serve(folder: Path) -> None:
    """Serves the files of a folder as a model; answers each line of standard input with the bytes sent so far."""
    from stand_ins.hub_server import LocalHub, Repository

    with LocalHub() as hub:
        files = {path.name: path for path in sorted(folder.iterdir())}
        repository = hub.repositories["models", "o/n"] = Repository(COMMIT, files)
        for name in files:
            repository.entry(name)  # hashed before the clock starts
        print(hub.url, flush=True)
        for _ in sys.stdin:
            print(sum(hub.sent.values()), flush=True)


def aurora(out: Path) -> None:
    from aurora.fetch.fetch import fetch
    from aurora.hub import download  # noqa: F401 (import time is nobody's download)
    from aurora.sources.source import HubModel

    source = HubModel(kind="model", uri=f"hf://o/n@{COMMIT}", format="transformers", licence="none")
    timed(lambda: fetch("base", source, out))


def snapshot(out: Path) -> None:
    from huggingface_hub import snapshot_download

    timed(lambda: snapshot_download("o/n", revision=COMMIT, local_dir=out))


def timed(call: Callable) -> None:
    """Prints seconds, CPU seconds and peak resident bytes as JSON."""
    start, before = time.perf_counter(), time.process_time()
    call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    print(json.dumps([seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def curl(url: str, names: list[str], out: Path) -> list[float]:
    """curl on all files side by side."""
    out.mkdir()
    addresses = [part for name in names for part in ("-o", str(out / name), f"{url}/o/n/resolve/{COMMIT}/{name}")]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    parallel = ["--parallel", "--parallel-immediate", "--parallel-max", "8"]
    subprocess.run(["curl", "-sfL", *parallel, *addresses], check=True, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return [seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 0]


def start(name: str, url: str, out: Path, work: Path) -> subprocess.Popen:
    """Starts one download into the new folder `out`."""
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HOME": str(work / "home")}
    command = [*SELF, "--as", name, "--folder", str(out)]
    return subprocess.Popen(command, env=os.environ | {"HF_ENDPOINT": url} | quiet, cwd=work, stdout=subprocess.PIPE)


@contextmanager
def served(work: Path, megabytes: int, count: int) -> Iterator[tuple[str, dict[str, str], subprocess.Popen]]:
    """Random shards that differ, and a configuration: address, SHA-256 by name, and the server."""
    folder = work / "served"
    folder.mkdir()
    block = os.urandom(1 << 20)
    for number in range(count):
        with open(folder / f"model-{number + 1:05}-of-{count:05}.safetensors", "wb") as file:
            for at in range(megabytes // count):
                file.write(f"{number:8}{at:8}".encode() + block[16:])
    (folder / "config.json").write_text("{}")
    truth = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            truth[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    command = [*SELF, "--as", "serve", "--folder", str(folder)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    yield server.stdout.readline().strip(), truth, server
    server.stdin.close()
    server.wait()
    shutil.rmtree(folder)


def listed(out: Path) -> dict[str, str]:
    """SHA-256 by name, as the manifest has them."""
    files = json.loads((out / "manifest.json").read_text())["files"]
    return {file["path"]: file["sha256"] for file in files}


def speed(work: Path, megabytes: int, count: int, rounds: int) -> None:
    print(f"{'':28}{'files':>6}{'seconds':>9}{'MB/s':>7}{'of curl':>9}{'CPU s/GB':>10}{'peak MB':>9}")
    results: dict[str, list[list[float]]] = {name: [] for name in LABELS}
    with served(work, megabytes, count) as (url, truth, _):
        for _ in range(rounds):
            for name, found in results.items():
                out = work / "out"
                if name == "curl":
                    found.append(curl(url, list(truth), out))
                else:
                    running = start(name, url, out, work)
                    found.append(json.loads(running.communicate()[0].splitlines()[-1]))
                assert name != "aurora" or listed(out) == truth
                shutil.rmtree(out)
    base = statistics.median(found[0] for found in results["curl"])
    size = megabytes << 20
    for name, found in results.items():
        seconds, cpu, _ = (statistics.median(values) for values in zip(*found, strict=True))
        peak = max(values[2] for values in found)
        print(
            f"{LABELS[name]:28}{count:>6}{seconds:>9.2f}{size / seconds / 1e6:>7.0f}{base / seconds:>8.2f}x"
            f"{cpu / size * 1e9:>10.2f}{f'{peak / 1e6:.0f}' if peak else '-':>9}"
        )


def kills(work: Path, megabytes: int, count: int) -> None:
    """A snapshot whose process is killed at a quarter, half and three quarters of its bytes."""
    size, out = megabytes << 20, work / "out"
    with served(work, megabytes, count) as (url, truth, server):

        def sent() -> int:
            server.stdin.write("\n")
            return int(server.stdout.readline())

        for share in (0.25, 0.5, 0.75):
            running, begun = start("aurora", url, out, work), sent()
            while running.poll() is None and sent() - begun < size / 4:
                time.sleep(0.001)
            running.kill()
            running.wait()
            print(f"killed after {share:.0%}: {sent():,} of {size:,} bytes sent in all")
        start("aurora", url, out, work).communicate()
        assert listed(out) == truth
        print(f"{count} files, killed three times: {sent() / size - 1:.1%} of the bytes sent twice")
    shutil.rmtree(out)


@click.command()
@click.option("--megabytes", default=2048)
@click.option("--files", "counts", multiple=True, type=int, default=[8, 1])
@click.option("--rounds", default=3, help="Of the first table; 0 leaves it out.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write; a temporary one.")
@click.option("--as", "role", default=None, hidden=True)
def main(megabytes: int, counts: tuple[int, ...], rounds: int, folder: Path | None, role: str | None) -> None:
    """Prints the table of speed, and what is sent twice after kills."""
    if role:
        return {"serve": serve, "aurora": aurora, "snapshot": snapshot}[role](folder)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        print(f"{megabytes} MiB over loopback, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for count in counts if rounds else ():
            speed(work, megabytes, count, rounds)
        kills(work, megabytes, max(counts))
    return None


if __name__ == "__main__":
    main()
