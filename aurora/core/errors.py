"""Errors that a user can act on, in one line: the rule, the place, the value and the remedy."""

import errno
import sys
from collections.abc import Callable
from functools import wraps

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a full disk or quota


class AuroraError(Exception):
    """A mistake in the input or the environment, never a defect of the program; the message is one line."""


class ParamsError(AuroraError):
    """params.yaml holds an unknown key, a wrong type or an impossible value."""


class SourceError(AuroraError):
    """A source is missing, unreachable, or not the bytes that its pin names."""


class DataError(AuroraError):
    """A row or file breaks the rule of its format."""


class ModelError(AuroraError):
    """A model, tokeniser or adapter folder is not what the stage needs."""


class ResourceError(AuroraError):
    """Memory, disk or device is too small or busy."""


def out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch ran out of memory on host or card; does not import torch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def out_of_disk(error: BaseException | None) -> bool:
    """Whether this error, or a cause of it, says that the disk is full."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def exit_with_message(function: Callable) -> Callable:
    """Decorator: an `AuroraError`, or a lack of memory or disk, becomes one line on stderr and exit status 1."""

    @wraps(function)
    def run(*args: object, **kwargs: object) -> object:
        try:
            return function(*args, **kwargs)
        except AuroraError as error:
            said = str(error)
        except Exception as error:
            reason = str(error).partition("\n")[0][:200] or "Python's own"
            if out_of_memory(error):
                said = f"memory ran out ({reason}); `aurora plan` shows what a training needs and what to lower in params.yaml"
            elif out_of_disk(error):
                said = f"the disk is full ({reason}); free some space and run dvc repro again"
            else:
                raise
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        sys.exit(1)

    return run
