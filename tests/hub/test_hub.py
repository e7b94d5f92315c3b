"""Downloads by huggingface_hub itself, against a server that speaks the hub's protocol and has faults on demand."""

import json
import logging
import random
import re
import socket
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from stand_ins.hub_server import TOKEN, Fault, LocalHub, Repository, git_blob, sha256

from aurora import hub as downloads
from aurora.core.errors import ResourceError, SourceError
from aurora.fetch.fetch import fetch
from aurora.hub import Unreachable, download
from aurora.intake.digests import Pins
from aurora.sources.source import Source
from aurora.sources.uris import Address, parse

COMMIT = "125c431e2ff41a156b9f9076f744d2f35dd6e67a"
SHARD = random.Random(2).randbytes(200_000)
OTHER = SHARD[::-1]
MODEL = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"[INST]",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": SHARD,
    "model-00002-of-00002.safetensors": OTHER,
}
NEVER = {
    "pytorch_model.bin": b"pickle",
    "consolidated.00.pt": b"pickle",
    "consolidated.safetensors": SHARD,
    "modeling.py": b"code",
    "onnx/config.json": b"{}",
    "README.md": b"card",
    ".gitattributes": b"",
}
NAME, DATA = f"hf://o/n@{COMMIT}", f"hf://datasets/o/n@{COMMIT}/a/rows.jsonl"
STORED, WEB = f"/storage/{sha256(SHARD)}", "/raw/rows.json"
PINNED = Pins(sha256=sha256(SHARD))


def bring(uri: str, pins: Pins = Pins()) -> tuple[dict[str, Pins], str | None]:  # noqa: B008 (frozen)
    return download(uri, parse(uri), pins, Path("files"))


def here(name: str) -> list[bytes]:
    """What files of this name hold, but for the library's notes."""
    found = sorted(Path("files").rglob(name))
    return [path.read_bytes() for path in found if path.is_file() and ".cache" not in path.parts]


@pytest.fixture
def data(hub: LocalHub) -> Repository:
    hub.repositories["datasets", "o/n"] = Repository(COMMIT, {"a/rows.jsonl": SHARD, "small.json": b"{}"})
    return hub.repositories["datasets", "o/n"]


@pytest.fixture
def model(hub: LocalHub) -> Repository:
    hub.repositories["models", "o/n"] = Repository(COMMIT, MODEL | NEVER)
    return hub.repositories["models", "o/n"]


def test_the_server_is_a_hub_to_the_unmodified_client(hub: LocalHub, data: Repository, model: Repository):
    snapshot_download("o/n", revision=COMMIT, local_dir="all")
    found = {
        path.relative_to("all").as_posix(): path.read_bytes()
        for path in Path("all").rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }
    assert found == MODEL | NEVER
    hub.faults[STORED] = [Fault(cut_after=70_000)]
    wanted = {"repo_id": "o/n", "filename": "a/rows.jsonl", "repo_type": "dataset", "revision": COMMIT}
    hf_hub_download(local_dir="one", **wanted)
    assert Path("one/a/rows.jsonl").read_bytes() == SHARD
    data.gated = True
    with pytest.raises(GatedRepoError):
        hf_hub_download(local_dir="two", **wanted)
    hf_hub_download(local_dir="three", token=TOKEN, **wanted)
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("o/none", local_dir="four")


def test_a_file_of_a_data_set_comes_with_what_the_hub_says_of_it(hub: LocalHub, data: Repository):
    data.branches["main"] = COMMIT
    for uri in (DATA, DATA.replace(COMMIT, "main")):
        files, revision = bring(uri)
        assert {name: found.sha256 for name, found in files.items()} == {"a/rows.jsonl": sha256(SHARD)}
        assert revision == COMMIT
    assert here("rows.jsonl") == [SHARD]
    assert hub.count(STORED) == 1  # the second call found it whole


def test_a_snapshot_is_weights_configuration_and_tokeniser_and_no_pickle(hub: LocalHub, model: Repository):
    home = Path(constants.HF_HOME).expanduser()
    before = sorted(home.rglob("*")) if home.is_dir() else None
    assert list(bring(NAME)[0]) == sorted(MODEL)
    found = {path.name: path.read_bytes() for path in Path("files").iterdir() if path.is_file()}
    assert found == MODEL
    assert not [path for path in Path("files").rglob("*") if path.name in NEVER and path.is_file()]
    assert (sorted(home.rglob("*")) if home.is_dir() else None) == before  # nothing is kept twice


@pytest.mark.parametrize(
    "name", ["../evil.json", "/evil.json", "a/../../evil.json", "..\\evil.json", ".evil.json", "evil.json\n", "\u202eevil.json"]
)  # fmt: skip
def test_names_from_a_server_are_not_trusted(hub: LocalHub, model: Repository, name: str):
    model.files = MODEL | {name: b"evil"}
    assert list(bring(NAME)[0]) == sorted(MODEL)
    assert not [path for path in Path.cwd().parent.rglob("*evil*") if "test_names" not in path.name]


def test_a_model_without_safetensors_or_with_a_missing_shard_is_refused(hub: LocalHub, model: Repository):
    model.files = {"config.json": b"{}", "pytorch_model.bin": SHARD}
    with pytest.raises(SourceError, match=r"holds no \*\.safetensors, and weights in pickle form"):
        bring(NAME)
    model.files = {name: content for name, content in MODEL.items() if "00002-of" not in name}
    model.commit = "b" * 40
    missing = r"names 'model-00002-of-00002\.safetensors', which the repository lacks"
    with pytest.raises(SourceError, match=missing):
        bring(f"hf://o/n@{'b' * 40}")
    for number, index in enumerate((b"[]", b"{", b'{"weight_map": {"a": []}}', b"[" * 100_000)):
        model.files = MODEL | {"model.safetensors.index.json": index}
        model.commit = str(number) * 40
        with pytest.raises(SourceError, match="is no index"):
            bring(f"hf://o/n@{model.commit}")


@pytest.mark.parametrize("pin", ["bytes", "sha256"])
def test_a_pin_that_contradicts_the_hub_costs_no_byte(hub: LocalHub, data: Repository, pin: str):
    pins = Pins(bytes=3) if pin == "bytes" else Pins(sha256="0" * 64)
    with pytest.raises(SourceError, match=rf"{DATA}: expected {pin} \w+, found .* on the hub"):
        bring(DATA, pins)
    assert hub.count(STORED) == 0


def test_wrong_bytes_are_refused_removed_and_brought_again(hub: LocalHub, data: Repository):
    hub.faults[STORED] = [Fault(flips=9)]
    with pytest.raises(SourceError, match=f"{DATA}: .*expected sha256 {sha256(SHARD)}, found "):
        bring(DATA)
    small = f"hf://datasets/o/n@{COMMIT}/small.json"
    hub.faults[f"/datasets/o/n/resolve/{COMMIT}/small.json"] = [Fault(flips=0)]
    with pytest.raises(SourceError, match=f"expected git_blob {git_blob(b'{}')}, found "):
        bring(small)
    hub.files[WEB], hub.faults[WEB] = SHARD, [Fault(flips=9)]
    with pytest.raises(SourceError, match=f"{WEB}: .*expected sha256 {sha256(SHARD)}, found "):
        bring(hub.url + WEB, PINNED)
    assert here("*.json*") == []
    for uri, pins in ((DATA, Pins()), (small, Pins()), (hub.url + WEB, PINNED)):
        bring(uri, pins)
    assert (here("rows.jsonl"), here("small.json"), here("rows.json")) == ([SHARD], [b"{}"], [SHARD])


REFUSALS = [
    ({"gated": True}, None, DATA, "HTTP 401; accept its licence on https://huggingface.co/datasets/o/n .* set HF_TOKEN"),
    ({"gated": True}, "hf_stranger", DATA, "HTTP 403; accept its licence on .* with the account of HF_TOKEN"),
    ({"private": True}, None, DATA, "HTTP 401; set HF_TOKEN to a token that may read it"),
    ({"private": True}, "hf_stranger", DATA, "HTTP 401; HF_TOKEN is not accepted here: renew it"),
    ({}, "hf_expired", DATA, "HTTP 401; HF_TOKEN is not accepted here: renew it"),
    ({}, TOKEN, DATA.replace("o/n", "o/none"), "HTTP 404; check owner and name"),
    ({}, None, DATA.replace(COMMIT, "0" * 40), "HTTP 404; check revision"),
    ({}, None, DATA.replace("rows", "lines"), "has no such file at this commit; check path"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "token", "uri", "message"), REFUSALS)
def test_a_refusal_is_said_once_with_its_remedy(
    hub: LocalHub, data: Repository, monkeypatch: pytest.MonkeyPatch, kind: dict, token: str | None, uri: str, message: str
):  # fmt: skip
    for key, value in kind.items():
        setattr(data, key, value)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceError, match=message) as caught:
        bring(uri)
    assert str(caught.value).startswith(uri) and not isinstance(caught.value, Unreachable)
    assert len(hub.requests) <= 3


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "https:// sources never send"), (403, "https:// sources never send"), (404, "check host, path and"), (451, "correct the uri")],
)  # fmt: skip
def test_a_refusal_of_the_web_is_said_once_with_its_remedy(hub: LocalHub, status: int, message: str):
    hub.files[WEB], hub.faults[WEB] = SHARD, [Fault(status=status)]
    with pytest.raises(SourceError, match=f"{WEB}: HTTP {status}; .*{message}"):
        bring(hub.url + WEB, PINNED)
    assert len(hub.requests) == 1


SURVIVED = {
    "cut": [Fault(cut_after=70_000)],
    "cut before the first byte, then often": [Fault(cut_after=0), *[Fault(cut_after=40_000)] * 4],
    "cut, then ranges ignored": [Fault(cut_after=70_000), Fault(ignores_ranges=True)],
    "429 with a pause": [Fault(status=429, headers={"Retry-After": "0"})],
    "cut, then 500": [Fault(cut_after=70_000), Fault(status=500)],
    "408, then 503, then 500": [Fault(status=408), Fault(status=503), Fault(status=500)],
    "rate limit as 403": [Fault(status=403, headers={"X-RateLimit-Remaining": "0"})],
}


@pytest.mark.parametrize("faults", SURVIVED.values(), ids=SURVIVED)
@pytest.mark.parametrize("where", ["hub", "web"])
def test_a_fault_is_survived(hub: LocalHub, data: Repository, faults: list[Fault], where: str):
    hub.files[WEB] = SHARD
    path, uri = (STORED, DATA) if where == "hub" else (WEB, hub.url + WEB)
    hub.faults[path] = list(faults)
    files, _ = bring(uri, PINNED)
    assert here("rows.json*") == [SHARD]
    assert [found.sha256 for found in files.values()] == [sha256(SHARD)]
    assert not hub.faults[path]  # each was met


def test_what_came_whole_is_kept_and_the_rest_brought_later(hub: LocalHub, model: Repository):
    other = f"/storage/{sha256(OTHER)}"
    hub.faults[other] = [Fault(status=503)] * 3
    with pytest.raises(Unreachable, match=f"^{NAME}: HTTP 503; run again later: files that came whole are kept"):
        bring(NAME)
    assert hub.count(other) == 3
    bring(NAME)
    assert hub.count(STORED) == 1
    assert {path.name: path.read_bytes() for path in Path("files").iterdir() if path.is_file()} == MODEL


def test_an_interrupted_web_file_goes_on_where_a_hash_can_tell(hub: LocalHub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)  # bytes that the library writes at once
    hub.files[WEB], cut = SHARD, [Fault(cut_after=150_000), *[Fault(cut_after=0)] * 99]
    hub.faults[WEB] = list(cut)
    with pytest.raises(Unreachable, match="connection failed"):
        bring(hub.url + WEB, PINNED)
    (part,) = here("rows.json")
    assert 0 < len(part) <= 150_000
    hub.faults[WEB], hub.requests = [], []
    bring(hub.url + WEB, PINNED)
    assert [headers["Range"] for *_, headers in hub.requests] == [f"bytes={len(part)}-"]
    assert here("rows.json") == [SHARD]
    bring(hub.url + WEB, PINNED)
    assert len(hub.requests) == 1
    bring(hub.url + WEB)  # without a hash nothing tells versions apart: it begins anew
    assert "Range" not in hub.requests[-1][2]
    Path("files/rows.json").write_bytes(SHARD + b"of another version")
    bring(hub.url + WEB, PINNED)
    assert here("rows.json") == [SHARD]


def test_a_token_is_the_environment_s_goes_to_the_hub_alone_and_no_signature_is_shown(
    hub: LocalHub, data: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture,
):  # fmt: skip
    caplog.set_level(logging.DEBUG)
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    data.private = True
    with pytest.raises(SourceError, match="set HF_TOKEN"):
        bring(DATA)
    assert not any("authorization" in {key.lower() for key in headers} for *_, headers in hub.requests)
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    hub.requests = []
    own = Source(kind="instructions", uri=DATA, format="alpaca", licence="MIT")
    hub.faults[STORED] = [Fault(cut_after=70_000), Fault(status=408), Fault(status=500)]
    said = json.dumps(fetch("own", own, Path("out")))
    assert hub.count(STORED) == 4
    hub.files[WEB] = SHARD
    bring(hub.url + WEB, PINNED)
    for _, path, headers in hub.requests:
        sent = {key.lower(): value for key, value in headers.items()}.get("authorization")
        assert sent == (f"Bearer {TOKEN}" if "o/n" in path else None), path
    signed = "X-Amz-Signature=signed"
    for fault in (
        [Fault(status=404)], [Fault(status=503)] * 9, [Fault(cut_after=0)] * 99, [Fault(flips=1)],
        [Fault(status=302, headers={"Location": f"{STORED}?{signed}"})] * 99,
        [Fault(status=302, headers={"Location": f"ftp://user:signed@10.0.0.1/?{signed}"})] * 9,
    ):  # fmt: skip
        hub.faults[STORED] = list(fault)
        Path("out/rows.jsonl").unlink(missing_ok=True)
        with pytest.raises(SourceError) as caught:
            fetch("own", own, Path("out"))
        assert "\n" not in str(caught.value)
        said += str(caught.value) + "".join(path.read_text(errors="replace") for path in Path().rglob("*.json"))
    said += caplog.text + "".join(capfd.readouterr())
    for secret in ("signed", "X-Amz", TOKEN):
        assert secret not in said


@pytest.mark.parametrize("token", ["hf_a b", "hf_a\nb", "hf_密", "hf_\x7f"])
def test_a_token_that_no_header_can_hold_is_one_line_without_it(
    hub: LocalHub, data: Repository, monkeypatch: pytest.MonkeyPatch, token: str
):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceError, match="HF_TOKEN holds a space, a line end") as caught:
        bring(DATA)
    assert token not in str(caught.value)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTPS_PROXY", "foo://user:s3cret@h"),
        ("HTTPS_PROXY", "http://user:s3cret@[::1"),
        ("SSL_CERT_FILE", "s3cret/none.pem"),
        ("SSL_CERT_FILE", __file__),
        ("ENDPOINT", "https://s3cret:x@a..org"),
        ("ENDPOINT", "https://[v1.a]"),
    ],
)
def test_surroundings_that_allow_no_connection_are_one_line(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, name: str, value: str
):
    if name == "ENDPOINT":
        monkeypatch.setattr(constants, "ENDPOINT", value)
    else:
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.setenv(name, value)
    for uri in (DATA, NAME, *([hub.url + WEB] if name != "ENDPOINT" else [])):
        with pytest.raises(SourceError, match=rf"^{uri}: .*(HTTPS_PROXY|SSL_CERT_FILE)") as caught:
            bring(uri)
        assert "s3cret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_host_or_server_that_does_not_answer_is_one_line(hub: LocalHub, monkeypatch: pytest.MonkeyPatch):
    for host in ("\u2603.org", "256.256.256.256", "a..org", "a" * 64, hub.url.removeprefix("https://")):
        monkeypatch.setenv("SSL_CERT_FILE", "") if host in hub.url else None
        with pytest.raises(SourceError, match=r"^https://odd/rows: ") as caught:
            download("https://odd/rows", Address("https", f"https://{host}/rows.json"), Pins(), Path("files"))
        assert "\n" not in str(caught.value)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unreachable, match=r"connection failed \(ConnectError\); run again later"):
            bring(f"https://127.0.0.1:{closed.getsockname()[1]}/x", PINNED)


@pytest.mark.parametrize(
    "entry",
    [
        {"size": "many"}, {"size": -1}, {"size": 10**30}, {"oid": "../../x"}, {"oid": "a\x1b]0;b\n"}, {"type": "link"},
        {"lfs": {"oid": "x", "size": 200_000, "pointerSize": 1}}, {"lfs": []}, {"lfs": "x"}, {"path": ["a/rows.jsonl"]},
    ],
)  # fmt: skip
def test_what_a_hub_says_of_a_file_is_not_trusted(
    hub: LocalHub, data: Repository, monkeypatch: pytest.MonkeyPatch, entry: dict
):
    answer = type(data).entry
    monkeypatch.setattr(type(data), "entry", lambda self, path: answer(self, path) | entry)
    uri = DATA if entry.keys() & {"lfs", "type", "path"} else DATA.replace("a/rows.jsonl", "small.json")
    with pytest.raises((SourceError, ResourceError), match=f"^{uri}: ") as caught:
        bring(uri)
    assert str(caught.value).isprintable()
    assert here("rows.jsonl") + here("small.json") == []


def test_github_is_asked_for_raw_bytes_and_nobody_for_compressed_ones(hub: LocalHub):
    hub.files["/repos/o/n/git/blobs/1"] = b"[]"
    bring(f"{hub.url}/repos/o/n/git/blobs/1")
    sent = {key.lower(): value for key, value in hub.requests[-1][2].items()}
    assert sent["accept"].split(",")[0] == "application/vnd.github.raw"
    assert sent["accept-encoding"] == "identity"


def test_offline_no_connection_is_tried(hub: LocalHub, data: Repository, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for uri in (DATA, NAME, DATA.replace(COMMIT, "main"), hub.url + WEB):
        with pytest.raises(Unreachable, match=f"{uri}: is not here, and HF_HUB_OFFLINE forbids the network"):
            bring(uri)
    assert hub.requests == []


def test_a_disk_that_is_too_small_for_all_files_is_said_first(
    hub: LocalHub, model: Repository, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(downloads, "free_bytes", lambda folder: 300_000)
    with pytest.raises(ResourceError, match=r"400,\d\d\d bytes are to come, 300,000 are free"):
        bring(NAME)
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/a/rows.json?download=true", "rows.json"),
        ("/a/%2e%2e%2f..%2fevil", "evil"),
        ("/a/.hidden", "_hidden"),
        ("/a/数据.json", "数据.json"),
        ("/a/b%0Ac/", "b_c"),
        ("/" + "x" * 300, "x" * 80),
        ("/" + "\U00020000" * 80, "\U00020000" * 50),
    ],
)
def test_a_web_file_is_named_by_the_address_in_params(hub: LocalHub, url: str, name: str):
    from urllib.parse import unquote, urlsplit

    hub.files[unquote(urlsplit(url).path)] = SHARD
    assert list(bring(hub.url + url, PINNED)[0]) == [name]
    assert re.fullmatch(r"[\w.-]+", name)
