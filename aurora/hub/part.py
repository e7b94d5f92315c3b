"""The bytes of a file that are here so far, on disk and as digests."""

from collections.abc import Callable
from pathlib import Path

from aurora.core.files import remove
from aurora.intake.digests import Digests, Pins, measure


class Part:
    """The bytes that are here so far, with their digests; a second file holds what names the version."""

    def __init__(self, target: Path, pins: Pins, advance: Callable[[int], None]) -> None:
        self.path = target.with_name(target.name + ".part")
        self.tag_path = target.with_name(target.name + ".tag")
        self.pins, self.advance = pins, advance
        self.doubts = 0  # times that something contradicted a pin
        target.parent.mkdir(parents=True, exist_ok=True)
        tagged = self.tag_path.is_file() and self.path.is_file()
        tag = self.tag_path.read_text(errors="replace") if tagged else ""
        self.tag = tag if tag.isascii() and tag.isprintable() else ""
        self.digests = measure(self.path, pins) if self.path.is_file() else Digests(pins)
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (unbuffered: a kill loses nothing)
        advance(self.size)
        if self.size and not (self.tag or pins.sha256 or pins.git_blob):
            self.restart()  # nothing could tell whether the rest belongs to it

    @property
    def size(self) -> int:
        return self.digests.bytes

    def write(self, block: bytes) -> None:
        view = memoryview(block)
        while view:  # an unbuffered file may take less than all
            view = view[self.file.write(view) :]
        self.digests.update(block)
        self.advance(len(block))

    def restart(self, tag: str = "") -> None:
        """Forgets all bytes; `tag` names the version that comes now."""
        self.advance(-self.size)
        self.file.truncate(0)
        self.digests = Digests(self.pins)
        self.tag = tag
        self.tag_path.write_text(tag)

    def abandon(self) -> None:
        """Ends writing; what has come stays, if anything has."""
        self.file.close()
        if not self.size:
            remove(self.path)
            remove(self.tag_path)
