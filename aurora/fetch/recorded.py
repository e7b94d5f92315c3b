"""What the last fetch of a source left: its manifest, and its bytes in DVC's cache or remote.

DVC removes a stage's output before it runs the stage, be it for a comment in its code; the manifest and the bytes are
still where dvc.lock says.
"""

import json
import os
from pathlib import Path, PurePosixPath

from aurora.errors import SourceError
from aurora.fetch.digests import Pins, copy, measure
from aurora.manifests import MANIFEST
from aurora.store import read_json, remove

LOCK = Path("dvc.lock")


def recorded(name: str, uri: str, out: Path, needed: bool) -> dict | None:
    """The manifest of the last fetch of the same URI, None if there was none.

    With `needed`, raises SourceError if dvc.lock says that there is one and it cannot be had: then nothing may pass
    for a first fetch.
    """
    if (out / MANIFEST).is_file():
        former = read_json(out / MANIFEST, f"fetch@{name}")
        return former if isinstance(former, dict) and former.get("uri") == uri else None
    if not _locked(name, uri, out):
        return None
    from dvc import api
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexError

    try:
        return json.loads(api.read((out / MANIFEST).as_posix()))
    except (DvcException, DataIndexError, OSError, ValueError) as error:
        if not needed:
            return None
        raise SourceError(
            f"sources.{name}: pin: record, and dvc.lock names a record that is neither in DVC's cache nor in a remote "
            f"({type(error).__name__}); get it by: dvc pull {out.as_posix()}, or give sha256 in place of pin"
        ) from None


def take_again(former: dict, out: Path, folder: Path, pins: Pins) -> bool:
    """Fills the new folder `folder` with the files of a manifest, each verified, and says whether that went well.

    They are linked from `out` or from DVC's cache, or copied from its remote. If one is missing, damaged, or not
    what `pins` of the whole source want, `folder` is removed.
    """
    if _fits(former, pins):
        folder.mkdir(parents=True)
        alone = pins if former["archive"] is None else Pins()
        if all(_take(out / entry["path"], folder / entry["path"], entry, alone) for entry in former["files"]):
            return True
        remove(folder)
    return False


def _fits(former: dict, pins: Pins) -> bool:
    """Whether the file that was fetched is the one that the pins name, as far as the manifest says."""
    if not {"archive", "files", "revision"} <= former.keys() or (former["archive"] and pins.git_blob):
        return False
    paths = [PurePosixPath(entry["path"]) for entry in former["files"]]
    if not paths or any(path.is_absolute() or ".." in path.parts for path in paths):
        return False
    whole = former["archive"] or former["files"][0]
    return pins.bytes in (None, whole["bytes"]) and pins.sha256 in (None, whole["sha256"])


def _take(origin: Path, target: Path, entry: dict, pins: Pins) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    expected = Pins(entry["bytes"], entry["sha256"], pins.git_blob)
    try:
        if not origin.is_file():
            origin = _in_dvc(origin, target)
        if origin != target:
            try:
                os.link(origin.resolve(), target)
            except OSError:
                return copy(origin, target, expected).difference(target) is None
        return measure(target, expected).difference(target) is None
    except OSError:
        return False


def _in_dvc(path: Path, target: Path) -> Path:
    """The file of DVC's cache that holds `path`; `target`, brought from the remote, where the cache lacks it."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.index import DataIndexError

    try:
        with Repo() as repo:
            info = repo.dvcfs.info(path.as_posix())
            cached = Path(repo.cache.local.oid_to_path(info["md5"]))
            if cached.is_file():
                return cached
            repo.dvcfs.get_file(path.as_posix(), str(target))
            return target
    except (DvcException, DataIndexError, KeyError) as error:
        raise FileNotFoundError(path) from error


def _locked(name: str, uri: str, out: Path) -> bool:
    """Whether dvc.lock holds `out` as made from this URI."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not LOCK.is_file():
        return False
    try:
        stages = YAML(typ="safe").load(LOCK.read_text(encoding="utf-8")).get("stages", {})
    except (YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{LOCK}: not readable ({type(error).__name__}); restore it by: git checkout {LOCK}"
        ) from None
    for stage in stages.values():
        if any(entry.get("path") == out.as_posix() for entry in stage.get("outs", [])):
            source = stage.get("params", {}).get("params.yaml", {}).get(f"sources.{name}", {})
            return source.get("uri") == uri
    return False
