"""One training at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aurora.errors import ResourceError


@contextmanager
def single_run(path: Path) -> Iterator[None]:
    """Holds the lock file `path`, with this process's id in it; the kernel frees it however the process ends.

    Raises ResourceError, with the id of the process that holds it, if there is one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ResourceError(
                f"sft: process {holder} is training in this folder already; wait for it, or end it by: kill {holder}"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
