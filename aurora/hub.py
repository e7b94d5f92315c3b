"""Downloads from the Hugging Face hub and over https, verified while nothing is in its final place yet."""

import os
import re
import shutil
from pathlib import Path

from aurora.errors import SourceError
from aurora.store import replacing

HUB_URI = re.compile(
    r"hf://(?P<datasets>datasets/)?(?P<repo>[^/@]+/[^/@]+)@(?P<revision>[0-9a-f]{40})(?:/(?P<path>.+))?"
)
# A model snapshot is taken without pickles, without Mistral's own consolidated copy, and without remote code.
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer.model", "*.jinja")
REMEDIES = {
    401: "set HF_TOKEN to a token that may read it",
    403: "accept its licence on the hub's page, and set HF_TOKEN",
    404: "check owner, name, revision and path",
    429: "the server limits requests; wait and run again: the download resumes",
}


def download(uri: str, scratch: Path) -> Path:
    """Downloads what `uri` names below `scratch` and returns the file, or the folder of a model snapshot.

    `scratch` is kept between tries, so that an interrupted hub download goes on where it was.
    Raises SourceError with the URI and the remedy; tokens come from the environment (HF_TOKEN) alone.
    """
    if uri.startswith("hf://"):
        return _from_hub(uri, scratch)
    if uri.startswith(("https://", "http://")):
        return _from_web(uri, scratch)
    raise SourceError(f"{uri}: unknown scheme; give hf:// or https://")


def _from_hub(uri: str, scratch: Path) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    parts = HUB_URI.fullmatch(uri)
    if not parts:
        raise SourceError(
            f"{uri}: not of the form hf://[datasets/]OWNER/NAME@COMMIT[/PATH] with 40 hex digits"
        )
    kind = "dataset" if parts["datasets"] else "model"
    common = {"repo_type": kind, "revision": parts["revision"], "local_dir": scratch}
    try:
        if parts["path"]:
            return Path(hf_hub_download(parts["repo"], parts["path"], **common))
        folder = Path(snapshot_download(parts["repo"], allow_patterns=list(MODEL_FILES), **common))
    except GatedRepoError:
        raise SourceError(f"{uri}: gated; {REMEDIES[403]}") from None
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        # The hub's client hides a refusal behind "not in the local cache".
        status = getattr(getattr(error.__cause__, "response", None), "status_code", None)
        if status in REMEDIES:
            raise SourceError(f"{uri}: HTTP {status}; {REMEDIES[status]}") from None
        raise SourceError(
            f"{uri}: cannot be reached; check the network, or take it from a DVC remote: dvc pull"
        ) from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        raise SourceError(f"{uri}: HTTP {status}; {REMEDIES.get(status, 'try again later')}") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{uri}: {error}; run again: the download resumes") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    return folder


def _from_web(uri: str, scratch: Path) -> Path:
    import fsspec
    from aiohttp import ClientError, ClientResponseError

    # Of the hosts that are named in profiles/, one gives raw bytes of a git blob only when asked so.
    headers = {"Accept": "application/vnd.github.raw, */*;q=0.5"}
    target = scratch / re.sub(r"[^A-Za-z0-9._-]", "_", uri.rsplit("/", 1)[-1])
    try:
        files = fsspec.filesystem(uri.split(":", 1)[0], client_kwargs={"headers": headers})
        with replacing(target) as partial:
            files.get_file(uri, os.fspath(partial))
    except FileNotFoundError:
        raise SourceError(f"{uri}: HTTP 404; {REMEDIES[404]}") from None
    except ClientResponseError as error:
        raise SourceError(
            f"{uri}: HTTP {error.status}; {REMEDIES.get(error.status, 'try again later')}"
        ) from None
    except (ClientError, OSError, TimeoutError) as error:
        raise SourceError(
            f"{uri}: cannot be reached ({type(error).__name__}); check the network, or take it from a DVC remote: dvc pull"
        ) from None
    return target
