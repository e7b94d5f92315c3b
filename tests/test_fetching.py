"""fetch against local folders and against a local server that speaks the hub's protocol."""

import hashlib
import io
import json
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from aurora import fetching
from aurora.errors import SourceError
from aurora.fetching import fetch, unpack
from aurora.params import Source

REVISION = "125c431e2ff41a156b9f9076f744d2f35dd6e67a"


def source(uri: str, **more: object) -> Source:
    """A source of any kind without the checks of params.yaml, which would refuse http://."""
    return Source.model_construct(
        **{
            "kind": "instructions",
            "uri": uri,
            "dep": "aurora/hub.py",
            "format": "alpaca",
            "licence": "MIT",
            "sha256": None,
            "git_blob": None,
            "bytes": None,
            "rows": None,
        }
        | more
    )


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    """Serves `server.files` {path: bytes} plainly, and as the hub does for repositories at REVISION."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            server.requests.append(self.path)
            path = self.path.split("?")[0]
            if path.startswith(("/api/models/", "/api/datasets/")):
                names = [
                    name.rsplit(f"/resolve/{REVISION}/", 1)[1] for name in server.files if "/resolve/" in name
                ]
                content = json.dumps(
                    {"id": "o/n", "sha": REVISION, "siblings": [{"rfilename": name} for name in names]}
                ).encode()
                if "/tree/" in path:
                    content = json.dumps(
                        [{"type": "file", "path": n, "size": 1, "oid": "0" * 40} for n in names]
                    ).encode()
            elif path in server.status:
                return self.send_error(server.status[path])
            elif path in server.files:
                content = server.files[path]
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", REVISION)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.status, server.requests = {}, {}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield server
    server.shutdown()


def test_a_local_file_is_copied_with_a_manifest(tmp_path: Path):
    (tmp_path / "rows.json").write_bytes(b"[]\n")
    manifest = fetch("own", source("rows.json"), Path("out"))
    assert (tmp_path / "out/rows.json").read_bytes() == b"[]\n"
    assert manifest["files"] == [
        {"path": "rows.json", "sha256": hashlib.sha256(b"[]\n").hexdigest(), "bytes": 3}
    ]
    assert json.loads((tmp_path / "out/manifest.json").read_text()) == manifest
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()


def test_a_missing_local_file_is_one_line_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(SourceError, match=r"sources\.own\.uri: rows\.json does not exist"):
        fetch("own", source("rows.json"), Path("out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pin", [{"sha256": "0" * 64}, {"git_blob": "0" * 40}, {"bytes": 4}])
def test_bytes_that_differ_from_their_pin_are_refused(tmp_path: Path, pin: dict):
    (tmp_path / "rows.json").write_bytes(b"[]\n")
    name, value = next(iter(pin.items()))
    with pytest.raises(SourceError, match=rf"sources\.own\.{name}: expected {value}, found"):
        fetch("own", source("rows.json", **pin), Path("out"))
    assert not (tmp_path / "out").exists()


def test_a_git_blob_id_is_git_s_own(tmp_path: Path):
    (tmp_path / "rows.json").write_bytes(b"hello\n")
    # git hash-object of a file with this line
    fetch("own", source("rows.json", git_blob="ce013625030ba8dba906f756967f9e9ca394464a"), Path("out"))


def test_a_web_file_is_downloaded_and_verified(server, tmp_path: Path):
    server.files["/rows.json"] = b"[1]"
    digest = hashlib.sha256(b"[1]").hexdigest()
    fetch("own", source(f"{server.url}/rows.json", sha256=digest), Path("out"))
    assert (tmp_path / "out/rows.json").read_bytes() == b"[1]"
    assert not (tmp_path / fetching.SCRATCH / "own").exists()
    with pytest.raises(SourceError, match="sha256: expected"):
        fetch("own", source(f"{server.url}/rows.json", sha256="1" * 64), Path("other"))
    assert not (tmp_path / "other").exists()


def test_a_missing_or_unreachable_web_file_is_one_line(server):
    with pytest.raises(SourceError, match=r"/none\.json: HTTP 404; check owner"):
        fetch("own", source(f"{server.url}/none.json"), Path("out"))
    with pytest.raises(SourceError, match=r"cannot be reached .*dvc pull"):
        fetch("own", source("http://127.0.0.1:9/rows.json"), Path("out"))


def test_a_hub_file_and_a_snapshot_come_by_huggingface_hub(server, tmp_path: Path):
    server.files[f"/datasets/o/n/resolve/{REVISION}/a/rows.jsonl"] = b"{}\n"
    fetch("own", source(f"hf://datasets/o/n@{REVISION}/a/rows.jsonl"), Path("out"))
    assert (tmp_path / "out/rows.jsonl").read_bytes() == b"{}\n"
    server.files.clear()
    for name in ("config.json", "model-00001-of-00001.safetensors", "tokenizer.model", "pytorch_model.bin"):
        server.files[f"/o/n/resolve/{REVISION}/{name}"] = name.encode()
    manifest = fetch(
        "base", source(f"hf://o/n@{REVISION}", kind="model", format="transformers"), Path("base")
    )
    assert [file["path"] for file in manifest["files"]] == [
        "config.json",
        "model-00001-of-00001.safetensors",
        "tokenizer.model",
    ]
    assert manifest["revision"] == REVISION


@pytest.mark.parametrize(("status", "remedy"), [(401, "HF_TOKEN"), (403, "licence"), (404, "check owner")])
def test_a_refusal_of_the_hub_names_its_remedy(server, status: int, remedy: str):
    server.status[f"/datasets/o/n/resolve/{REVISION}/rows.jsonl"] = status
    with pytest.raises(SourceError, match=remedy):
        fetch("own", source(f"hf://datasets/o/n@{REVISION}/rows.jsonl"), Path("out"))


def archive(kind: str, members: dict[str, bytes]) -> bytes:
    """A zip or tar file with these members."""
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as file:
            for name, data in members.items():
                file.writestr(name, data)
    else:
        with tarfile.open(fileobj=content, mode="w") as file:
            for name, data in members.items():
                item = tarfile.TarInfo(name)
                item.size = len(data)
                file.addfile(item, io.BytesIO(data))
    return content.getvalue()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_folder_of_an_archive_is_taken(kind: str, tmp_path: Path):
    members = {"data/test/a.csv": b"1", "data/dev/a.csv": b"2", "data/._dev": b"x", "readme": b"3"}
    (tmp_path / f"b.{kind}").write_bytes(archive(kind, members))
    manifest = fetch("mmlu", source(f"b.{kind}!/data", kind="benchmark", format="mmlu"), Path("out"))
    assert [file["path"] for file in manifest["files"]] == ["dev/a.csv", "test/a.csv"]


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["data/../../evil", "/data/evil", "data/..\\evil"])
def test_a_member_that_leaves_the_folder_is_refused(kind: str, name: str, tmp_path: Path):
    (tmp_path / "b").write_bytes(archive(kind, {"data/good": b"1", name: b"2"}))
    with pytest.raises(SourceError, match="leaves the folder"):
        unpack(tmp_path / "b", "", tmp_path / "out")
    assert not (tmp_path / "evil").exists()


def test_a_damaged_archive_is_one_line(tmp_path: Path):
    content = archive("zip", {"data/a": b"1" * 5000})
    (tmp_path / "b.zip").write_bytes(content[:100] + b"\0" * 50 + content[150:])
    with pytest.raises(SourceError, match="damaged archive"):
        fetch("mmlu", source("b.zip!/data"), Path("out"))
    (tmp_path / "c.zip").write_bytes(b"no archive")
    with pytest.raises(SourceError, match="neither a zip nor a tar"):
        fetch("mmlu", source("c.zip!/data"), Path("out"))
    assert not (tmp_path / "out").exists()
