"""Errors that a user can act on: one line that gives the rule, the place, the value and the remedy."""

import errno
import sys
from collections.abc import Callable
from functools import wraps

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a file system says that takes no more


class AuroraError(Exception):
    """A mistake in the input or the surroundings, said in one line; never a defect of the program."""


class ParamsError(AuroraError):
    """params.yaml holds an unknown key, a wrong type or an impossible value."""


class SourceError(AuroraError):
    """A source is missing, unreachable, or not the bytes that its pin names."""


class DataError(AuroraError):
    """A row or file breaks the rule of its format."""


class ModelError(AuroraError):
    """A model, tokeniser or adapter folder is not what the stage needs."""


class ResourceError(AuroraError):
    """Memory, disk or device does not suffice for the plan."""


def out_of_memory(error: BaseException) -> bool:
    """Whether host or card had no memory left, as Python and torch put it; torch need not be imported for it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "allocate memory" in str(error))
    )


def out_of_disk(error: BaseException | None) -> bool:
    """Whether this error, or one that it came from, says that the disk takes no more."""
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def exit_with_message(function: Callable) -> Callable:
    """Turns an `AuroraError`, and a lack of memory or disk, into one line on stderr and exit status 1."""

    @wraps(function)
    def run(*args: object, **kwargs: object) -> object:
        try:
            return function(*args, **kwargs)
        except AuroraError as error:
            said = str(error)
        except Exception as error:
            reason = str(error).partition("\n")[0][:200] or "Python's own"
            if out_of_memory(error):
                said = f"memory ran out ({reason}); `aurora plan` says what a training takes, and what to lower in params.yaml"
            elif out_of_disk(error):
                said = f"the disk takes no more ({reason}); free some space and run dvc repro again"
            else:
                raise
        print(f"error: {' '.join(said.split())}", file=sys.stderr)
        sys.exit(1)

    return run
