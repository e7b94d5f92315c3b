"""Downloads from the Hugging Face hub and over https: what to bring, from where, and what a refusal means."""

import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from urllib.parse import unquote, urlsplit

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile, RepoSibling
from tqdm import tqdm

from aurora.core.errors import ResourceError, SourceError
from aurora.hub.client import hub_headers, hub_token, session
from aurora.hub.transfer import (
    RETRIED,
    Again,
    Refused,
    Remote,
    Stopped,
    Unreachable,
    bring,
    failure,
    patiently,
    pause_asked,
)
from aurora.intake.digests import Digests, Pins
from aurora.intake.disk import room
from aurora.sources.uris import Address

__all__ = ["Downloaded", "Unreachable", "download"]

PARALLEL = 8  # files at a time
# A snapshot is its root folder without pickles, remote code, and Mistral's own consolidated copy of the weights.
MODEL_FILE = re.compile(
    r"(?!consolidated|manifest\.json$)[A-Za-z0-9][\w.-]*\.(safetensors|json|jinja)|tokenizer\.model", re.ASCII
)
KNOWN_BY = ("[0-9]{1,18}", "[0-9a-f]{64}", "[0-9a-f]{40}")  # size, SHA-256, git blob id
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Downloaded:
    """Files below the folder that `download` was given, and the commit that they are of (hub only)."""

    files: dict[str, Digests]
    revision: str | None


def download(name: str, uri: str, address: Address, pins: Pins, folder: Path) -> Downloaded:
    """Brings what an https or hf address names into `folder`, each file verified as it streams.

    `folder` is kept between calls, so that an interrupted download goes on where it was. The hub's own account of
    size, SHA-256 and git blob id at that commit is checked beside `pins`. Raises SourceError with the URI and the
    remedy, Unreachable where the network is at fault, and ResourceError if the disk is too small.
    """
    session()  # made before there are threads
    try:
        if address.scheme == "https":
            # Of the hosts that are named in profiles/, one gives raw bytes of a git blob only when asked so.
            headers = {"Accept": "application/vnd.github.raw, */*;q=0.5", "User-Agent": "aurora"}
            remotes, revision = {_web_name(address.path): Remote(address.path, uri, headers, pins)}, None
        else:
            remotes, revision = _on_hub(uri, address, pins)
        files = _bring_all(name, uri, remotes, folder)
    except Refused as refusal:
        raise SourceError(f"{uri}: HTTP {refusal.status}; {remedy(address, refusal)}") from None
    except OfflineModeIsEnabled:
        raise Unreachable(f"{uri}: is not here, and HF_HUB_OFFLINE forbids the network: unset it") from None
    if INDEX in files:
        _complete(uri, folder / INDEX, files)
    return Downloaded(files, revision)


def remedy(address: Address, refusal: Refused) -> str:
    """What a user can do about a refusal, by its status and the hub's X-Error-Code."""
    if address.scheme == "https":
        if refusal.status in (401, 403):
            return "it asks for credentials, which https:// sources never send; give a public address"
        return (
            "check host, path and revision"
            if refusal.status in (404, 410)
            else "correct the uri in params.yaml"
        )
    page = f"https://huggingface.co/{'datasets/' if address.dataset else ''}{address.repository}"
    token = bool(os.environ.get("HF_TOKEN"))
    if refusal.code == "GatedRepo" or refusal.status == 403:
        holder = "the account of HF_TOKEN" if token else "your account, and set HF_TOKEN to a token of it"
        return f"accept its licence on {page} with {holder}"
    if refusal.status == 401:
        return (
            "HF_TOKEN is not accepted here: renew it, or check owner and name"
            if token
            else "set HF_TOKEN to a token that may read it, or check owner and name"
        )
    place = {"RepoNotFound": "owner and name", "RevisionNotFound": "revision", "EntryNotFound": "path"}
    return f"check {place.get(refusal.code, 'owner, name, revision and path')}"


def _on_hub(uri: str, address: Address, pins: Pins) -> tuple[dict[str, Remote], str]:
    """The files to bring by their names, and the commit, as the hub lists them."""
    headers, kind = hub_headers(), "dataset" if address.dataset else "model"
    api = HfApi(endpoint=constants.ENDPOINT, token=hub_token())
    revision = address.revision
    if not address.path or not address.pinned:
        info = _ask(uri, lambda: api.repo_info(
            address.repository, revision=revision, repo_type=kind, files_metadata=not address.path, timeout=30
        ))  # fmt: skip
        if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)) or (address.pinned and info.sha != revision):
            raise SourceError(f"{uri}: the hub answers with commit {info.sha!r:.60}; check HF_ENDPOINT")
        revision = info.sha
    if address.path:
        paths = _ask(
            uri,
            lambda: api.get_paths_info(address.repository, [address.path], revision=revision, repo_type=kind),
        )
        listed = [item for item in paths if isinstance(item, RepoFile) and item.path == address.path]
        if not listed:
            raise Refused(404, "EntryNotFound")
        names = {_plain(address.path.rpartition("/")[2]): (address.path, listed[0])}
    else:
        names = {
            item.rfilename: (item.rfilename, item)
            for item in info.siblings or ()
            if MODEL_FILE.fullmatch(item.rfilename)
        }
        if not any(name.endswith(".safetensors") for name in names):
            raise SourceError(
                f"{uri}: holds no *.safetensors, and weights in pickle form are not taken; name another model"
            )
    remotes = {}
    for name, (path, item) in names.items():
        url = hf_hub_url(
            address.repository, path, repo_type=kind, revision=revision, endpoint=constants.ENDPOINT
        )
        remotes[name] = Remote(
            url, uri if address.path else f"{uri}/{path}", headers, _joined(uri, pins, item)
        )
    return remotes, revision


def _joined(uri: str, pins: Pins, item: RepoFile | RepoSibling) -> Pins:
    """The pins of params.yaml with what the hub says of the file; a contradiction is found before a byte is brought."""
    large = item.lfs
    hub = Pins(
        large.size if large else item.size, large.sha256 if large else None, None if large else item.blob_id
    )
    if not all(
        re.fullmatch(form, str(found))
        for found, form in zip(astuple(hub), KNOWN_BY, strict=True)
        if found is not None
    ):
        raise SourceError(f"{uri}: the hub's answer is not understood (size or hash); check HF_ENDPOINT")
    values = {}
    for pin in ("bytes", "sha256", "git_blob"):
        own, theirs = getattr(pins, pin), getattr(hub, pin)
        if None not in (own, theirs) and own != theirs:
            raise SourceError(
                f"{uri}: expected {pin} {own}, found {theirs} on the hub; correct the pin in params.yaml"
            )
        values[pin] = own if own is not None else theirs
    return Pins(**values)


def _ask(uri: str, question: Callable) -> object:
    """An answer of the hub's API, with the same patience as a download."""

    def attempt() -> object:
        try:
            return question()
        except HfHubHTTPError as error:
            status, headers = error.response.status_code, error.response.headers
            if status in RETRIED:
                raise Again(f"HTTP {status}", pause_asked(headers)) from None
            raise Refused(status, headers.get("x-error-code", "")) from None
        except (httpx2.RequestError, httpx2.InvalidURL) as error:
            raise failure(uri, error) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError(
                f"{uri}: the hub's answer is not understood ({type(error).__name__}); check HF_ENDPOINT"
            ) from None

    return patiently(uri, attempt, lambda: 0, Event())


def _bring_all(name: str, uri: str, remotes: dict[str, Remote], folder: Path) -> dict[str, Digests]:
    """Brings the files, PARALLEL at a time; the first failure stops the others, whose bytes are kept."""
    sizes = {file: remote.pins.bytes or 0 for file, remote in remotes.items()}
    missing = sum(max(0, size - _here(folder / file)) for file, size in sizes.items())
    free = room(folder)
    if missing > free:
        raise ResourceError(
            f"{uri}: {missing:,} bytes are to come, {free:,} are free; free some and run again"
        )
    stopped, failures, found = Event(), [], {}

    def one(file: str) -> None:
        try:
            found[file] = bring(remotes[file], folder / file, advance, stopped)
        except Stopped:
            pass
        except BaseException as error:
            failures.append(error)
            stopped.set()

    waiting = deque(sorted(remotes))

    def work() -> None:
        while waiting and not stopped.is_set():
            with suppress(IndexError):  # another thread may have taken the last
                one(waiting.popleft())

    with _progress(name, sum(sizes.values())) as advance:
        threads = [Thread(target=work, daemon=True) for _ in range(min(PARALLEL, len(remotes)))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C: nobody waits for a silent server, and what has come is on disk
            stopped.set()
            raise
    if failures:
        raise failures[0]
    return dict(sorted(found.items()))


def _here(file: Path) -> int:
    part = file.with_name(file.name + ".part")
    return next((path.stat().st_size for path in (file, part) if path.is_file()), 0)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """One bar on stderr over all files: bytes, total, rate. Yields what counts bytes, for any thread."""
    terminal = sys.stderr.isatty()
    lock = Lock()
    with tqdm(
        total=total or None, desc=f"fetch {name}", unit="B", unit_scale=True, leave=False, delay=1,
        mininterval=0.5 if terminal else 30, maxinterval=60,
    ) as bar:  # fmt: skip

        def advance(count: int) -> None:
            with lock:
                bar.update(count)

        yield advance


def _web_name(url: str) -> str:
    return _plain(unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2])


def _plain(name: str) -> str:
    """A file name of at most 80 characters and 200 bytes that cannot leave its folder, or hide."""
    short = name[-80:].encode(errors="replace")[-200:].decode(errors="ignore")
    return re.sub(r"[^\w.-]|^\.+", "_", short) or "file"


def _complete(uri: str, index: Path, files: dict[str, Digests]) -> None:
    try:
        shards = set(json.loads(index.read_bytes())["weight_map"].values())
        missing = sorted(shards - set(files))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SourceError(
            f"{uri}: {INDEX} is no index ({type(error).__name__}); name another revision"
        ) from None
    if missing:
        raise SourceError(
            f"{uri}: {INDEX} names {missing[0]!r:.100}, which the repository lacks; name another revision"
        )
