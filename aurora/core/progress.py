"""Progress bars without a terminal: a line every ten seconds instead of hundreds of redrawn ones."""

import io
import os
import sys

SECONDS = "10"


class Lines(io.TextIOWrapper):
    """A text stream in which a bar that redraws itself (by a carriage return) becomes lines."""

    begun = False  # whether the line has text

    def write(self, text: str) -> int:
        """Writes `text`; a carriage return ends a line, and a redrawn empty line is left out."""
        shown = text
        if "\r" in text and not text.strip():
            shown = "\n" * self.begun
        elif text.startswith("\r") and not self.begun:
            shown = text[1:]
        shown = shown.replace("\r", "\n")
        if shown:
            super().write(shown)
            self.begun = not shown.endswith("\n")
        return len(text)


def calm_bars() -> None:
    """Makes bars of tqdm calm where stderr is no terminal; call it before tqdm is imported."""
    stream = sys.__stderr__  # a test that captures has put another in its place
    if stream is not None and sys.stderr is stream and not stream.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", SECONDS)
        sys.stderr = Lines(stream.buffer, "utf-8", "backslashreplace", line_buffering=True)
