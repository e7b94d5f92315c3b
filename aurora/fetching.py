"""One source, by its URI, to a folder of verified bytes with a manifest beside them."""

import os
import shutil
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

from aurora.errors import SourceError
from aurora.params import Source
from aurora.store import git_blob_id, remove, replacing, sha256_file, write_json

MANIFEST = "manifest.json"
SCRATCH = Path(".aurora/downloads")  # ignored by git and DVC; survives a failed stage
ARCHIVE_LIMIT = 8 << 30  # bytes that an archive may unpack to


def fetch(name: str, source: Source, out: Path) -> dict:
    """Brings `source` to the folder `out`, whole or not at all, and returns its manifest.

    The manifest holds source, kind, format, uri, revision, licence, rows and files ({path, sha256, bytes},
    sorted by path). Raises SourceError if the source is missing, unreachable, or differs from its pin.
    """
    with replacing(out) as partial:
        if source.uri == "embedded:small_base":
            from aurora.small_base import build  # heavy: torch and transformers

            build(partial)
        else:
            _take(name, source, partial)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        if not files:
            raise SourceError(f"sources.{name}: {source.uri} holds no file")
        manifest = {
            "source": name,
            "kind": source.kind,
            "format": source.format,
            "uri": source.uri,
            "revision": source.revision,
            "licence": source.licence,
            "rows": source.rows,
            "files": [
                {
                    "path": path.relative_to(partial).as_posix(),
                    "sha256": sha256_file(path),
                    "bytes": path.stat().st_size,
                }
                for path in files
            ],
        }
        write_json(partial / MANIFEST, manifest)
    remove(SCRATCH / name)
    return manifest


def _take(name: str, source: Source, partial: Path) -> None:
    uri, _, member = source.uri.partition("!/")
    if source.local:
        origin = Path(uri)
        if not origin.exists():
            raise SourceError(f"sources.{name}.uri: {uri} does not exist; correct the path in params.yaml")
    else:
        from aurora.hub import download

        origin = download(uri, SCRATCH / name)
    if origin.is_file():
        verify(name, source, origin)
    if member:
        unpack(origin, member, partial)
    elif origin.is_dir():
        shutil.copytree(
            origin, partial, ignore=shutil.ignore_patterns("__pycache__", ".cache"), copy_function=_copy
        )
    else:
        partial.mkdir()
        _copy(origin, partial / origin.name)


def _copy(origin: str | Path, target: str | Path) -> None:
    """Links a download (its scratch name is removed later), copies a file of the repository."""
    if SCRATCH.resolve() in Path(origin).resolve().parents:
        os.link(origin, target)
    else:
        shutil.copyfile(origin, target)


def verify(name: str, source: Source, path: Path) -> None:
    """Compares a file with the pins of its source; raises SourceError with expected and found."""
    checks = (
        ("bytes", source.bytes, lambda: path.stat().st_size),
        ("sha256", source.sha256, lambda: sha256_file(path)),
        ("git_blob", source.git_blob, lambda: git_blob_id(path)),
    )
    for pin, expected, measure in checks:
        if expected is not None and (found := measure()) != expected:
            remove(path) if not source.local else None
            raise SourceError(
                f"sources.{name}.{pin}: expected {expected}, found {found} at {source.uri}; "
                "the source has changed or the download is damaged: run again, or correct the pin"
            )


def unpack(archive: Path, member: str, out: Path) -> None:
    """Takes the files below the folder `member` of a zip or tar file into the new folder `out`.

    Links and names that would leave `out` are refused, and so is an archive beyond ARCHIVE_LIMIT bytes.
    Raises SourceError.
    """
    out.mkdir()
    folder = PurePosixPath(member.strip("/") or ".")
    taken = unpacked = 0
    try:
        for path, size, plain, read in _members(archive):
            inside = PurePosixPath(path)
            if not plain or inside.is_absolute() or ".." in inside.parts or "\\" in path:
                raise SourceError(
                    f"{archive.name}!/{path}: a link or a name that leaves the folder; not unpacked"
                )
            if folder != PurePosixPath(".") and folder not in inside.parents:
                continue
            relative = inside.relative_to(folder)
            unpacked += size
            if unpacked > ARCHIVE_LIMIT:
                raise SourceError(f"{archive.name}: unpacks to more than {ARCHIVE_LIMIT} bytes; not unpacked")
            target = out / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with read() as reader, open(target, "wb") as writer:
                shutil.copyfileobj(reader, writer)
            taken += 1
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise SourceError(f"{archive.name}: damaged archive ({error}); fetch it again") from None
    if not taken:
        raise SourceError(
            f"{archive.name}!/{member}: no file below this folder; correct the uri in params.yaml"
        )


def _members(archive: Path):
    """Yields (path, bytes, whether a plain file, opener) for all but folders and hidden files."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for item in file.infolist():
                if not item.is_dir() and not _hidden(item.filename):
                    link = (item.external_attr >> 16) & 0o170000 == 0o120000
                    yield item.filename, item.file_size, not link, lambda item=item: file.open(item)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as file:
            for item in file:
                if not item.isdir() and not _hidden(item.name):
                    yield item.name, item.size, item.isreg(), lambda item=item: file.extractfile(item)
    else:
        raise SourceError(f"{archive.name}: neither a zip nor a tar file; correct the uri in params.yaml")


def _hidden(path: str) -> bool:
    # macOS leaves ._name and __MACOSX beside the real files in published archives.
    parts = PurePosixPath(path).parts
    return "__MACOSX" in parts or any(part.startswith("._") or part == ".DS_Store" for part in parts)
