"""What `aurora doctor` finds of DVC: its cache, its remote, links, stages and unfinished work."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.locks import holder_of
from aurora.pipeline.reasons import frozen

if TYPE_CHECKING:
    from dvc.repo import Repo

GIB = 2**30
OPEN = stat.S_ISGID | stat.S_IWGRP  # of a folder in which each member of its group can add to what others made


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    found: str
    remedy: str = ""  # empty if all is well
    fault: bool = False  # whether the pipeline would fail or give other numbers; else the remedy is advice


def sharing() -> Iterator[Finding]:
    """DVC's cache and how it puts files in their places, its remote, both by a write; links and stages."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            yield from cache(repo)
            yield from remote(repo)
            yield from links(repo)
    except (DvcException, OSError) as error:
        said = str(error).partition("\n")[0]
        remedy = "run this in the root of the repository" if "not inside of a DVC" in said else "correct it"
        yield Finding("dvc", said, remedy, fault=True)


def cache(repo: "Repo") -> Iterator[Finding]:
    """Whether the cache takes a file, and what links to it."""
    folder = Path(repo.cache.local.path)  # …/files/md5
    top = Path(repo.cache.local_cache_dir)
    if not top.is_dir() and repo.config["cache"].get("dir"):
        yield Finding(
            "dvc cache", f"{top} is not there", f"mount its disk, or if it is new: mkdir -p {top}", fault=True
        )
        return
    kinds = repo.config["cache"].get("type") or ["reflink", "copy"]
    try:
        kind = link_type(folder, kinds, Path())
    except OSError as error:
        yield Finding(
            "dvc cache",
            f"{error.filename or folder}: {error.strerror or error}; no stage could hand over its outputs",
            f"give yourself the right to write there, or move the cache: dvc cache dir --local (now {top})",
            fault=True,
        )
        return
    yield Finding(
        "dvc cache link",
        f"{kind} ({folder})",
        "models lie on the disk twice: put the cache on the same file system (dvc cache dir), and dvc config"
        " cache.type hardlink,symlink"
        if kind == "copy"
        else "",
    )


def link_type(cache: Path, wanted: list[str] | str, workspace: Path) -> str:
    """The first of the wanted kinds of link that works from the cache to the workspace; `copy` always does."""
    from dvc_objects.fs import system

    ways: dict[str, Callable] = {"reflink": system.reflink, "hardlink": system.hardlink, "symlink": system.symlink}
    cache.mkdir(parents=True, exist_ok=True)
    source, target = cache / f".aurora-{os.getpid()}", workspace / f".aurora-link-{os.getpid()}"
    source.write_bytes(b"aurora")
    try:
        for kind in wanted.split(",") if isinstance(wanted, str) else wanted:
            if kind == "copy":
                break
            try:
                ways[kind](str(source.absolute()), str(target.absolute()))
                return kind
            except (OSError, NotImplementedError, KeyError):
                continue
            finally:
                target.unlink(missing_ok=True)
    finally:
        source.unlink(missing_ok=True)
    return "copy"


def remote(repo: "Repo") -> Iterator[Finding]:
    """Whether the default remote takes a file, verifies what it gives, and lets others write."""
    name = repo.config["core"].get("remote")
    if not name:
        yield Finding("dvc remote", "none", "to share models: dvc remote add -d shared s3://bucket/path")
        return
    settings = repo.config["remote"].get(name, {})
    shown = f"{name} ({_without_secrets(settings.get('url', ''))})"
    try:
        odb = repo.cloud.get_remote_odb(name, "push")
        if odb.fs.protocol == "local":
            if not Path(odb.path).parents[1].is_dir():  # …/files/md5
                yield Finding(
                    "dvc remote",
                    f"{shown} is not there",
                    "mount its disk, or if it is new, make its folder",
                    fault=True,
                )
                return
            yield from shared_folder(Path(odb.path).parents[1])
        probe = odb.fs.join(odb.path, f".aurora-{os.getpid()}")
        odb.fs.makedirs(odb.path, exist_ok=True)
        odb.fs.pipe_file(probe, b"aurora doctor")
        odb.fs.rm_file(probe)
    except Exception as error:  # each kind of remote has its own
        said = str(error).partition("\n")[0][:200] or type(error).__name__
        yield Finding(
            "dvc remote",
            f"{shown} takes no file: {said}",
            "look at its address and your rights (docs/sharing.md)",
            fault=True,
        )
    else:
        yield Finding("dvc remote", f"{shown} takes a file")
    if not settings.get("verify"):
        yield Finding(
            "dvc verify", "off: dvc pull takes a damaged object for whole", f"dvc remote modify {name} verify true"
        )


def shared_folder(folder: Path) -> Iterator[Finding]:
    """Whether what one user writes into a folder that several share can be added to by the others."""
    folders = [folder, *(path for path in folder.glob("files/md5/*") if path.is_dir())]
    owners = {path.stat().st_uid for path in folders} | {os.geteuid()}
    if len(owners) == 1 and not folder.stat().st_mode & stat.S_IWGRP:
        return  # one user's own
    closed = [path for path in folders if path.stat().st_mode & OPEN != OPEN]
    if closed:
        yield Finding(
            "shared remote",
            f"{closed[0]} and {len(closed) - 1} more are closed to the group, so that others' pushes end in EACCES",
            f"chgrp -R GROUP {folder} && chmod -R g+rwX {folder} && find {folder} -type d -exec chmod g+s {{}} +",
            fault=True,
        )
    mask = os.umask(0)
    os.umask(mask)
    if mask & stat.S_IWGRP:
        yield Finding(
            "umask",
            f"{mask:03o}: what you push is closed to the group",
            "umask 002 before dvc push, in each user's profile",
        )


def links(repo: "Repo") -> Iterator[Finding]:
    """Outputs that are links to what is no longer there, and frozen stages."""
    dangling = []
    for out in (out for stage in repo.index.stages for out in stage.outs):
        path = Path(out.def_path)
        below = path.rglob("*") if path.is_dir() else ()
        dangling += [file for file in (path, *below) if file.is_symlink() and not file.exists()]
    if dangling:
        yield Finding(
            "dangling links",
            f"{dangling[0]} and {len(dangling) - 1} more lead to no file of the cache",
            "mount the disk of the cache, or: dvc pull",
            fault=True,
        )
    for stage in frozen(Path()):
        yield Finding("frozen stage", f"{stage}: dvc repro never runs it", f"dvc unfreeze {stage}")


def unfinished() -> Iterator[Finding]:
    """Checkpoints of trainings: of one that runs, of one that never came to an end, of one that DVC has yet to record."""
    from aurora.sft.train import SCRATCH as PLACE

    running = holder_of(PLACE / "lock")
    for folder in sorted(path for path in PLACE.glob("*") if path.is_dir()):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        found = f"{folder}, {size / GIB:.2f} GiB"
        if running:
            yield Finding("running sft", f"{found}, process {running}")
        elif folder.with_name(f"{folder.name}.finished").is_file():
            yield Finding("finished sft", found, "the next stage removes it once dvc.lock names its adapter: dvc repro")
        else:
            yield Finding(
                "unfinished sft", found, f"dvc repro goes on if nothing else has changed; else: rm -r {folder}"
            )


def _without_secrets(address: str) -> str:
    scheme, separator, rest = address.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
