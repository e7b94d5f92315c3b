"""Errors that a user can act on: one line that gives the rule, the place, the value and the remedy."""

import sys
from collections.abc import Callable
from functools import wraps


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


def one_line(function: Callable) -> Callable:
    """Turns an `AuroraError` into one line on stderr and exit status 1, for the edge of a command."""

    @wraps(function)
    def run(*args: object, **kwargs: object) -> object:
        try:
            return function(*args, **kwargs)
        except AuroraError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            sys.exit(1)

    return run
