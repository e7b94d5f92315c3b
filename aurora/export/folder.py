"""A folder to publish, written whole or not at all, with ordinary permissions and the sums of its files."""

import shutil
from pathlib import Path

from tqdm import tqdm

from aurora.core.errors import ParamsError, ResourceError
from aurora.core.files import replacing, sha256_file
from aurora.export.contents import Contents
from aurora.intake.disk import disk_error, free_bytes
from aurora.merge.copy_bytes import reflink

SUMS = "SHA256SUMS"


def require_new(out: Path) -> None:
    """Raises ParamsError where `out` exists already."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ParamsError(f"{out}: exists already; give a new folder, or remove it")


def require_disk(out: Path, needed: int) -> None:
    """Raises ResourceError where the disk of `out` has less than `needed` bytes free."""
    if needed > (free := free_bytes(out)):
        raise ResourceError(
            f"{out}: takes {needed:,} bytes, and its disk has {free:,} free; free some, or give a folder elsewhere"
        )


def write_folder(contents: Contents, out: Path) -> None:
    """Writes the files and SHA256SUMS, which `sha256sum -c` reads. Raises an AuroraError for a disk that takes no more."""
    require_new(out)
    require_disk(out, sum(contents.sizes().values()))
    try:
        with replacing(out) as partial:
            partial.mkdir()
            fill(contents, partial)
            write_sums(partial)
    except OSError as error:
        raise disk_error(f"{out}", error) from None


def fill(contents: Contents, folder: Path) -> None:
    """Copies by reflink where the file system can. The permissions are this user's own, not those of DVC's cache."""
    for name, source in tqdm(contents.copies.items(), desc="export", unit="file", disable=not contents.copies):
        if not reflink(source, folder / name):
            shutil.copyfile(source, folder / name)
    for name, text in contents.texts.items():
        (folder / name).write_bytes(text.encode())


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS over all files of the folder."""
    paths = sorted(path for path in folder.iterdir() if path.name != SUMS)
    lines = [f"{sha256_file(path)}  {path.name}\n" for path in tqdm(paths, desc="sha256", unit="file")]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
