"""What names bytes: size, SHA-256 and git blob id."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from aurora.core.files import git_blob_id

BLOCK = 1 << 20  # bytes read at once


@dataclass(frozen=True)
class Pins:
    """What a file is expected to be; None where nothing is known."""

    bytes: int | None = None
    sha256: str | None = None
    git_blob: str | None = None


class Digests:
    """Size and SHA-256 of the bytes given to `update`, beside the pins that they should fit."""

    def __init__(self, pins: Pins) -> None:
        self.pins = pins
        self.bytes = 0
        self._sha256 = hashlib.sha256()

    def update(self, block: bytes) -> None:
        """Takes the next bytes."""
        self.bytes += len(block)
        self._sha256.update(block)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, in hex."""
        return self._sha256.hexdigest()

    def difference(self, path: Path) -> tuple[str, object, object] | None:
        """(pin, expected, found) of the first pin that these bytes, all of `path`, do not fit; else None."""
        pins = self.pins
        found = {"bytes": self.bytes, "sha256": self.sha256}
        if pins.git_blob:
            found["git_blob"] = git_blob_id(path)
        return next(
            (
                (pin, getattr(pins, pin), value)
                for pin, value in found.items()
                if getattr(pins, pin) not in (None, value)
            ),
            None,
        )


def measure(path: Path, pins: Pins) -> Digests:
    """Digests of a file's bytes."""
    digests = Digests(pins)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digests.update(block)
    return digests


def copy(origin: Path, target: Path, pins: Pins) -> Digests:
    """Copies a file and returns the digests of what was copied."""
    digests = Digests(pins)
    with open(origin, "rb") as reader, open(target, "xb") as writer:
        while block := reader.read(BLOCK):
            digests.update(block)
            writer.write(block)
    return digests
