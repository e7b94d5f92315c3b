"""Downloads from the hub and the web, against a server that the unmodified huggingface_hub client is shown to accept."""

import io
import json
import logging
import random
import re
from pathlib import Path
from threading import Lock

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from stand_ins.hub_server import TOKEN, Fault, LocalHub, Repository, git_blob, sha256

from aurora import hub as downloads
from aurora.core.errors import ResourceError, SourceError
from aurora.fetch.fetch import fetch
from aurora.hub import Downloaded, Unreachable, client, download, transfer
from aurora.hub.transfer import Remote
from aurora.intake.digests import Digests, Pins
from aurora.sources.source import Source
from aurora.sources.uris import Address, parse

COMMIT = "125c431e2ff41a156b9f9076f744d2f35dd6e67a"
SHARD = random.Random(2).randbytes(200_000)
MODEL = {
    "config.json": b"{}",
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer.model": b"pieces",
    "chat_template.jinja": b"[INST]",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    "model-00001-of-00002.safetensors": SHARD,
    "model-00002-of-00002.safetensors": SHARD[::-1],
}
NEVER = {
    "pytorch_model.bin": b"pickle",
    "consolidated.00.pt": b"pickle",
    "consolidated.safetensors": SHARD,
    "training_args.bin": b"pickle",
    "modeling.py": b"code",
    "onnx/config.json": b"{}",
    "README.md": b"card",
    ".gitattributes": b"",
}
NAME, DATA = f"hf://o/n@{COMMIT}", f"hf://datasets/o/n@{COMMIT}/a/rows.jsonl"
RESOLVE = f"/datasets/o/n/resolve/{COMMIT}/a/rows.jsonl"


def bring(uri: str, pins: Pins = Pins()) -> Downloaded:  # noqa: B008 (frozen)
    return download("own", uri, parse(uri), pins, Path("files"))


@pytest.fixture
def data(hub: LocalHub) -> Repository:
    hub.repositories["datasets", "o/n"] = Repository(COMMIT, {"a/rows.jsonl": SHARD, "small.json": b"{}"})
    return hub.repositories["datasets", "o/n"]


@pytest.fixture
def model(hub: LocalHub) -> Repository:
    hub.repositories["models", "o/n"] = Repository(COMMIT, MODEL | NEVER)
    return hub.repositories["models", "o/n"]


def test_the_server_is_a_hub_to_the_unmodified_client(
    hub: LocalHub, data: Repository, model: Repository, monkeypatch: pytest.MonkeyPatch
):
    snapshot_download("o/n", revision=COMMIT, local_dir="all")
    found = {
        path.relative_to("all").as_posix(): path.read_bytes()
        for path in Path("all").rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }
    assert found == MODEL | NEVER
    hf_hub_download("o/n", "a/rows.jsonl", repo_type="dataset", revision=COMMIT, local_dir="one")
    assert Path("one/a/rows.jsonl").read_bytes() == SHARD
    hub.faults[f"/storage/{sha256(SHARD)}"] = [Fault(cut_after=70_000)]
    hf_hub_download("o/n", "a/rows.jsonl", repo_type="dataset", revision=COMMIT, local_dir="two")
    assert Path("two/a/rows.jsonl").read_bytes() == SHARD
    data.gated = True
    with pytest.raises(GatedRepoError):
        hf_hub_download("o/n", "a/rows.jsonl", repo_type="dataset", revision=COMMIT, local_dir="three")
    hf_hub_download(
        "o/n", "a/rows.jsonl", repo_type="dataset", revision=COMMIT, local_dir="four", token=TOKEN
    )
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("o/none", local_dir="five")


def test_a_file_of_a_data_set_comes_with_what_the_hub_says_of_it(hub: LocalHub, data: Repository):
    got = bring(DATA)
    assert {name: digests.sha256 for name, digests in got.files.items()} == {"rows.jsonl": sha256(SHARD)}
    assert got.revision == COMMIT
    assert Path("files/rows.jsonl").read_bytes() == SHARD
    paths = [request[1] for request in hub.requests]
    assert paths == [f"/api/datasets/o/n/paths-info/{COMMIT}", RESOLVE, f"/storage/{sha256(SHARD)}"]


def test_a_snapshot_is_weights_configuration_and_tokeniser_and_no_pickle(hub: LocalHub, model: Repository):
    got = bring(NAME)
    assert list(got.files) == sorted(MODEL)
    for name, content in MODEL.items():
        assert (Path("files") / name).read_bytes() == content
    assert sorted(path.name for path in Path("files").iterdir()) == sorted(MODEL)


@pytest.mark.parametrize(
    "name", ["../evil.json", "/evil.json", "a/../../evil.json", "..\\evil.json", ".evil.json"]
)
def test_names_from_a_server_are_not_trusted(hub: LocalHub, model: Repository, name: str):
    model.files = MODEL | {name: b"evil"}
    assert list(bring(NAME).files) == sorted(MODEL)
    assert not [path for path in Path.cwd().parent.rglob("*evil*") if "test_names" not in path.name]


def test_a_model_without_safetensors_or_with_a_missing_shard_is_refused(hub: LocalHub, model: Repository):
    model.files = {"config.json": b"{}", "pytorch_model.bin": SHARD}
    with pytest.raises(
        SourceError, match=r"holds no \*\.safetensors, and weights in pickle form are not taken"
    ):
        bring(NAME)
    model.files = {name: content for name, content in MODEL.items() if "00002-of" not in name}
    with pytest.raises(
        SourceError, match=r"names 'model-00002-of-00002\.safetensors', which the repository lacks"
    ):
        bring(NAME)
    for index in (
        b"[]",
        b"{",
        b'{"weight_map": {"a": []}}',
        b'{"weight_map": {"a": 1, "b": "c"}}',
        b"[" * 100_000,
    ):
        model.files = MODEL | {"model.safetensors.index.json": index}
        with pytest.raises(SourceError, match="is no index"):
            bring(NAME)


@pytest.mark.parametrize("pin", ["bytes", "sha256"])
def test_a_pin_that_contradicts_the_hub_costs_no_byte(hub: LocalHub, data: Repository, pin: str):
    pins = Pins(bytes=3) if pin == "bytes" else Pins(sha256="0" * 64)
    with pytest.raises(SourceError, match=rf"{DATA}: expected {pin} \w+, found \w+ on the hub"):
        bring(DATA, pins)
    assert hub.count(RESOLVE) == 0


def test_bytes_that_the_hub_itself_would_disown_are_refused(hub: LocalHub, data: Repository):
    hub.faults[f"/storage/{sha256(SHARD)}"] = [Fault(flips=9), Fault(flips=8)]
    with pytest.raises(SourceError, match=f"expected sha256 {sha256(SHARD)}, found "):
        bring(DATA)
    uri = f"hf://datasets/o/n@{COMMIT}/small.json"
    hub.faults[f"/datasets/o/n/resolve/{COMMIT}/small.json"] = [Fault(flips=0), Fault(flips=1)]
    with pytest.raises(SourceError, match=f"expected git_blob {git_blob(b'{}')}, found "):
        bring(uri)
    assert list(Path("files").iterdir()) == []


def test_a_branch_is_resolved_to_its_commit_and_another_commit_is_refused(hub: LocalHub, data: Repository):
    data.branches["main"] = COMMIT
    assert bring("hf://datasets/o/n@main/a/rows.jsonl").revision == COMMIT
    hub.repositories["models", "o/n"] = Repository("a" * 40, MODEL, branches={COMMIT: "b" * 40})
    with pytest.raises(SourceError, match=f"the hub answers with commit '{'b' * 40}'"):
        bring(NAME)


REFUSALS = [
    ({"gated": True}, None, DATA, "HTTP 401; accept its licence on https://huggingface.co/datasets/o/n .* set HF_TOKEN"),
    ({"gated": True}, "hf_stranger", DATA, "HTTP 403; accept its licence on .* with the account of HF_TOKEN"),
    ({"private": True}, None, DATA, "HTTP 401; set HF_TOKEN to a token that may read it"),
    ({"private": True}, "hf_stranger", DATA, "HTTP 401; HF_TOKEN is not accepted here: renew it"),
    ({}, "hf_expired", DATA, "HTTP 401; HF_TOKEN is not accepted here: renew it"),
    ({}, TOKEN, DATA.replace("o/n", "o/none"), "HTTP 404; check owner and name"),
    ({}, None, DATA.replace(COMMIT, "0" * 40), "HTTP 404; check revision"),
    ({}, None, DATA.replace("rows", "lines"), "HTTP 404; check path"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "token", "uri", "message"), REFUSALS)
def test_a_refusal_is_said_once_with_its_remedy(
    hub: LocalHub,
    data: Repository,
    monkeypatch: pytest.MonkeyPatch,
    kind: dict,
    token: str | None,
    uri: str,
    message: str,
):
    for key, value in kind.items():
        setattr(data, key, value)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceError, match=message) as caught:
        bring(uri)
    assert str(caught.value).startswith(uri)
    paths = [request[1] for request in hub.requests]
    assert len(paths) == len(set(paths)) <= 2  # nothing was asked twice


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "https:// sources never send"),
        (403, "https:// sources never send"),
        (404, "check host, path and revision"),
    ],
)
def test_a_refusal_of_the_web_is_said_once_with_its_remedy(hub: LocalHub, status: int, message: str):
    hub.files["/rows.json"] = b"[]"
    hub.faults["/rows.json"] = [Fault(status=status)]
    with pytest.raises(SourceError, match=f"{hub.url}/rows.json: HTTP {status}; .*{message}"):
        bring(f"{hub.url}/rows.json")
    assert len(hub.requests) == 1


def test_the_hub_s_api_is_asked_again_when_it_falters(
    hub: LocalHub, data: Repository, monkeypatch: pytest.MonkeyPatch
):
    answer, left = type(data).entry, [503, 500]

    def faltering(self: Repository, path: str) -> dict:
        if left:
            raise ConnectionResetError(left.pop())
        return answer(self, path)

    monkeypatch.setattr(type(data), "entry", faltering)
    assert list(bring(DATA).files) == ["rows.jsonl"]
    assert hub.count(f"/api/datasets/o/n/paths-info/{COMMIT}", "POST") == 3
    monkeypatch.setattr(type(data), "entry", lambda self, path: {"type": "file"})
    with pytest.raises(SourceError, match="the hub's answer is not understood"):
        bring(DATA)


def test_a_token_comes_from_the_environment_and_goes_to_the_hub_alone(
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
    hub.faults[f"/storage/{sha256(SHARD)}"] = [Fault(cut_after=70_000), Fault(status=500)]
    bring(DATA)
    hub.files["/rows.json"] = b"[]"
    bring(f"{hub.url}/rows.json")
    for _, path, headers in hub.requests[1:]:
        sent = {key.lower(): value for key, value in headers.items()}.get("authorization")
        assert sent == (f"Bearer {TOKEN}" if "o/n" in path else None), path
    hub.faults[f"/storage/{sha256(SHARD)}"] = [Fault(status=404)]
    (Path("files") / "rows.jsonl").unlink()
    with pytest.raises(SourceError) as caught:
        bring(DATA)
    said = str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert TOKEN not in said
    assert "X-Amz-Signature" not in str(caught.value)


def test_a_signed_address_behind_a_redirect_is_in_no_log_error_or_file(
    hub: LocalHub, data: Repository, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture,
):  # fmt: skip
    caplog.set_level(logging.DEBUG)
    storage = f"/storage/{sha256(SHARD)}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.faults[storage] = [Fault(cut_after=70_000), Fault(status=500), Fault(flips=199_000)]
    own = Source(kind="instructions", uri=DATA, dep="aurora/hub", format="alpaca", licence="MIT")
    said = json.dumps(fetch("own", own, Path("out")))
    assert hub.count(storage) == 4
    for fault in (
        [Fault(status=404)], [Fault(status=503)] * 9, [Fault(cut_after=0)] * 9, [Fault(flips=1), Fault(flips=1)],
        [Fault(claims=9)] * 9, [Fault(status=302, headers={"Location": "http://h.org/x?X-Amz-Signature=signed"})],
        [Fault(status=302, headers={"Location": f"{storage}?X-Amz-Signature=signed"})] * 9,
        [Fault(status=302, headers={"Location": "https://user:signed@10.0.0.1/"})],
    ):  # fmt: skip
        hub.faults[storage] = list(fault)
        Path("out/rows.jsonl").unlink(missing_ok=True)
        with pytest.raises(SourceError) as caught:
            fetch("own", own, Path("out"))
        said += str(caught.value)
        said += "".join(
            path.read_text(errors="replace") for path in Path().rglob("*") if path.suffix in (".tag", ".json")
        )
    said += caplog.text + "".join(capfd.readouterr())
    assert "signed" not in said
    assert "X-Amz" not in said
    assert TOKEN not in said


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
    ],
)
def test_surroundings_that_allow_no_client_are_one_line(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, name: str, value: str
):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv(name, value)
    for uri in (DATA, f"{hub.url}/rows.json"):
        with pytest.raises(
            SourceError, match=r"no HTTP client can be made \(\w+\); correct HTTPS_PROXY"
        ) as caught:
            bring(uri)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["h", "https://a..org", f"https://{'a' * 64}.org", "https://\u2603.org", "https://[v1.a]"]
)
@pytest.mark.parametrize("uri", [DATA, NAME])
def test_an_endpoint_that_is_no_address_is_one_line(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch, endpoint: str, uri: str
):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(SourceError, match=rf"^{uri}: .*HF_ENDPOINT"):
        bring(uri)


@pytest.mark.parametrize("host", ["\u2603.org", "256.256.256.256", "xn--a\u0080.org", "a..org", "a" * 64])
def test_a_host_that_no_client_takes_is_one_line(hub: LocalHub, host: str):
    address = Address("https", f"https://{host}/rows.json")
    with pytest.raises(SourceError, match=r"^https://odd/rows: .*; correct the uri in params\.yaml"):
        download("own", "https://odd/rows", address, Pins(), Path("files"))
    assert list(Path("files").iterdir()) == []


@pytest.mark.parametrize(
    "entry",
    [
        {"size": "many"}, {"size": -1}, {"size": 1.5}, {"size": 10**30}, {"oid": "../../x"}, {"oid": "a" * 39},
        {"lfs": {"oid": "x", "size": 200_000, "pointerSize": 1}}, {"lfs": {"oid": "a" * 64, "size": "y", "pointerSize": 1}},
        {"lfs": []}, {"lfs": "x"}, {"type": "link"}, {"path": ["a/rows.jsonl"]},
    ],
)  # fmt: skip
def test_what_a_hub_says_of_a_file_is_not_trusted(
    hub: LocalHub, data: Repository, monkeypatch: pytest.MonkeyPatch, entry: dict
):
    answer = type(data).entry
    monkeypatch.setattr(type(data), "entry", lambda self, path: answer(self, path) | entry)
    uri = DATA if entry.keys() & {"lfs", "type", "path"} else DATA.replace("a/rows.jsonl", "small.json")
    with pytest.raises(SourceError, match=f"^{uri}: ") as caught:
        bring(uri)
    assert "\n" not in str(caught.value)
    assert not Path("files").exists() or list(Path("files").iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 300 + ".safetensors", "a.json\n", "\u202ea.json", "con\0.json"])
def test_an_odd_name_of_a_server_writes_nothing(hub: LocalHub, model: Repository, name: str):
    model.files = {**MODEL, name: SHARD}
    own = Source(kind="model", uri=NAME, dep="aurora/hub", format="transformers", licence="MIT")
    try:
        assert name not in [file["path"] for file in fetch("own", own, Path("out"))["files"]]
    except SourceError as error:
        assert str(error).startswith("sources.own: ") and "name too long; give a shorter name" in str(error)


def test_github_is_asked_for_raw_bytes_and_nobody_for_packed_ones(hub: LocalHub):
    hub.files["/repos/o/n/git/blobs/1"] = b"[]"
    bring(f"{hub.url}/repos/o/n/git/blobs/1")
    sent = {key.lower(): value for key, value in hub.requests[-1][2].items()}
    assert sent["accept"].split(",")[0] == "application/vnd.github.raw"
    assert sent["accept-encoding"] == "identity"


def test_offline_no_connection_is_tried(hub: LocalHub, data: Repository, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for uri in (DATA, NAME, f"{hub.url}/rows.json"):
        with pytest.raises(Unreachable, match=f"{uri}: is not here, and HF_HUB_OFFLINE forbids the network"):
            bring(uri)
    assert hub.requests == []


def test_files_come_side_by_side_within_a_bound(
    hub: LocalHub, model: Repository, monkeypatch: pytest.MonkeyPatch
):
    active, peaks, counting = set(), [], Lock()

    def counted(remote: Remote, target: Path, *rest: object) -> Digests:
        with counting:
            active.add(target)
            peaks.append(len(active))
        try:
            return transfer.bring(remote, target, *rest)
        finally:
            with counting:
                active.remove(target)

    monkeypatch.setattr(downloads, "PARALLEL", 3)
    monkeypatch.setattr(downloads, "bring", counted)
    for name in MODEL:
        hub.faults[f"/o/n/resolve/{COMMIT}/{name}"] = [Fault(stalls=0.1)]
    bring(NAME)
    assert max(peaks) == 3
    assert len(peaks) == len(MODEL)


def test_progress_counts_every_byte_once_towards_the_total(
    hub: LocalHub, model: Repository, monkeypatch: pytest.MonkeyPatch
):
    bars = []

    class Bar(downloads.tqdm):
        def __init__(self, *rest: object, **more: object) -> None:
            super().__init__(*rest, **more | {"delay": 0, "mininterval": 0, "file": io.StringIO()})
            bars.append(self)

    monkeypatch.setattr(downloads, "tqdm", Bar)
    hub.faults[f"/storage/{sha256(SHARD)}"] = [
        Fault(cut_after=70_000),
        Fault(status=500),
        Fault(ignores_ranges=True),
    ]
    bring(NAME)
    size = sum(map(len, MODEL.values()))
    (bar,) = bars
    assert (bar.total, bar.n) == (size, size)
    shown = bar.fp.getvalue()
    assert "fetch own" in shown
    assert re.search(r"kB/s|MB/s|B/s", shown)


def test_the_first_failure_stops_the_rest_and_keeps_what_has_come(hub: LocalHub, model: Repository):
    hub.faults[f"/storage/{sha256(SHARD)}"] = [Fault(stalls=1)]
    hub.faults[f"/o/n/resolve/{COMMIT}/config.json"] = [
        Fault(status=404, headers={"X-Error-Code": "EntryNotFound"}, stalls=0.4)
    ]
    with pytest.raises(SourceError, match="HTTP 404; check path"):
        bring(NAME)
    hub.requests.clear()
    bring(NAME)
    assert f"/storage/{sha256(SHARD)}" in {path for _, path, headers in hub.requests if "Range" in headers}


def test_a_disk_that_is_too_small_for_all_files_is_said_first(
    hub: LocalHub, model: Repository, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(downloads, "room", lambda folder: 300_000)
    with pytest.raises(ResourceError, match=r"400,\d\d\d bytes are to come, 300,000 are free"):
        bring(NAME)
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/a/rows.json", "rows.json"),
        ("/a/rows.json?download=true", "rows.json"),
        ("/a/%2e%2e%2f..%2fevil", "evil"),
        ("/a/.hidden", "_hidden"),
        ("/a/数据.json", "数据.json"),
        ("/a/b%0Ac", "b_c"),
        ("/a/", "a"),
        ("/" + "x" * 300, "x" * 80),
        ("/" + "\U00020000" * 80, "\U00020000" * 50),
        ("/a." + "x" * 79, "_" + "x" * 79),
    ],
)
def test_a_web_file_is_named_by_the_address_in_params(url: str, name: str):
    assert downloads._web_name(f"https://h.org{url}") == name


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://127.0.0.1:1/x", "redirects from https:// to http://; not followed"),
        ("file:///etc/passwd", "redirects from https:// to file://; not followed"),
        ("ftp://h.org/x", "redirects from https:// to ftp://; not followed"),
        ("https://[::1/x", "redirects to a malformed address; not followed"),
        ("https://h.org:x/x", "redirects to a malformed address; not followed"),
        ("https://10.0.0.1/x", "redirects to 10.0.0.1, a private address; not followed"),
        ("https://169.254.169.254/latest", "redirects to 169.254.169.254, a link_local address"),
        ("https://[fd00::1]/x", "redirects to fd00::1, a private address"),
        ("https://0.0.0.0/x", "redirects to 0.0.0.0, a unspecified address"),
        ("https://100.64.0.1/x", "redirects to 100.64.0.1, a private address"),
    ],
)
def test_a_redirect_to_another_scheme_or_kind_of_address_is_refused(hub: LocalHub, target: str, message: str):
    hub.redirects["/rows.json"] = target
    with pytest.raises(SourceError) as caught:
        bring(f"{hub.url}/rows.json")
    assert message in str(caught.value)
    assert len(hub.requests) == 1
    assert list(Path("files").iterdir()) == []


def test_a_redirect_within_loopback_is_followed_but_not_for_ever(hub: LocalHub):
    hub.files["/b"] = b"[]"
    hub.redirects["/a"] = f"{hub.storage_url}/b"
    assert list(bring(f"{hub.url}/a").files) == ["a"]
    hub.redirects["/a"] = f"{hub.url}/a"
    with pytest.raises(SourceError, match="TooManyRedirects"):
        bring(f"{hub.url}/a?again")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "[::1]", "10.1.2.3", "[::ffff:10.1.2.3]"]
)
def test_a_public_server_may_not_send_into_the_network(monkeypatch: pytest.MonkeyPatch, host: str):
    resolve = client.socket.getaddrinfo
    monkeypatch.setattr(
        client.socket, "getaddrinfo",
        lambda name, *rest, **more: resolve("93.184.216.34" if name == "public.org" else name, *rest, **more),
    )  # fmt: skip
    assert client.kinds("public.org") == {"public"}
    request = client.httpx2.Request("GET", "https://public.org/x")
    response = client.httpx2.Response(
        302, headers={"Location": f"https://{host}/x?secret=1"}, request=request
    )
    with pytest.raises(SourceError, match=r"public\.org redirects to .* address; not followed") as caught:
        client.refuse_redirect(response)
    assert "secret" not in str(caught.value)
    response.headers["Location"] = "/elsewhere"
    client.refuse_redirect(response)


def test_no_home_folder_is_written(hub: LocalHub, data: Repository, model: Repository):
    home = Path(constants.HF_HOME).expanduser()
    before = sorted(home.rglob("*")) if home.is_dir() else None
    bring(DATA), bring(NAME)
    assert (sorted(home.rglob("*")) if home.is_dir() else None) == before
