"""Python runs this first where its folder is on PYTHONPATH: writes what the process opens, and where it connects to.

AURORA_TRACE names the file of JSON lines, AURORA_TRACE_BELOW the folders of interest. Child processes inherit both.
"""

import json
import os
import sys


def _watch() -> None:
    below = tuple(os.environ["AURORA_TRACE_BELOW"].split(os.pathsep))
    log = os.open(os.environ["AURORA_TRACE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    seen = set()

    def write(kind: str, what: str) -> None:
        if (kind, what) not in seen:
            seen.add((kind, what))
            os.write(log, json.dumps([kind, what]).encode() + b"\n")  # one write: lines of processes do not mix

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.abspath(os.fsdecode(arguments[0]))  # noqa: PTH100 (a link is named as it is opened)
            if path.startswith(below):
                write("open", path)
        elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
            write("connect", str(arguments[1][0]))
        elif event == "socket.getaddrinfo" and arguments[0]:
            write("connect", os.fsdecode(arguments[0]))

    sys.addaudithook(hook)


if "AURORA_TRACE" in os.environ:
    # An editable install would lend a stage the modules that its folder lacks.
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
    _watch()
