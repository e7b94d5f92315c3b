"""Progress bars without a terminal: a line every ten seconds instead of hundreds of redrawn ones."""

import io
import os
import sys

SECONDS = "10"


class Lines(io.TextIOWrapper):
    """A text stream in which a bar that redraws itself (by a carriage return) becomes lines."""

    def write(self, text: str) -> int:
        """Writes `text`; a carriage return ends a line, and a redrawn empty line is left out."""
        super().write(text.replace("\r", "\n") if text.strip() else text.replace("\r", ""))
        return len(text)


def calm_bars() -> None:
    """Makes bars of tqdm calm where stderr is no terminal; call it before tqdm is imported."""
    if sys.stderr is sys.__stderr__ and not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", SECONDS)
        sys.stderr = Lines(sys.stderr.buffer, "utf-8", "backslashreplace", line_buffering=True)
