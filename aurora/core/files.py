"""Files that are written whole or not at all, and hashes of files."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import DataError

if TYPE_CHECKING:
    from pydantic import BaseModel


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path` and renames it on success; a failure leaves nothing behind.

    The caller creates a file or a folder at the yielded path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    remove(partial)
    try:
        yield partial
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Removes a file or a folder; a missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until the bytes of a file, or the entries of a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """Waits until a folder, everything in it, and its name are on the disk."""
    for path in [*sorted(folder.rglob("*")), folder, folder.parent]:
        flush(path)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text with `\\n` line ends."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode())


def write_json(path: Path, value: object) -> None:
    """Writes JSON with two spaces of indent and a final newline, keys in the given order.

    Floats are rounded to six significant digits, so that metric files stay readable. Raises DataError for NaN.
    """
    try:
        text = json.dumps(rounded(value), ensure_ascii=False, indent=2, allow_nan=False)
    except ValueError as error:
        raise DataError(f"{path}: a number is NaN or infinite and cannot be a metric ({error})") from None
    write_text(path, text + "\n")


def rounded(value: object) -> object:
    """The same JSON value with each float at six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value


def read_json(path: Path, producer: str) -> dict:
    """Reads a JSON object. `producer` is the stage that writes the file, for the error message.

    Raises DataError if the file is missing, is not JSON, or holds something else than an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: not found; it is written by: dvc repro {producer}") from None
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise DataError(f"{path}: not JSON ({error}); write it again by: dvc repro -f {producer}") from None
    if not isinstance(content, dict):
        found = type(content).__name__
        raise DataError(
            f"{path}: whole file: not a JSON object, found {found}; write it again by: dvc repro -f {producer}"
        )
    return content


def read_checked(path: Path, kind: "type[BaseModel]", producer: str) -> dict:
    """Reads a JSON object whose shape is the pydantic model `kind`; `producer` as in `read_json`.

    Also raises DataError, with the key and its value, for another shape.
    """
    from pydantic import ValidationError

    content = read_json(path, producer)
    try:
        kind.model_validate(content, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        key = ".".join(map(str, fault["loc"])) or "whole file"
        rule = fault["msg"].removeprefix("Value error, ")
        found = "" if fault["type"] == "missing" else f", found {fault['input']!r:.80}"
        raise DataError(f"{path}: {key}: {rule}{found}; write it again by: dvc repro -f {producer}") from None
    return content


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digests(path: Path) -> tuple[str, str]:
    """SHA-256 and MD5 of a file's bytes, in hex, from one read."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
            md5.update(block)
    return sha256.hexdigest(), md5.hexdigest()


def git_blob_id(path: Path) -> str:
    """The id that git gives to these bytes: SHA-1 of `blob <size>\\0` and the bytes."""
    digest = hashlib.sha1(f"blob {os.path.getsize(path)}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def dvc_hash(path: Path) -> str:
    """The hash by which dvc.lock and the DVC cache name a file or a folder: MD5, with the suffix `.dir` for a folder."""
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.is_file()]
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter's lock
            hashes = pool.map(dvc_hash, files)
        return folder_hash({file.relative_to(path).as_posix(): md5 for file, md5 in zip(files, hashes, strict=True)})
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def folder_hash(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder, from the MD5 of each file by its path in it."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    text = json.dumps(entries, sort_keys=True)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest() + ".dir"
