"""Downloads by huggingface_hub: a file or a snapshot of the hub, or a file at an https:// address.

Resuming, retries, proxies, certificates and Xet are the library's. This room says what to bring, holds it against the
pins and against what the hub says of each file, keeps the rule of the token, and puts each refusal into one line.
"""

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoFile

from aurora.core.errors import AuroraError, ResourceError, SourceError, out_of_disk
from aurora.core.files import remove
from aurora.intake.digests import Pins, measure
from aurora.intake.disk import disk_error, free_bytes
from aurora.sources.uris import Address

# A snapshot is its root folder without pickles, remote code, and Mistral's own consolidated copy of the weights.
MODEL_FILE = re.compile(
    r"(?!consolidated|manifest\.json$)[A-Za-z0-9][\w.-]*\.(safetensors|json|jinja)|tokenizer\.model", re.ASCII
)
INDEX = "model.safetensors.index.json"
RETRIED = {408, 416, 425, 429}  # and all from 500
PAUSES = (5.0, 30.0)  # seconds before the second and third try; in each the library has its own retries
WORKERS = 4  # files at a time; a process that is killed loses the files that it is at
# GitHub's API gives the raw bytes of a git blob only when asked so.
WEB_HEADERS = {"Accept": "application/vnd.github.raw, */*;q=0.5", "Accept-Encoding": "identity"}


class Unreachable(SourceError):
    """No answer, or none that helps, after all tries; files that came whole are kept."""


class _Unsigned(logging.Filter):
    """Takes query strings out of log lines: behind redirects they are signatures."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"\?[^\s'\"]+", "?…", record.getMessage()), ()
        return True


for library in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
    logging.getLogger(library).addFilter(_Unsigned())
for library in ("httpx2", "httpcore2"):  # below a warning they log each request with all that it carries
    logging.getLogger(library).setLevel(logging.WARNING)


def download(uri: str, address: Address, pins: Pins, folder: Path) -> tuple[dict[str, Pins], str | None]:
    """Brings what an https or hf address names into `folder`, and verifies every file.

    Returns what was found of each file by its name below `folder`, and the commit that they are of (hub only).
    `folder` is kept between calls: files that are whole are not brought again. The hub's own account of size, SHA-256
    and git blob id at the commit is checked beside `pins`. Raises SourceError with the URI and the remedy,
    Unreachable where the network is at fault, and ResourceError if the disk is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    bring = _from_web if address.scheme == "https" else _from_hub
    for pause in (*PAUSES, None):
        try:
            return bring(address, pins, folder)
        except AuroraError as error:
            fault, again = error, False
        except Exception as error:  # Xet, proxies, and servers that are no hub make the library raise almost any
            fault = explain(address, error)
            again = isinstance(fault, Unreachable) and not constants.is_offline_mode()
        if pause is None or not again:
            raise type(fault)(f"{uri}: {fault}") from None
        time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def hub_token() -> str | bool:
    """The token, which comes from the environment alone, never from a file in the home folder; False without one."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise SourceError("HF_TOKEN holds a space, a line end or a character that no token has; set it again")
    return token or False


def _from_hub(address: Address, pins: Pins, folder: Path) -> tuple[dict[str, Pins], str | None]:
    token = hub_token()
    api, repository = HfApi(token=token), {"repo_id": address.repository}
    repository["repo_type"] = "dataset" if address.dataset else "model"
    commit = address.revision
    if not address.pinned:
        commit = api.repo_info(**repository, revision=commit).sha
    repository["revision"] = commit or ""
    one = bool(address.path) and not address.is_glob
    expected = {
        file.path: _joined(pins, file)
        for file in (
            api.get_paths_info(paths=[address.path], **repository)
            if one
            else api.list_repo_tree(recursive=address.is_glob, **repository)
        )
        if isinstance(file, RepoFile) and _is_named(file.path, address)
    }
    _refuse_unfit(address, expected)
    for path in folder.rglob("*.incomplete"):  # of a process that was killed: the library never goes on with them
        remove(path)
    _refuse_if_full(folder, expected)
    if one:
        hf_hub_download(filename=address.path, local_dir=folder, token=token, **repository)
    else:
        snapshot_download(
            allow_patterns=sorted(expected), local_dir=folder, token=token, max_workers=WORKERS, **repository
        )
    files = _verified(folder, expected)
    if INDEX in files:
        _refuse_incomplete(folder / INDEX, files)
    return files, commit


def _is_named(path: str, address: Address) -> bool:
    if address.is_glob:
        return fnmatchcase(path, address.path)
    return path == address.path if address.path else bool(MODEL_FILE.fullmatch(path))


def _from_web(address: Address, pins: Pins, folder: Path) -> tuple[dict[str, Pins], str | None]:
    name = _plain(unquote(urlsplit(address.path).path).rstrip("/").rpartition("/")[2])
    target = folder / name
    if not (pins.sha256 or pins.git_blob):
        remove(target)  # nothing shows whether the rest belongs to it
    if not target.exists() or pins.difference(measure(target, pins)):
        try:
            with open(target, "ab") as file:
                http_get(address.path, file, resume_size=file.tell(), headers=WEB_HEADERS)
        except HfHubHTTPError:
            remove(target)
            raise
    return _verified(folder, {name: pins}), None


def _plain(name: str) -> str:
    """A file name of at most 80 characters and 200 bytes that cannot leave its folder, or hide."""
    short = name[-80:].encode(errors="replace")[-200:].decode(errors="ignore")
    return re.sub(r"[^\w.-]|^\.+", "_", short) or "file"


def _joined(pins: Pins, file: RepoFile) -> Pins:
    """The pins of params.yaml with what the hub says of a file; a contradiction costs no download."""
    large = file.lfs
    hub = Pins(file.size, large.sha256 if large else None, None if large else file.blob_id)
    if difference := pins.difference(hub):
        raise SourceError(f"{difference} on the hub; correct the pin in params.yaml")
    return Pins(*(theirs if own is None else own for own, theirs in zip(astuple(pins), astuple(hub), strict=True)))


def _refuse_unfit(address: Address, expected: dict[str, Pins]) -> None:
    if address.path and not expected:
        raise SourceError("the repository has no such file at this commit; check path")
    if not address.path and not any(name.endswith(".safetensors") for name in expected):
        raise SourceError("holds no *.safetensors, and weights in pickle form are not taken; name another model")


def _refuse_if_full(folder: Path, expected: dict[str, Pins]) -> None:
    missing = sum(pins.bytes or 0 for name, pins in expected.items() if not (folder / name).is_file())
    free = free_bytes(folder)
    if missing > free:
        raise ResourceError(f"{missing:,} bytes are to come, {free:,} are free; free some and run again")


def _verified(folder: Path, expected: dict[str, Pins]) -> dict[str, Pins]:
    """What the files are, by their names. Removes a file that its pins do not fit, and raises SourceError."""
    names = sorted(expected)
    for name in names:
        if not (folder / name).is_file():  # snapshot_download is content with what is here where the hub falls silent
            raise Unreachable(f"{name} has not come; run again later: files that came whole are kept")
    with ThreadPoolExecutor(WORKERS) as pool:  # a digest lets other threads run
        found = dict(zip(names, pool.map(lambda name: measure(folder / name, expected[name]), names), strict=True))
    for name in names:
        if difference := expected[name].difference(found[name]):
            remove(folder / name)
            raise SourceError(
                f"{name}: {difference}; the source has changed or the download is damaged: run again, or correct "
                "the pin in params.yaml"
            )
    return found


def _refuse_incomplete(index: Path, files: dict[str, Pins]) -> None:
    try:
        missing = sorted(set(json.loads(index.read_bytes())["weight_map"].values()) - set(files))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(f"{INDEX} is no index ({type(error).__name__}); name another revision") from None
    if missing:
        raise SourceError(f"{INDEX} names {missing[0]!r:.100}, which the repository lacks; name another revision")


def explain(address: Address, error: Exception) -> AuroraError:
    """What an error of the library means, without its own words, which may contain a signed address."""
    if out_of_disk(error):
        return ResourceError("No space left on device; free disk and run again")
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return Unreachable("is not here, and HF_HUB_OFFLINE forbids the network: unset it")
        if isinstance(cause, HfHubHTTPError):
            return _refusal(address, cause.response)
        if "CERTIFICATE_VERIFY_FAILED" in str(cause):
            return SourceError("the server's certificate is not trusted; check uri, network and SSL_CERT_FILE")
        if isinstance(cause, httpx2.TransportError) and not isinstance(cause, httpx2.UnsupportedProtocol):
            return Unreachable(
                f"connection failed ({type(cause).__name__}); run again later: files that came whole are kept"
            )
    if isinstance(error, OSError) and error.filename:
        return disk_error("download", error)
    return SourceError(
        f"no answer that can be used ({type(error).__name__}); check uri, HF_ENDPOINT, HTTPS_PROXY, ALL_PROXY and "
        "SSL_CERT_FILE"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _refusal(address: Address, response: httpx2.Response) -> AuroraError:
    status, headers = response.status_code, response.headers
    limited = status == 403 and ("retry-after" in headers or headers.get("x-ratelimit-remaining") == "0")
    if status in RETRIED or status >= 500 or limited:
        return Unreachable(f"HTTP {status}; run again later: files that came whole are kept")
    remedy = _web_remedy if address.scheme == "https" else _hub_remedy
    return SourceError(f"HTTP {status}; {remedy(address, status, headers.get('x-error-code', ''))}")


def _web_remedy(address: Address, status: int, code: str) -> str:
    if status in (401, 403):
        return "it asks for credentials, which https:// sources never send; give a public address"
    return "check host, path and revision" if status in (404, 410) else "correct the uri in params.yaml"


def _hub_remedy(address: Address, status: int, code: str) -> str:
    page = f"https://huggingface.co/{'datasets/' if address.dataset else ''}{address.repository}"
    token = bool(os.environ.get("HF_TOKEN"))
    if code == "GatedRepo" or status == 403:
        holder = "the account of HF_TOKEN" if token else "your account, and set HF_TOKEN to a token of it"
        return f"accept its licence on {page} with {holder}"
    if status == 401 and token:
        return "HF_TOKEN is not accepted here: renew it, or check owner and name"
    if status == 401:
        return "set HF_TOKEN to a token that may read it, or check owner and name"
    place = {"RepoNotFound": "owner and name", "RevisionNotFound": "revision", "EntryNotFound": "path"}
    return f"check {place.get(code, 'owner, name, revision and path')}"
