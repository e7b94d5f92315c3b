"""Downloads of 2 GB over loopback, and faults on the way:

    .venv/bin/python benchmarks/fetch.py [--megabytes 2048] [--files 8] [--rounds 3] [--folder FOLDER]

The server of tests/hub_server.py runs as a process of its own and serves a model of safetensors shards by the hub's
protocol (and each shard by a redirect, as the hub does). aurora.fetch.fetch verifies and lists every byte; curl and
huggingface_hub's snapshot_download do not. Each runs in turn in each round as a process of its own, the clock starts
behind the imports, and rates are medians over the rounds. Peak memory is the greatest resident set of the process.

Then faults: those of the tests on 64 MiB, and a large file whose connection is closed, reset, and whose process is killed,
three times each. What the server sends beyond the size is what was sent twice: it lay in the kernel's buffers.
"""

import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

COMMIT = "125c431e2ff41a156b9f9076f744d2f35dd6e67a"
URI = f"hf://o/n@{COMMIT}"
SELF = [sys.executable, str(Path(__file__).resolve())]


def serve(folder: Path) -> None:
    """Serves the files of a folder as a model until standard input ends."""
    from stand_ins.hub_server import LocalHub, Repository

    with LocalHub() as hub:
        files = {path.name: path for path in sorted(folder.iterdir())}
        repository = hub.repositories["models", "o/n"] = Repository(COMMIT, files)
        hub.files |= {f"/plain/{name}": path for name, path in files.items()}
        for name in files:
            repository.entry(name)  # hashed before the clock starts
        print(hub.url, flush=True)
        sys.stdin.read()


def aurora(out: Path) -> None:
    from aurora.fetch.fetch import fetch
    from aurora.hub import download  # noqa: F401 (import time is nobody's download)
    from aurora.sources.source import Source

    source = Source(kind="model", uri=URI, dep="aurora/hub", format="transformers", licence="none")
    timed(lambda: fetch("base", source, out))


def snapshot(out: Path) -> None:
    from huggingface_hub import snapshot_download

    timed(lambda: snapshot_download("o/n", revision=COMMIT, local_dir=out))


def timed(call: object) -> None:
    """Prints seconds, CPU seconds and peak resident bytes as JSON."""
    import resource

    start, before = time.perf_counter(), time.process_time()
    call()
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    print(json.dumps([seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))


def curl(url: str, names: list[str], out: Path) -> list[float]:
    """curl on all files side by side, as many at a time as the others take."""
    import resource

    out.mkdir()
    addresses = [
        part for name in names for part in ("-o", str(out / name), f"{url}/o/n/resolve/{COMMIT}/{name}")
    ]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        ["curl", "-sfL", "--parallel", "--parallel-immediate", "--parallel-max", "8", *addresses],
        check=True,
        stderr=subprocess.DEVNULL,  # a progress meter that -s leaves on
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return [seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 0]


def run(name: str, url: str, names: list[str], out: Path, work: Path) -> list[float]:
    """One download into the new folder `out`: seconds, CPU seconds, peak bytes (0: not known)."""
    if name == "curl":
        return curl(url, names, out)
    environment = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(work / "home"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [*SELF, "--as", name, "--folder", str(out)],
        env=environment,
        cwd=work,
        check=True,
        stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout.splitlines()[-1])


def make(folder: Path, megabytes: int, count: int) -> list[str]:
    """Random shards that differ, and the two small files a model has."""
    folder.mkdir()
    block = os.urandom(1 << 20)
    for number in range(count):
        with open(folder / f"model-{number + 1:05}-of-{count:05}.safetensors", "wb") as file:
            for at in range(megabytes // count):
                file.write(f"{number:8}{at:8}".encode() + block[16:])
    (folder / "config.json").write_text("{}")
    return sorted(path.name for path in folder.iterdir())


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def speed(work: Path, megabytes: int, counts: list[int], rounds: int) -> None:
    print(f"{'':28}{'files':>6}{'seconds':>9}{'MB/s':>7}{'of curl':>9}{'CPU s/GB':>10}{'peak MB':>9}")
    for count in counts:
        names = make(work / "served", megabytes, count)
        size = sum((work / "served" / name).stat().st_size for name in names)
        truth = {name: digest(work / "served" / name) for name in names}
        server = subprocess.Popen(
            [*SELF, "--as", "serve", "--folder", str(work / "served")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        url = server.stdout.readline().decode().strip()
        results: dict[str, list[list[float]]] = {"aurora": [], "curl": [], "snapshot": []}
        for _ in range(rounds):
            for name, found in results.items():
                out = work / "out"
                found.append(run(name, url, names, out, work))
                if name == "aurora":
                    manifest = json.loads((out / "manifest.json").read_text())
                    assert {file["path"]: file["sha256"] for file in manifest["files"]} == truth
                shutil.rmtree(out)
        server.stdin.close()
        server.wait()
        shutil.rmtree(work / "served")
        base = statistics.median(found[0] for found in results["curl"])
        labels = {
            "aurora": "aurora, SHA-256 checked",
            "curl": "curl, nothing checked",
            "snapshot": "snapshot_download, size only",
        }
        for name, found in results.items():
            seconds, cpu = (statistics.median(values) for values in list(zip(*found, strict=True))[:2])
            peak = max(values[2] for values in found)
            print(
                f"{labels[name]:28}{count:>6}{seconds:>9.2f}{size / seconds / 1e6:>7.0f}{base / seconds:>8.2f}x"
                f"{cpu / size * 1e9:>10.2f}{f'{peak / 1e6:.0f}' if peak else '-':>9}"
            )


def faults(work: Path, megabytes: int) -> None:
    """Every fault of tests/test_hub_transfer.py on a larger file, then cuts, resets and kills of a large one."""
    from stand_ins.hub_server import LocalHub, Repository

    from aurora.hub import transfer

    transfer.PAUSE = 0.01
    [*_, name] = make(work / "served", megabytes, 1)
    with LocalHub() as hub:
        repository = hub.repositories["models", "o/n"] = Repository(
            COMMIT, {path.name: path for path in (work / "served").iterdir()}
        )
        counted = [
            small_faults(hub, work),
            cuts(hub, work / "served" / name, work),
            kills(hub, repository, name, work),
        ]
    survived, injected = (sum(column) for column in list(zip(*counted, strict=True))[:2])
    size, twice = (sum(column) for column in list(zip(*counted[1:], strict=True))[2:])
    print(f"faults survived: {survived} of {injected} injected")
    print(f"sent twice after cuts, resets and kills: {twice:,} of {size:,} bytes, {twice / size:.2%}")


def small_faults(hub: "LocalHub", work: Path) -> tuple[int, int, int, int]:  # noqa: F821
    """(faults survived, injected, bytes of the files, bytes sent more than once), as the next two functions have them."""
    from test_hub_transfer import SURVIVED

    content = hub.files["/x"] = os.urandom(64 << 20)
    survived, before = 0, hub.sent["/x"]
    for name, listed in SURVIVED.items():
        survived += len(listed) * survives(hub, "/x", list(listed), work / name.replace(" ", "-"))
    injected = sum(map(len, SURVIVED.values()))
    print(f"{injected} faults in {len(SURVIVED)} downloads of 64 MiB, {survived} survived")
    size = len(SURVIVED) * len(content)
    return survived, injected, size, hub.sent["/x"] - before - size


def survives(hub: "LocalHub", path: str, listed: list, target: Path) -> bool:  # noqa: F821
    """Whether a file of the server comes whole through these faults, all of which it meets."""
    from stand_ins.hub_server import sha256

    from aurora.hub.transfer import Remote, bring
    from aurora.intake.digests import Pins

    content, hub.faults[path] = hub.files[path], listed
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    found = bring(Remote(f"{hub.url}{path}", path, {}, Pins(size, sha256(content))), target)
    whole = digest(target) == sha256(content) == found.sha256
    target.unlink()
    return whole and not hub.faults[path]


def cuts(hub: "LocalHub", file: Path, work: Path) -> tuple[int, int, int, int]:  # noqa: F821
    """The large file with the connection closed, or reset, three times, a quarter of it further each time."""
    from stand_ins.hub_server import Fault

    hub.files["/large"], size = file, file.stat().st_size
    survived = 0
    for resets in (False, True):
        before = hub.sent["/large"]
        listed = [Fault(cut_after=size // 4, resets=resets) for _ in range(3)]
        survived += 3 * survives(hub, "/large", listed, work / "large")
        twice = hub.sent["/large"] - before - size
        print(
            f"{'reset' if resets else 'cut'} three times: {twice:,} of {size:,} bytes sent twice, {twice / size:.2%}"
        )
    return survived, 6, 2 * size, hub.sent["/large"] - 2 * size


def kills(hub: "LocalHub", repository: "Repository", name: str, work: Path) -> tuple[int, int, int, int]:  # noqa: F821
    """The large file as a model, its process killed at a quarter, half and three quarters."""
    entry = repository.entry(name)
    size, storage = entry["size"], f"/storage/{entry['lfs']['oid']}"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [*SELF, "--as", "aurora", "--folder", str(work / "out")]
    for share in (0.25, 0.5, 0.75):
        running = subprocess.Popen(command, env=environment, cwd=work, stdout=subprocess.DEVNULL)
        while running.poll() is None and here(work) < share * size:
            time.sleep(0.001)
        running.kill()
        running.wait()
    subprocess.run(command, env=environment, cwd=work, check=True, stdout=subprocess.DEVNULL)
    same, twice = digest(work / "out" / name) == entry["lfs"]["oid"], hub.sent[storage] - size
    print(f"killed three times: {twice:,} of {size:,} bytes sent twice, {twice / size:.2%}")
    return 3 * same, 3, size, twice


def here(work: Path) -> int:
    """Bytes of the large file that are on disk."""
    return max((path.stat().st_size for path in work.rglob("*.safetensors.part")), default=0)


@click.command()
@click.option("--megabytes", default=2048)
@click.option("--files", "counts", multiple=True, type=int, default=[8, 1])
@click.option("--rounds", default=3, help="Of the first table; 0 leaves it out.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=None, help="Where to write; a temporary one."
)
@click.option("--as", "role", default=None, hidden=True)
def main(megabytes: int, counts: tuple[int, ...], rounds: int, folder: Path | None, role: str | None) -> None:
    """Prints both tables."""
    if role:
        return {"serve": serve, "aurora": aurora, "snapshot": snapshot}[role](folder)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        print(f"{megabytes} MiB over loopback, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        if rounds:
            speed(work, megabytes, list(counts), rounds)
        faults(work, megabytes)
    return None


if __name__ == "__main__":
    main()
