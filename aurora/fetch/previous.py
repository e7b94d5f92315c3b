"""What the last fetch of a source left: its manifest, and its bytes in DVC's cache or remote.

DVC removes a stage's output before it runs the stage, even if only a comment in its code has changed; the manifest and
the bytes are still in the place that dvc.lock names.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aurora.core.errors import ParamsError, SourceError
from aurora.core.files import remove
from aurora.core.manifests import MANIFEST, is_whole
from aurora.core.yaml_files import read_yaml
from aurora.intake.digests import Pins, measure
from aurora.sources.source import Source

LOCK = Path("dvc.lock")


def previous_manifest(source: Source, out: Path) -> dict | None:
    """The manifest of the last fetch of the same URI, None if there was none, or none that is whole.

    With pin: record, raises SourceError if there was one and it cannot be read: nothing may pass for a first fetch.
    """
    here, uri = out / MANIFEST, source.uri
    try:
        if here.is_file():
            former = json.loads(here.read_bytes())
        elif _locked(uri, out):
            former = json.loads(_of_dvc(here))
        else:
            return None
        if not is_whole(former):
            raise ValueError("not the form of a manifest")
    except (OSError, ValueError, RecursionError) as error:
        if source.pin is None:
            return None
        fault = (
            f"{here} is damaged or of another form"
            if here.is_file()
            else "dvc.lock names a record that is neither in DVC's cache nor in a remote, or is of another form"
        )
        raise SourceError(
            f"pin: record, and {fault} ({type(error).__name__}); get it by: dvc pull {out.as_posix()}, "
            "or give sha256 in place of pin"
        ) from None
    return former if former["uri"] == uri else None


def reuse(former: dict, out: Path, folder: Path, pins: Pins) -> bool:
    """Fills the new folder `folder` with the files of a manifest, each verified, and returns whether that succeeded.

    They are linked from `out` or from DVC's cache, or copied from its remote. If one is missing, damaged, or not
    what `pins` of the whole source demand, `folder` is removed.
    """
    if fits(former, pins):
        folder.mkdir(parents=True)
        alone = pins if former["archive"] is None else Pins()
        if all(_reuse_file(out / entry["path"], folder / entry["path"], entry, alone) for entry in former["files"]):
            return True
        remove(folder)
    return False


def fits(former: dict, pins: Pins) -> bool:
    """Whether the file that was fetched is the one that the pins name, as far as its manifest, a whole one, says.

    A manifest may lack the git blob id; then an archive does not fit, since its unpacked files cannot tell.
    """
    whole = former["archive"] or former["files"][0]
    known = Pins(whole["bytes"], whole["sha256"], whole.get("git_blob"))
    unknown = former["archive"] and pins.git_blob and known.git_blob is None
    return not unknown and pins.difference(known) is None


def _reuse_file(origin: Path, target: Path, entry: dict, pins: Pins) -> bool:
    target.parent.mkdir(parents=True, exist_ok=True)
    expected = Pins(entry["bytes"], entry["sha256"], pins.git_blob)
    try:
        if not origin.is_file():
            origin = _in_dvc(origin, target)
        if origin != target:
            try:
                os.link(origin.resolve(), target)
            except OSError:
                shutil.copyfile(origin, target)
        return expected.difference(measure(target, expected)) is None
    except OSError:
        return False


def dvc_cache(file: Path) -> bool:
    """Whether a file is in DVC's cache, where that is outside the repository."""
    try:
        with _dvc(file):
            from dvc.repo import Repo

            with Repo() as repo:
                return file.is_relative_to(Path(repo.cache.local.path).resolve())
    except OSError:
        return False


def _in_dvc(path: Path, target: Path) -> Path:
    """The file of DVC's cache that holds `path`; `target`, brought from the remote, where the cache lacks it."""
    from dvc.repo import Repo

    with _dvc(path), Repo() as repo:
        info = repo.dvcfs.info(path.as_posix())
        cached = Path(repo.cache.local.oid_to_path(info["md5"]))
        if cached.is_file():
            return cached
        repo.dvcfs.get_file(path.as_posix(), str(target))
        return target


def _of_dvc(path: Path) -> str:
    """A text file as dvc.lock has it, out of DVC's cache or remote."""
    from dvc import api

    with _dvc(path):
        return api.read(path.as_posix())


@contextmanager
def _dvc(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of DVC, of its index, or of the library of any kind of remote
        raise FileNotFoundError(f"{path}: not available from DVC ({type(error).__name__})") from None


def _locked(uri: str, out: Path) -> bool:
    """Whether dvc.lock holds `out` as made from this URI."""
    if not LOCK.is_file():
        return False
    try:
        # All entries: where a source has moved to another section, DVC keeps those of both stages.
        for stage in read_yaml(LOCK).get("stages", {}).values():
            if any(entry.get("path") == out.as_posix() for entry in stage.get("outs", [])):
                sections = stage.get("params", {}).get("params.yaml", {})
                if any(source.get("uri") == uri for source in sections.values()):
                    return True
    except (ParamsError, AttributeError, TypeError) as error:
        raise SourceError(
            f"{LOCK}: not readable ({type(error).__name__}); restore it by: git checkout {LOCK}"
        ) from None
    return False
