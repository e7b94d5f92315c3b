"""Every byte that dvc.lock records, read again: outputs in the work tree, DVC's cache, a remote.

DVC takes a file of the same size and time for the same; here each file is hashed, once where several names are links to it.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from aurora.core.errors import AuroraError, DataError
from aurora.core.files import dvc_hash

if TYPE_CHECKING:
    from dvc.repo import Repo

BLOCK = 1 << 20
REMOTE_STREAMS = 8


@dataclass(slots=True)
class Integrity:
    """What was found."""

    files: int = 0  # hashed, each once
    bytes: int = 0
    objects: int = 0  # of the remote
    absent: list[str] = field(default_factory=list)  # outputs that are not in the work tree, or lack files there
    uncached: list[str] = field(default_factory=list)  # outputs that the cache lacks, whole or in part
    faults: list[str] = field(default_factory=list)  # each with its remedy


@dataclass(frozen=True, slots=True)
class Output:
    """An output of dvc.lock: MD5 by the path of each file, and the MD5 of the listing if it is a folder."""

    path: str
    stage: str
    files: Mapping[str, str]
    listing: str | None
    cached: bool  # else git tracks it
    pushed: bool


def verify(repo: "Repo", remote: str | None = None) -> Integrity:
    """Reads all that dvc.lock records and says what is damaged; of a remote too if one is named, "" being the default.

    Raises DataError for a remote that is not there or cannot be read.
    """
    found = Integrity()
    outputs = list(_outputs(repo, found))
    wanted: dict[str, str] = {}  # file -> MD5
    for output in outputs:
        wanted |= _files_of(repo, output, found)
    hashes = _hash_all(wanted, found)
    damaged = {path for path, md5 in wanted.items() if hashes[path] != md5}
    found.faults += _faults(repo, outputs, damaged)
    if remote is not None:
        found.faults += _of_remote(repo, remote or None, outputs, found)
    return found


def recorded_files(repo: "Repo") -> dict[str, tuple[str, str]]:
    """Every file that dvc.lock records as an output: its object in DVC's cache, there or not, and the stage."""
    return {
        path: (repo.cache.local.oid_to_path(md5), output.stage)
        for output in _outputs(repo, Integrity())
        for path, md5 in output.files.items()
    }


def _outputs(repo: "Repo", found: Integrity) -> Iterator[Output]:
    for stage in sorted(repo.index.stages, key=lambda stage: stage.addressing):
        for out in stage.outs:
            if not out.hash_info:
                continue
            md5, files = out.hash_info.value, {out.def_path: out.hash_info.value}
            if out.hash_info.isdir:
                listing = Path(repo.cache.local.oid_to_path(md5))
                if not out.use_cache and not listing.is_file():  # git tracks the files, and nobody the listing
                    if Path(out.def_path).is_dir() and dvc_hash(Path(out.def_path)) != md5:
                        found.faults.append(
                            f"{out.def_path}: has other bytes than dvc.lock records; git diff {out.def_path}, or run:"
                            f" dvc repro -f {stage.addressing}"
                        )
                    continue
                if not listing.is_file():
                    found.uncached.append(out.def_path)
                    continue
                content = listing.read_bytes()
                if hashlib.md5(content, usedforsecurity=False).hexdigest() + ".dir" != md5:
                    found.faults.append(
                        f"{listing}: the listing of {out.def_path} is damaged; {_again(stage.addressing, listing)}"
                    )
                    continue
                files = {f"{out.def_path}/{entry['relpath']}": entry["md5"] for entry in json.loads(content)}
            yield Output(
                out.def_path,
                stage.addressing,
                files,
                md5 if out.hash_info.isdir else None,
                bool(out.use_cache),
                bool(out.can_push),
            )


def _files_of(repo: "Repo", output: Output, found: Integrity) -> dict[str, str]:
    """MD5 by file, of an output in the work tree and of its objects in the cache; what is not there is noted."""
    wanted = {path: md5 for path, md5 in output.files.items() if Path(path).is_file()}
    if len(wanted) < len(output.files):
        found.absent.append(output.path)
    if output.cached:
        objects = {repo.cache.local.oid_to_path(md5): md5 for md5 in output.files.values()}
        there = {path: md5 for path, md5 in objects.items() if Path(path).is_file()}
        if len(there) < len(objects):
            found.uncached.append(output.path)
        wanted |= there
    if output.listing:
        for path in sorted(Path(output.path).rglob("*")):
            if path.is_file() and path.as_posix() not in output.files:
                found.faults.append(f"{path}: dvc.lock does not record it; remove it, or run: dvc repro {output.stage}")
    return wanted


def _hash_all(wanted: Mapping[str, str], found: Integrity) -> dict[str, str]:
    """MD5 by file, or why it cannot be read; links to one file are read once, large files first."""
    same: dict[tuple[int, int], list[str]] = defaultdict(list)
    sizes = {}
    for path in wanted:
        status = Path(path).stat()
        same[status.st_dev, status.st_ino].append(path)
        sizes[status.st_dev, status.st_ino] = status.st_size
    order = sorted(same, key=lambda key: -sizes[key])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:  # hashing releases the interpreter's lock
        hashes = pool.map(lambda key: _hash_file(same[key][0]), order)
        result = {path: md5 for key, md5 in zip(order, hashes, strict=True) for path in same[key]}
    found.files, found.bytes = len(order), sum(sizes.values())
    return result


def _hash_file(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return _hash_stream(file)
    except OSError as error:
        return f"unreadable: {error.strerror or error}"


def _faults(repo: "Repo", outputs: Iterable[Output], damaged: Set[str]) -> Iterator[str]:
    """A line for each damaged file: in the work tree alone, in the cache too, or in the cache alone."""
    said = set()
    cached_only = {}
    for output in outputs:
        for path, md5 in output.files.items():
            object_ = repo.cache.local.oid_to_path(md5)
            if path not in damaged:
                if object_ in damaged:
                    cached_only[object_] = (path, output.stage)
            elif not output.cached:
                yield f"{path}: has other bytes than dvc.lock records; git diff {path}, or run: dvc repro -f {output.stage}"
            elif object_ in damaged:
                said.add(object_)
                yield f"{path}: damaged, in the cache too; {_again(output.stage, path, object_)}"
            else:
                yield f"{path}: damaged; the cache has it whole: rm {path} && dvc checkout {output.path}"
    for object_, (path, stage) in cached_only.items():
        if object_ not in said:
            yield f"{object_}: damaged, the cache's copy of {path}; {_again(stage, object_)}"


def _again(stage: str, *paths: object) -> str:
    return f"rm -f {' '.join(map(str, paths))} && dvc pull {stage}, or without a remote: dvc repro -f {stage}"


def _of_remote(repo: "Repo", name: str | None, outputs: list[Output], found: Integrity) -> Iterator[str]:
    from dvc.exceptions import DvcException

    try:
        odb = repo.cloud.get_remote_odb(name, "verify")
    except (DvcException, ImportError) as error:
        raise DataError(f"DVC remote: {error}") from None
    wanted: dict[str, Output] = {}
    for output in outputs:
        if output.cached and output.pushed:
            wanted |= dict.fromkeys([*filter(None, [output.listing]), *output.files.values()], output)

    def damage(md5: str) -> str | None:
        path = odb.oid_to_path(md5)
        try:
            with odb.fs.open(path, "rb") as file:
                got = _hash_stream(file)
        except FileNotFoundError:
            return "missing"
        return None if got == md5.removesuffix(".dir") else "damaged"

    try:
        with ThreadPoolExecutor(REMOTE_STREAMS) as pool:
            results = list(pool.map(damage, wanted))
    except AuroraError:
        raise
    except Exception as error:  # each kind of remote has its own
        said = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"DVC remote: cannot be read ({said[:200]}); see: dvc status --cloud") from None
    found.objects = len(wanted)
    for (md5, output), result in zip(wanted.items(), results, strict=True):
        file = next((path for path, of in output.files.items() if of == md5), output.path)
        if result:
            # DVC takes a folder whose listing is there for whole, and would not push the file again.
            first = [odb.oid_to_path(output.listing)] if output.listing else []
            gone = [*([odb.oid_to_path(md5)] if result == "damaged" and md5 != output.listing else []), *first]
            delete = f"delete there {' and '.join(gone)}, and " if gone else ""
            yield f"remote: the copy of {file} is {result}; {delete}from a clone that has it: dvc push {output.stage}"


def _hash_stream(file: BinaryIO) -> str:
    """MD5 in hex, by blocks that are large enough for threads to seldom wait for the interpreter's lock."""
    digest = hashlib.md5(usedforsecurity=False)
    while block := file.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()
