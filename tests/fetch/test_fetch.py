"""fetch: each kind of source to a folder of verified bytes with a manifest, whole or not at all."""

import errno
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML
from stand_ins.hub_server import TOKEN, Fault, LocalHub, Repository, git_blob, sha256

from aurora.core.errors import ResourceError, SourceError
from aurora.fetch import fetch as fetching
from aurora.fetch.fetch import SCRATCH, fetch
from aurora.fetch.previous import _locked
from aurora.sources.source import Source
from stages.fetch import main

ROOT = Path(__file__).parent.parent.parent
COMMIT = "125c431e2ff41a156b9f9076f744d2f35dd6e67a"
CHANGED = b"[]\n"
ROWS = b'[{"instruction": "a", "input": "", "output": "b"}]\n'
MODEL = {"kind": "model", "format": "transformers"}


def source(uri: str, **more: object) -> Source:
    """A source as params.yaml would give it."""
    return Source(**{"kind": "instructions", "uri": uri, "format": "alpaca", "licence": "MIT"} | more)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(files: dict[str, bytes]) -> None:
    """Writes files with their folders."""
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def zipped(members: dict[str, bytes]) -> bytes:
    """A zip file of these members below data/."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"data/{name}", data)
    return content.getvalue()


def test_a_local_file_is_copied_with_a_manifest(tmp_path: Path):
    Path("own rows.json").write_bytes(ROWS)
    manifest = fetch("own", source("own rows.json", licence="CC-BY-NC-4.0", rows=1), Path("out"))
    assert (tmp_path / "out/own rows.json").read_bytes() == ROWS
    assert manifest == {
        "source": "own",
        "kind": "instructions",
        "format": "alpaca",
        "uri": "own rows.json",
        "pin": "repository",
        "revision": None,
        "licence": "CC-BY-NC-4.0",
        "non_commercial": True,
        "rows": 1,
        "archive": None,
        "files": [{"path": "own rows.json", "sha256": hashlib.sha256(ROWS).hexdigest(), "bytes": len(ROWS)}],
    }
    assert json.loads(Path("out/manifest.json").read_text()) == manifest
    assert str(tmp_path) not in Path("out/manifest.json").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "own rows.json"]


def test_of_a_folder_or_an_archive_all_is_taken_but_documents_and_caches():
    rows = {"rows.json": ROWS, "below/more.json": CHANGED}
    beside = {"README.md": b"# Rows", "LICENSE": b"MIT", "below/notes.md": b"-", ".gitattributes": b"*"}
    packed = zipped(rows | beside)
    own = rows | beside | {"__pycache__/c.pyc": b"1", ".cache/d": b"1"}
    write({f"own/{name}": content for name, content in own.items()} | {"own.zip": packed})
    folder = fetch("own", source("own"), Path("folder"))
    assert [file["path"] for file in folder["files"]] == sorted(rows)
    archive = fetch("own", source("file:own.zip!/data", sha256=sha256(packed)), Path("archive"))
    assert archive["files"] == folder["files"]
    assert archive["archive"] == {"path": "own.zip", "sha256": sha256(packed), "bytes": len(packed)}
    for out in (Path("folder"), Path("archive")):
        left = [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()]
        assert sorted(left) == sorted([*rows, "manifest.json"])


@pytest.mark.parametrize(
    ("make", "uri", "more", "message"),
    [
        (None, "rows.json", {}, r"rows\.json does not exist; correct uri"),
        ("rows.json", "rows.json", {"sha256": "0" * 64}, rf"(file:)?rows\.json: expected sha256 {'0' * 64}, found \w{{64}}"),
        ("rows.json", "file:rows.json", {"sha256": "0" * 64}, rf"(file:)?rows\.json: expected sha256 {'0' * 64}, found \w{{64}}"),
        ("rows.json", "rows.json", {"git_blob": "0" * 40}, rf"rows\.json: expected git_blob {'0' * 40}, found \w{{40}}"),
        ("rows.json", "rows.json", {"bytes": 4}, r"rows\.json: expected bytes 4, found 51"),
        ("own/rows.json", "own", {"bytes": 4}, r"own is a folder; pins and !/ are for a file"),
        ("own/rows.json", "file:own!/data", {"pin": "record"}, r"own is a folder; pins and !/ are for a file"),
        ("own/.cache/x", "own", {}, r"own holds no file"),
        ("own/manifest.json", "own", {}, r"own holds a manifest\.json, which fetch writes; rename it"),
        ("rows.json", "file:rows.json!/a", {"pin": "record"}, r"rows\.json: neither a zip nor a tar file"),
        (None, "n" * 300, {}, r"n+: File name too long; correct uri"),
    ],
)  # fmt: skip
def test_a_local_fault_is_one_line_and_leaves_nothing(make: str | None, uri: str, more: dict, message: str):
    if make:
        write({make: ROWS})
    with pytest.raises(SourceError, match=rf"^sources\.own: {message}") as caught:
        fetch("own", source(uri, **more), Path("out"))
    assert "\n" not in str(caught.value)
    assert {path.name for path in Path().iterdir()} <= {"rows.json", "own"}


@pytest.mark.parametrize(
    ("link", "uri"),
    [
        ("own.json", "own.json"),
        ("own/rows.json", "own"),
        ("own/rows.json", "{here}/own"),
        ("own", "own/rows.json"),
        ("own/below", "own/below/rows.json"),
    ],
)
def test_a_link_that_leads_out_of_the_repository_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str, uri: str
):
    write({"home/secret/rows.json": b"secret", "home/rows.json": b"secret", "repository/samples/own.json": ROWS})
    monkeypatch.chdir("repository")
    Path(link).parent.mkdir(exist_ok=True)
    Path(link).symlink_to(tmp_path / ("home/rows.json" if link.endswith("json") else "home/secret"))
    with pytest.raises(SourceError, match=r"^sources\.own: .* is a link that leads out of (the repository|it); give"):
        fetch("own", source(uri.format(here=Path.cwd())), Path("out"))
    assert not Path("out").exists()
    Path("near.json").symlink_to("samples/own.json")
    assert fetch("own", source("near.json"), Path("out"))["files"][0]["sha256"] == sha256(ROWS)


@pytest.mark.minutes
def test_dvc_s_own_links_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write({"repository/own.json": ROWS})
    monkeypatch.chdir("repository")
    for command in (
        "git init -q", "dvc init -q", f"dvc config cache.dir {tmp_path}/cache", "dvc config cache.type symlink", "dvc add -q own.json"
    ):  # fmt: skip
        command = command.replace("dvc", f"{sys.executable} -m dvc", 1) if command.startswith("dvc") else command
        subprocess.run(command.split(), check=True, env=os.environ | {"DVC_NO_ANALYTICS": "1"})
    assert Path("own.json").is_symlink()
    assert fetch("own", source("own.json"), Path("out"))["files"][0]["sha256"] == sha256(ROWS)


@pytest.mark.parametrize("uri", ["piped", "linked", "/dev/zero", "loop", "file:piped/rows.json!/a"])
@pytest.mark.timeout(20)
def test_a_pipe_a_device_or_a_link_that_ends_nowhere_is_not_waited_for(uri: str):
    Path("piped").mkdir()
    os.mkfifo("piped/rows.json")
    Path("linked").mkdir()
    Path("linked/rows.json").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    with pytest.raises(SourceError, match=r"sources\.own: .*( is no file: a device, a pipe, or a link|loop)"):
        fetch("own", source(uri, pin="record" if uri.startswith("file:") else None), Path("out"))
    assert not Path("out").exists()


@pytest.mark.parametrize("uri", ["rows.json", "own"])
def test_a_disk_that_is_too_small_for_a_local_source_is_said_first(uri: str, monkeypatch: pytest.MonkeyPatch):
    write({"rows.json": ROWS, "own/rows.json": ROWS})
    monkeypatch.setattr(fetching, "free_bytes", lambda folder: 50)
    with pytest.raises(ResourceError, match=r"sources\.own: 51 bytes are to be copied, 50 are free"):
        fetch("own", source(uri), Path("out"))
    assert not Path("out").exists()


def test_what_a_killed_process_left_beside_the_output_is_removed():
    Path("rows.json").write_bytes(ROWS)
    Path("in").mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    for owner in (ended.pid, 1):
        Path(f"in/.own.{owner}.partial").mkdir()
        Path(f"in/.own.{owner}.partial/rows.json").write_bytes(b"half")
    Path(f"in/.other.{ended.pid}.partial").write_bytes(b"half")
    fetch("own", source("rows.json"), Path("in/own"))
    assert sorted(path.name for path in Path("in").iterdir()) == sorted(
        [".own.1.partial", f".other.{ended.pid}.partial", "own"]
    )


def test_an_embedded_source_is_measured_and_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch):
    from aurora import small_base

    def build(folder: Path) -> None:
        (folder / "below").mkdir(parents=True)
        (folder / "below/config.json").write_bytes(b"{}")
        if Path("fails").exists():
            raise SourceError("no")

    monkeypatch.setattr(small_base, "build", build)
    own = source("aurora/small_base", **MODEL)
    manifest = fetch("base", own, Path("out"))
    assert manifest["files"] == [{"path": "below/config.json", "sha256": sha256(b"{}"), "bytes": 2}]
    assert (manifest["pin"], manifest["revision"]) == ("repository", None)
    Path("fails").touch()
    with pytest.raises(SourceError, match="no"):
        fetch("base", own, Path("other"))
    assert sorted(path.name for path in Path().iterdir()) == ["fails", "out"]


def test_a_web_file_is_pinned_by_sha256_or_git_blob(hub: LocalHub):
    hub.files["/raw/rows.json"] = b"hello\n"
    url = f"{hub.url}/raw/rows.json"
    for pin in (
        {"sha256": sha256(b"hello\n")},
        {"git_blob": "ce013625030ba8dba906f756967f9e9ca394464a", "bytes": 6},  # git hash-object of this line
    ):
        fetch("own", source(url, **pin), Path("out"))
        assert Path("out/rows.json").read_bytes() == b"hello\n"
    with pytest.raises(SourceError, match=rf"downloads\.own: {url}: .*expected sha256 {'1' * 64}, found "):
        fetch("own", source(url, sha256="1" * 64), Path("other"), "downloads")
    assert not Path("other").exists()
    assert Path("out/rows.json").read_bytes() == b"hello\n"  # a failure leaves an earlier fetch alone


def test_shards_of_the_hub_come_by_a_glob(hub: LocalHub):
    files = {"data/train-0.json": ROWS, "data/train-1.json": CHANGED, "data/test-0.json": b"-", "train-2.json": b"-"}
    hub.repositories["datasets", "o/n"] = Repository(COMMIT, files)
    uri = f"hf://datasets/o/n@{COMMIT}/data/train-*.json"
    manifest = fetch("own", source(uri), Path("out"), "downloads")
    assert [file["path"] for file in manifest["files"]] == ["data/train-0.json", "data/train-1.json"]
    assert Path("out/data/train-1.json").read_bytes() == CHANGED
    with pytest.raises(SourceError, match="no such file at this commit; check path"):
        fetch("own", source(uri.replace("train", "none")), Path("none"), "downloads")


def test_a_hub_file_and_a_snapshot_are_written_once(hub: LocalHub, monkeypatch: pytest.MonkeyPatch):
    shard = os.urandom(100_000)
    hub.repositories["models", "o/n"] = Repository(COMMIT, {"config.json": b"{}", "model.safetensors": shard})
    moved, move = {}, shutil.move

    def watched(origin: Path, target: Path, *rest: object, **more: object) -> None:
        moved[Path(target).name] = Path(origin).stat().st_ino
        move(origin, target, *rest, **more)

    monkeypatch.setattr(fetching.shutil, "move", watched)
    manifest = fetch("base", source(f"hf://o/n@{COMMIT}", **MODEL), Path("base"))
    assert (manifest["revision"], manifest["pin"]) == (COMMIT, "commit")
    assert [file["path"] for file in manifest["files"]] == ["config.json", "model.safetensors"]
    assert moved == {path.name: path.stat().st_ino for path in Path("base").iterdir() if path.name in moved}
    assert len(moved) == 2
    assert not (SCRATCH / "base").exists()
    text = Path("base/manifest.json").read_bytes()
    fetch("base", source(f"hf://o/n@{COMMIT}", **MODEL), Path("elsewhere"))
    assert Path("elsewhere/manifest.json").read_bytes() == text


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than the working folder; skips where there is none."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is no other file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.parametrize("link", ["data", "data/raw"])
def test_data_on_another_file_system_is_downloaded_there_once(hub: LocalHub, other_disk: Path, link: str):
    Path(link).parent.mkdir(parents=True, exist_ok=True)
    Path(link).symlink_to(other_disk)
    rows = {"a.json": ROWS * 5000, "model.safetensors": CHANGED * 50_000}
    hub.repositories["models", "o/n"] = Repository(COMMIT, rows)
    own, out = source(f"hf://o/n@{COMMIT}", **MODEL), Path("data/raw/model/own")
    hub.faults[f"/storage/{sha256(rows['model.safetensors'])}"] = [Fault(status=503)] * 3
    with pytest.raises(SourceError, match="HTTP 503"):
        fetch("own", own, out)
    (kept,) = other_disk.rglob("a.json")
    place = kept.stat().st_ino
    assert not SCRATCH.exists()
    fetch("own", own, out)
    assert (out / "a.json").stat().st_ino == place  # brought once, and renamed, not copied
    kinds = other_disk / ("raw" if link == "data" else "")
    assert [path.name for path in (kinds / "model").iterdir()] == ["own"]  # in no stage's way


def test_bytes_of_a_cache_on_another_file_system_are_taken_again(hub: LocalHub, other_disk: Path):
    hub.files["/rows.json"] = ROWS
    own = source(f"{hub.url}/rows.json", pin="record")
    first = fetch("own", own, Path("out"))
    shutil.move("out/rows.json", other_disk / "rows.json")
    Path("out/rows.json").symlink_to(other_disk / "rows.json")  # as DVC links, where it cannot link hard
    assert fetch("own", own, Path("out")) == first
    assert hub.count("/rows.json") == 1
    assert not Path("out/rows.json").is_symlink()


SMALL = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
sys.argv = ["stages.fetch", "own", "--section", SECTION, "--out", "data/own"]
runpy.run_module("stages.fetch", run_name="__main__")
"""


@pytest.mark.parametrize("kind", ["file", "archive", "folder", "hub", "web", "web archive"])
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_nothing(hub: LocalHub, tmp_path: Path, kind: str):
    large = ROWS * 10_000
    packed = zipped({"rows.json": large})
    write({"rows.json": large, "rows.zip": packed, "folder/rows.json": large})
    hub.files |= {"/rows.json": large, "/rows.zip": packed}
    hub.repositories["datasets", "o/n"] = Repository(COMMIT, {"rows.json": large})
    section, entry = {
        "file": ("sources", {"uri": "rows.json"}),
        "archive": ("downloads", {"uri": "file:rows.zip!/data", "sha256": sha256(packed)}),
        "folder": ("sources", {"uri": "folder"}),
        "hub": ("downloads", {"uri": f"hf://datasets/o/n@{COMMIT}/rows.json"}),
        "web": ("downloads", {"uri": f"{hub.url}/rows.json", "sha256": sha256(large)}),
        "web archive": ("downloads", {"uri": f"{hub.url}/rows.zip!/data", "sha256": sha256(packed)}),
    }[kind]
    params(tmp_path, section, own=entry)
    done = stage(tmp_path, hub, sys.executable, "-c", SMALL.replace("SECTION", repr(section)))
    out, error = done.communicate(timeout=60)
    assert (done.returncode, out) == (1, "")
    last = error.splitlines()[-1]  # above it may stand a progress bar
    assert last.startswith(f"error: {section}.own")
    assert last.endswith("free disk and run again")
    assert "Traceback" not in error and "damaged" not in error
    assert list(Path("data").iterdir()) == []


@pytest.mark.parametrize("place", ["out", "data/raw/own", ".aurora"])
def test_a_file_where_a_folder_belongs_is_one_line(hub: LocalHub, place: str):
    hub.files["/rows.json"] = ROWS
    in_the_way = Path(place).parts[0]
    Path(in_the_way).write_text("x")
    with pytest.raises(SourceError, match=rf"sources\.own: .*{in_the_way}.*: .*; .* move it away"):
        fetch("own", source(f"{hub.url}/rows.json", sha256=sha256(ROWS)), Path(place) / "own")
    assert [path.name for path in Path().iterdir()] == [in_the_way]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "give yourself the right to it"),
        (errno.EROFS, "make its file system writable"),
        (errno.ENOSPC, "free disk and run again"),
    ],
)
@pytest.mark.parametrize("call", ["mkdir", "replace", "move"])
def test_a_refusal_of_the_file_system_is_one_line(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, call: str, number: int, remedy: str
):
    hub.files["/rows.json"] = ROWS
    own = source(f"{hub.url}/rows.json", sha256=sha256(ROWS))
    Path("old").mkdir()

    def refuse(path: object, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with monkeypatch.context() as patched:
        patched.setattr({"replace": os, "move": shutil}.get(call, Path), call, refuse)
        with pytest.raises((SourceError, ResourceError), match=rf"sources\.own: .*; {remedy}"):
            fetch("own", own, Path("old/out"))
    assert list(Path("old").iterdir()) == []
    fetch("own", own, Path("old/out"))
    assert not SCRATCH.joinpath("own").exists()


@pytest.mark.parametrize("name", ["mmlu", "ceval", "cmmlu"])
def test_the_real_benchmarks_come_out_of_their_archives(hub: LocalHub, real_data: Path, name: str):
    folder = real_data / "benchmarks" / name / ("data" if name == "mmlu" else "")
    packed = zipped({path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.csv"))})
    hub.repositories["datasets", "o/n"] = Repository(COMMIT, {f"{name}.zip": packed})
    hub.faults[f"/storage/{sha256(packed)}"] = [Fault(cut_after=200_000)]
    uri = f"hf://datasets/o/n@{COMMIT}/{name}.zip!/data/test"
    manifest = fetch(name, source(uri, kind="benchmark", format=name), Path("out"))
    truth = {path.name: path.read_bytes() for path in (folder / "test").glob("*.csv")}
    assert {path.name: path.read_bytes() for path in Path("out").glob("*.csv")} == truth
    assert {file["path"]: file["sha256"] for file in manifest["files"]} == {
        name: sha256(content) for name, content in truth.items()
    }
    assert len(truth) == {"mmlu": 57, "ceval": 52, "cmmlu": 67}[name]


def test_refusals_and_give_ups_name_source_and_remedy(hub: LocalHub, monkeypatch: pytest.MonkeyPatch):
    hub.files["/rows.json"], url = ROWS, f"{hub.url}/rows.json"
    own, out = source(url, sha256=sha256(ROWS)), Path("data/raw/instructions/own")
    hub.faults["/rows.json"] = [Fault(status=404), *[Fault(status=503)] * 3]
    with pytest.raises(SourceError, match=rf"sources\.own: {url}: HTTP 404; check host, path and revision"):
        fetch("own", own, out)
    remote = "; or, if a DVC remote has it: dvc pull data/raw/instructions/own"
    with pytest.raises(SourceError, match=f"HTTP 503; .*{remote}"):
        fetch("own", own, out)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    count = len(hub.requests)
    with pytest.raises(SourceError, match=f"HF_HUB_OFFLINE forbids .*{remote}"):
        fetch("own", own, out)
    assert len(hub.requests) == count
    assert not any(path.stat().st_size for path in Path().rglob("rows.json"))


def test_a_pointer_of_git_lfs_is_not_taken_for_the_file(hub: LocalHub):
    repository = Repository(COMMIT, {"rows.json": ROWS * 2000})
    hub.repositories["datasets", "o/n"] = repository
    with pytest.raises(SourceError, match=r"sources\.own: rows\.json is a Git LFS pointer, not the file"):
        fetch("own", source(f"{hub.url}/datasets/o/n/raw/{COMMIT}/rows.json", pin="record"), Path("out"))
    Path("rows.json").write_bytes(repository.pointer("rows.json"))
    with pytest.raises(SourceError, match="git lfs pull"):
        fetch("own", source("rows.json"), Path("out"))
    assert not Path("out").exists()


def test_a_record_is_made_by_the_first_fetch_and_kept_by_the_next(hub: LocalHub):
    hub.files["/rows.json"] = ROWS
    own = source(f"{hub.url}/rows.json", pin="record")
    first = fetch("own", own, Path("out"))
    assert (first["pin"], first["files"][0]["sha256"]) == ("record", sha256(ROWS))
    Path("out/rows.json").unlink()  # the record is left, the bytes are to come again
    assert fetch("own", own, Path("out")) == first
    assert hub.count("/rows.json") == 2
    hub.files["/rows.json"] = CHANGED
    Path("out/rows.json").write_bytes(b"damaged")
    with pytest.raises(SourceError) as caught:
        fetch("own", own, Path("out"))
    assert (
        f"sources.own: {own.uri}: expected sha256 {sha256(ROWS)} of rows.json, as the first fetch recorded, found "
        f"{sha256(CHANGED)}; the source has changed"
    ) in str(caught.value)
    assert Path("out/rows.json").read_bytes() == b"damaged"
    fetch("own", source(own.uri, sha256=sha256(CHANGED)), Path("out"))  # the remedy
    hub.files["/other.json"] = b"{}"
    fetch("own", source(f"{hub.url}/other.json", pin="record"), Path("out"))  # another source: another record


def test_a_recorded_archive_is_recorded_as_a_whole(hub: LocalHub):
    packed = zipped({"a.csv": b"1"})
    hub.files["/rows.zip"] = packed
    own = source(f"{hub.url}/rows.zip!/data", pin="record")
    first = fetch("own", own, Path("out"))
    assert first["archive"]["sha256"] == sha256(packed)
    hub.files["/rows.zip"] = zipped({"a.csv": b"1", "b.csv": b""})
    Path("out/a.csv").unlink()
    with pytest.raises(
        SourceError, match=rf"expected sha256 {sha256(packed)} of rows\.zip, as the first fetch recorded"
    ):
        fetch("own", own, Path("out"))


def test_a_recorded_branch_may_move_without_a_change_of_its_bytes(hub: LocalHub):
    files = {"config.json": b"{}", "model.safetensors": b"1"}
    hub.repositories["models", "o/n"] = Repository("a" * 40, files, branches={"main": "a" * 40})
    base = source("hf://o/n@main", pin="record", **MODEL)
    first = fetch("base", base, Path("out"))
    assert first["revision"] == "a" * 40
    hub.repositories["models", "o/n"] = Repository("b" * 40, files, branches={"main": "b" * 40})
    Path("out/config.json").unlink()
    assert fetch("base", base, Path("out")) == first
    more = files | {"generation_config.json": b"{}"}
    hub.repositories["models", "o/n"] = Repository("c" * 40, more, branches={"main": "c" * 40})
    Path("out/config.json").unlink()
    with pytest.raises(SourceError, match=r"expected sha256 no such file of generation_config\.json"):
        fetch("base", base, Path("out"))


def test_bytes_that_are_here_need_no_network_whatever_pins_them(hub: LocalHub, monkeypatch: pytest.MonkeyPatch):
    packed = zipped({"a.csv": b"1"})
    hub.files |= {"/rows.json": ROWS, "/rows.zip": packed}
    files = {"config.json": b"{}", "model.safetensors": b"1"}
    hub.repositories["models", "o/n"] = Repository(COMMIT, files, branches={"main": COMMIT})
    blob = git_blob(packed)
    every = {
        "record": source(f"{hub.url}/rows.json", pin="record"),
        "record-archive": source(f"{hub.url}/rows.zip!/data", pin="record"),
        "record-branch": source("hf://o/n@main", pin="record", **MODEL),
        "sha256": source(f"{hub.url}/rows.json", sha256=sha256(ROWS)),
        "blob": source(f"{hub.url}/rows.zip", git_blob=blob),
        "blob-archive": source(f"{hub.url}/rows.zip!/data", git_blob=blob),
        "commit": source(f"hf://o/n@{COMMIT}", **MODEL),
    }
    first = {name: fetch(name, own, Path(name)) for name, own in every.items()}

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    hub.files.clear()
    for name, own in every.items():
        assert fetch(name, own, Path(name)) == first[name]


def test_a_git_blob_of_an_archive_is_asked_of_its_record(hub: LocalHub):
    packed = zipped({"a.csv": b"1"})
    hub.files["/rows.zip"] = packed
    uri = f"{hub.url}/rows.zip!/data"
    fetch("own", source(uri, sha256=sha256(packed)), Path("out"))
    fetch("own", source(uri, git_blob=git_blob(packed)), Path("out"))  # nobody had looked at it
    assert hub.count("/rows.zip") == 2
    with pytest.raises(SourceError, match="expected git_blob 0000"):
        fetch("own", source(uri, git_blob="0" * 40), Path("out"))


DAMAGED = {
    "not JSON": b"{",
    "not text": b"\xff\xfe",
    "deep": b"[" * 100_000,
    "another thing": b"[]",
    "empty": b"{}",
    "older": lambda manifest: {key: value for key, value in manifest.items() if key not in ("archive", "revision")},
    "no uri": lambda manifest: {key: value for key, value in manifest.items() if key != "uri"},
    "no files": lambda manifest: manifest | {"files": []},
    "files of another form": lambda manifest: manifest | {"files": ["rows.json"]},
    "files that are none": lambda manifest: manifest | {"files": None},
    "no sha256": lambda manifest: manifest | {"files": [{"path": "rows.json", "bytes": 51}]},
    "no bytes": lambda manifest: manifest | {"files": [{"path": "rows.json", "sha256": "0" * 64, "bytes": "51"}]},
    "a path that leaves": lambda manifest: manifest | {"files": [manifest["files"][0] | {"path": "../rows.json"}]},
    "a path that is none": lambda manifest: manifest | {"files": [manifest["files"][0] | {"path": ""}]},
    "its own name": lambda manifest: manifest | {"files": [manifest["files"][0] | {"path": "manifest.json"}]},
    "an archive that is none": lambda manifest: manifest | {"archive": "rows.zip"},
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_manifest_is_no_record_and_one_line(hub: LocalHub, damage: bytes | Callable):
    hub.files["/rows.json"] = ROWS
    own, recording = (source(f"{hub.url}/rows.json", **pin) for pin in ({"sha256": sha256(ROWS)}, {"pin": "record"}))
    whole = fetch("own", own, Path("out"))
    content = damage if isinstance(damage, bytes) else json.dumps(damage(whole)).encode()
    Path("out/manifest.json").write_bytes(content)
    with pytest.raises(SourceError, match=r"sources\.own: pin: record, and out/manifest\.json is damaged or of ano"):
        fetch("own", recording, Path("out"))
    assert Path("out/manifest.json").read_bytes() == content
    assert fetch("own", own, Path("out")) == whole
    assert hub.count("/rows.json") == 2


@pytest.mark.parametrize("text", ["[]", "stages: []", "stages: {a: 1}", "stages: {a: {outs: [1]}}", "a: [", "a: \x00"])
def test_a_damaged_lock_is_one_line(hub: LocalHub, text: str):
    Path("dvc.lock").write_text(text)
    with pytest.raises(SourceError, match=r"sources\.own: dvc\.lock: not readable .* git checkout dvc\.lock"):
        fetch("own", source(f"{hub.url}/rows.json", pin="record"), Path("out"))
    assert hub.requests == []


def test_pinned_bytes_that_are_here_are_verified_and_taken_again(hub: LocalHub):
    packed = zipped({"a.csv": b"1", "b/c.csv": b"2"})
    hub.files |= {"/rows.json": ROWS, "/rows.zip": packed}
    own = source(f"{hub.url}/rows.json", sha256=sha256(ROWS))
    archive = source(f"{hub.url}/rows.zip!/data", sha256=sha256(packed))
    first = fetch("own", own, Path("out")), fetch("far", archive, Path("far"))
    seen = len(hub.requests)
    assert (fetch("own", own, Path("out")), fetch("far", archive, Path("far"))) == first
    licensed = fetch("own", own.model_copy(update={"licence": "CC0-1.0"}), Path("out"))
    assert licensed == first[0] | {"licence": "CC0-1.0"}
    assert len(hub.requests) == seen
    Path("out/rows.json").write_bytes(CHANGED)  # not what it was
    Path("far/b/c.csv").unlink()
    assert (fetch("own", own, Path("out")), fetch("far", archive, Path("far"))) == first
    assert len(hub.requests) == seen + 2
    for pin, digits in (("sha256", "0" * 64), ("git_blob", "0" * 40)):
        with pytest.raises(SourceError, match=f"expected {pin} {digits}"):
            fetch("own", source(own.uri, **{pin: digits}), Path("out"))
    assert Path("out/rows.json").read_bytes() == ROWS
    manifest = json.loads(Path("out/manifest.json").read_text())
    manifest["files"][0]["path"] = "../rows.json"
    Path("out/manifest.json").write_text(json.dumps(manifest))
    assert fetch("own", own, Path("out")) == first[0]


def test_a_second_process_does_not_touch_what_has_come(hub: LocalHub):
    hub.files["/rows.json"] = ROWS
    own = source(f"{hub.url}/rows.json", sha256=sha256(ROWS))
    with fetching.locked(SCRATCH / "own/lock"), pytest.raises(ResourceError, match=r"sources\.own: .*is working here"):
        fetch("own", own, Path("out"))
    fetch("own", own, Path("out"))


def stage(folder: Path, hub: LocalHub, *arguments: str, **environment: str) -> subprocess.Popen:
    """Starts a command with the local hub for the real one."""
    surroundings = os.environ | {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "DVC_NO_ANALYTICS": "1"} | environment
    return subprocess.Popen(
        arguments, cwd=folder, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def params(folder: Path, section: str, **entries: dict) -> None:
    """Writes the small profile with these entries more."""
    content = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for name, entry in entries.items():
        content[section][name] = {"kind": "instructions", "format": "alpaca", "licence": "MIT"} | entry
    with (folder / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(content, file)


FETCH_FAR = (sys.executable, "-m", "stages.fetch", "far", "--section", "downloads")
ENDS = [signal.SIGKILL, *(pytest.param(how, marks=pytest.mark.minutes) for how in (signal.SIGTERM, signal.SIGINT))]


@pytest.mark.minutes
@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("kind", ["web", "hub"])
def test_a_fetch_that_is_ended_goes_on_and_ends_in_the_same_bytes(
    hub: LocalHub, tmp_path: Path, how: signal.Signals, kind: str
):
    first, second = os.urandom(1 << 20), os.urandom(24 << 20)
    if kind == "web":
        path, entry = "/rows.json", {"uri": f"{hub.url}/rows.json", "sha256": sha256(second)}
        hub.files[path] = second
    else:
        path, entry = f"/storage/{sha256(second)}", {"uri": f"hf://o/n@{COMMIT}", **MODEL}
        hub.repositories["models", "o/n"] = Repository(COMMIT, {"a.json": first, "b.safetensors": second})
    hub.faults[path] = [Fault(stalls=60)]
    params(tmp_path, "downloads", far=entry)
    command = (*FETCH_FAR, "--out", "data/far")
    running = stage(tmp_path, hub, *command, HF_TOKEN=TOKEN)
    half = 10_000_000 if kind == "web" else len(first)  # bytes that the library is sure to have written
    for _ in range(1200):
        sizes = {path: path.stat().st_size for path in SCRATCH.rglob("*.json") if path.is_file()}
        if hub.sent[path] >= len(second) // 2 and sum(sizes.values()) >= half:
            break
        time.sleep(0.05)
    running.send_signal(how)
    _, error = running.communicate(timeout=20)  # though the server is silent for longer
    assert "Traceback" not in error
    assert list(Path("data").iterdir()) == []
    if kind == "hub" and how == signal.SIGKILL:
        assert list(SCRATCH.rglob("*.incomplete"))  # which the next run removes, since nothing goes on with it
    done = stage(tmp_path, hub, *command)
    _, error = done.communicate(timeout=120)
    assert done.returncode == 0, error
    (large,) = Path("data/far").glob("rows.json" if kind == "web" else "*.safetensors")
    assert large.read_bytes() == second
    if kind == "web":
        assert int(hub.requests[-1][2]["Range"].removeprefix("bytes=").removesuffix("-")) >= half
    else:
        assert hub.count(f"/storage/{sha256(first)}") == 1
    assert not SCRATCH.joinpath("far").exists()


def test_a_source_that_has_moved_between_sections_is_still_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def entry(key: str, uri: str) -> dict:
        return {"params": {"params.yaml": {key: {"uri": uri}}}, "outs": [{"path": "data/raw/model/base"}]}

    stages = {"fetch@base": entry("sources.base", "own"), "fetch_hub@base": entry("hub_models.base", "hf://x")}
    Path("dvc.lock").write_text(json.dumps({"stages": stages}))
    found = {uri: _locked(uri, Path("data/raw/model/base")) for uri in ("hf://x", "own", "hf://y")}
    assert found == {"hf://x": True, "own": True, "hf://y": False}
    assert not _locked("hf://x", Path("data/raw/model/other"))


def test_the_stage_refuses_an_entry_of_the_wrong_section(tmp_path: Path):
    params(tmp_path, "hub_models", mine={"uri": "rows.json"})
    done = CliRunner().invoke(main, ["mine", "--section", "hub_models", "--out", "data/mine"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: params.yaml: hub_models.mine: uri 'rows.json' is a path, ")
    assert not Path("data").exists()


@pytest.mark.minutes
def test_under_dvc_each_source_runs_when_what_it_is_made_from_changes_and_moves_no_byte_twice(
    hub: LocalHub, tmp_path: Path
):
    """The fetch stage of dvc.yaml itself: a far source, a local one, a recorded one; cache, remote, a fresh clone."""
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("aurora", "stages", "samples"):
        shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns("__pycache__"))
    whole = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    with (repository / "dvc.yaml").open("w", encoding="utf-8") as file:
        stages = {name: entry for name, entry in whole["stages"].items() if name.startswith("fetch")}
        YAML().dump({"stages": stages}, file)
    (repository / ".dvcignore").write_text("__pycache__\n")
    (repository / ".gitignore").write_text("/data\n/.aurora\n__pycache__\n")
    hub.repositories["datasets", "o/n"] = Repository(COMMIT, {"rows.json": ROWS * 2000})
    hub.files["/rows.json"] = ROWS
    params(
        repository,
        "downloads",
        far={"uri": f"hf://datasets/o/n@{COMMIT}/rows.json"},
        kept={"uri": f"{hub.url}/rows.json", "pin": "record"},
    )

    def run(*arguments: str, at: Path = repository, status: int = 0) -> str:
        done = stage(at, hub, *arguments, PYTHONPATH="", PYTHONDONTWRITEBYTECODE="1")
        output = "".join(done.communicate(timeout=300))
        assert done.returncode == status, output
        return output

    run("git", "init", "-q")
    run("dvc", "init", "-q")
    run("dvc", "repro", "-q", "fetch_download@far", "fetch_download@kept", "fetch@mmlu", "fetch@alpaca_data_zh_51k")
    assert Path(repository, "data/raw/instructions/far/rows.json").read_bytes() == ROWS * 2000
    seen = len(hub.requests)
    run("dvc", "repro", "-q", "fetch_download@far", "fetch_download@kept", "fetch@mmlu")
    assert len(hub.requests) == seen

    (repository / "aurora/hub/__init__.py").write_text((repository / "aurora/hub/__init__.py").read_text() + "# \n")
    ran = run("dvc", "repro", "fetch_download@far")
    assert "fetch far: 1 file" in ran  # it ran, and took what DVC's cache holds
    shutil.rmtree(repository / "data")
    run("dvc", "repro", "-q", "fetch_download@far")
    assert len(hub.requests) == seen
    hub.files["/rows.json"] = CHANGED  # which nobody asks for while DVC's cache has what was recorded
    assert "fetch kept: 1 file" in run("dvc", "repro", "fetch_download@kept")
    assert Path(repository, "data/raw/instructions/kept/rows.json").read_bytes() == ROWS
    assert len(hub.requests) == seen
    run("dvc", "remote", "add", "-q", "-d", "shared", str(tmp_path / "remote"))
    run("dvc", "push", "-q", "fetch_download@far", "fetch_download@kept")
    run("git", "add", "-A")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
    run("git", "clone", "-q", str(repository), str(tmp_path / "clone"), at=tmp_path)
    clone = tmp_path / "clone"
    run("dvc", "repro", "-q", "--pull", "--allow-missing", "fetch_download@far", at=clone)
    (clone / "stages/fetch.py").write_text((clone / "stages/fetch.py").read_text() + "# \n")
    shutil.rmtree(clone / ".dvc/cache", ignore_errors=True)
    assert "fetch far: 1 file" in run("dvc", "repro", "fetch_download@far", at=clone)  # by way of the remote
    assert len(hub.requests) == seen
    assert "fetch kept: 1 file" in run("dvc", "repro", "fetch_download@kept", at=clone)  # and the record with its bytes
    assert len(hub.requests) == seen
    md5 = hashlib.md5(ROWS).hexdigest()
    for store in (clone / ".dvc/cache", tmp_path / "remote"):  # the bytes are lost, the record is not
        for path in store.rglob(md5[2:]):
            path.unlink()
    shutil.rmtree(clone / "data")
    (clone / "stages/fetch.py").write_text((clone / "stages/fetch.py").read_text() + "# \n")
    said = run("dvc", "repro", "fetch_download@kept", at=clone, status=255)
    assert f"expected sha256 {sha256(ROWS)} of rows.json, as the first fetch recorded" in said
    hub.files["/rows.json"] = ROWS
    run("dvc", "repro", "-q", "fetch_download@kept", at=clone)
    shutil.rmtree(clone / "data")
    shutil.rmtree(clone / ".dvc/cache")
    (tmp_path / "remote").rename(tmp_path / "elsewhere")
    (clone / "stages/fetch.py").write_text((clone / "stages/fetch.py").read_text() + "# \n")
    said = run("dvc", "repro", "fetch_download@kept", at=clone, status=255)
    assert "dvc.lock names a record that is neither in DVC's cache nor in a remote" in said
    assert "dvc pull data/raw/instructions/kept" in said
    assert TOKEN not in "".join(path.read_text() for path in clone.glob("dvc.*"))
