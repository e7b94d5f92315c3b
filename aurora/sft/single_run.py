"""One training at a time, and none that outlives the command which started it."""

import fcntl
import os
import select
import signal
import threading
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


def end_with(process: int) -> None:
    """Kills this process as soon as `process` is gone, whatever ended it.

    Checkpoints and outputs are whole at every moment, so that nothing has to be tidied up first.
    """
    if not hasattr(os, "pidfd_open"):  # Linux alone
        return
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)

    def wait() -> None:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="end-with", daemon=True).start()


def end_with_parent() -> None:
    """Kills this process when the one that started it is gone."""
    end_with(os.getppid())


def end_with_dvc() -> None:
    """Where DVC runs this process: kills it when DVC is gone, since DVC killed alone leaves its command behind."""
    process = os.getppid()
    # DVC sets DVC_STAGE for its command; a shell in between may keep it. What has it not, is DVC itself.
    while process > 1 and "DVC_STAGE" in os.environ and _has(process, b"DVC_STAGE="):
        process = _parent(process)
    if "DVC_STAGE" in os.environ and process > 1:
        end_with(process)


def _has(process: int, name: bytes) -> bool:
    try:
        content = Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False
    return any(entry.startswith(name) for entry in content.split(b"\0"))


def _parent(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    return int(status.rpartition(")")[2].split()[1])
