"""What names bytes: size, SHA-256 and git blob id."""

from dataclasses import astuple, dataclass, fields
from pathlib import Path

from aurora.core.files import git_blob_id, sha256_file
from aurora.sources.uris import printable


@dataclass(frozen=True)
class Pins:
    """What a file is expected to be, or was found to be; None where nothing is known."""

    bytes: int | None = None
    sha256: str | None = None
    git_blob: str | None = None

    def difference(self, found: "Pins") -> str | None:
        """What a message says of the first value that both know and that differs; else None."""
        for field, expected, value in zip(fields(self), astuple(self), astuple(found), strict=True):
            if None not in (expected, value) and expected != value:
                return printable(f"expected {field.name} {expected!s:.80}, found {value!s:.80}")
        return None


def measure(path: Path, expected: Pins) -> Pins:
    """Size and SHA-256 of a file, and its git blob id where `expected` has one."""
    return Pins(path.stat().st_size, sha256_file(path), git_blob_id(path) if expected.git_blob else None)


def file_entry(name: str, found: Pins) -> dict:
    """A file as a manifest lists it."""
    blob = {"git_blob": found.git_blob} if found.git_blob else {}
    return {"path": name, "sha256": found.sha256, "bytes": found.bytes} | blob
