"""No stage outlives the command that started it.

DVC that is killed alone leaves its command behind, which would go on, and write while a second one runs.
"""

import json
import os
import select
import signal
import threading
from pathlib import Path

RWLOCK = Path(".dvc/tmp/rwlock")  # where DVC notes which of its processes runs what


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
    if "DVC_STAGE" not in os.environ:
        return
    process = os.getppid()
    # DVC sets DVC_STAGE for its command; a shell in between may keep it. What has it not, is DVC itself.
    while process > 1 and _has(process, b"DVC_STAGE="):
        process = _parent(process)
    if process <= 1:  # DVC is the first process of a container, or was killed before this line
        process = next(filter(_runs, _holders()), 0)
    if process:
        end_with(process)
    elif RWLOCK.is_file():
        os.kill(os.getpid(), signal.SIGKILL)


def _holders() -> list[int]:
    """Processes of DVC that hold a path of this repository, dead ones among them."""
    if not RWLOCK.is_file():
        return []
    try:
        held = json.loads(RWLOCK.read_text(encoding="utf-8"))
        readers = [holder for holders in held.get("read", {}).values() for holder in holders]
        return [int(holder["pid"]) for holder in [*readers, *held.get("write", {}).values()]]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return []


def _runs(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


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
