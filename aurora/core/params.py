"""What all sections of params.yaml share: strict types, and reading only what a stage declares.

A stage imports the module of its own section alone, so that a change of another section's schema does not make it
out of date, and reads its section alone, as dvc.yaml says it does.
"""

import json
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from aurora.core.declared import require_declared
from aurora.core.errors import ParamsError
from aurora.core.yaml_files import read_yaml

PARAMS_FILE = Path("params.yaml")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Base of all sections: immutable, strict about keys, and a number is never read from text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind")


def read_section(key: str, kind: type[Kind], path: Path = PARAMS_FILE) -> Kind:
    """The value at a dotted `key` of a params file, checked against its schema: a section, or one value.

    Raises ParamsError with the file, the key, the value and the rule; also where DVC runs a stage that does not
    declare this key, since DVC would then not notice a change of it.
    """
    require_declared(key)
    content: object = read_yaml(path)
    *parents, last = key.split(".")
    for name in [*parents, last]:
        if not isinstance(content, dict) or name not in content:
            known = f"; there are {', '.join(content)}" if isinstance(content, dict) and parents else ""
            raise ParamsError(f"{path}: {key}: missing{known or '; add it (profiles/ has examples)'}")
        content = content[name]
    try:
        return TypeAdapter(kind).validate_json(strict(content), strict=True)
    except ValidationError as error:
        raise ParamsError(f"{path}: {describe(error, key)}") from None


def strict(content: object) -> str:
    """As JSON, since strict mode then accepts lists for tuples, and nothing else that YAML might hold."""
    return json.dumps(content, default=str)


def describe(error: ValidationError, section: str = "") -> str:
    """One fault of a pydantic error in one line: key, rule, value; an unknown key before what it leaves missing."""
    faults = error.errors(include_url=False)
    fault = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    place = [section, *map(str, fault["loc"])] if section else list(map(str, fault["loc"]))
    key = ".".join(place) or "whole file"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        missing = [
            other["loc"][-1]
            for other in faults
            if other["type"] == "missing" and other["loc"][:-1] == fault["loc"][:-1]
        ]
        near = get_close_matches(str(fault["loc"][-1]), map(str, missing), n=1)
        remedy = f"did you mean {near[0]}?" if near else "remove it or correct its spelling"
        return f"{key}: unknown key; {remedy}{more}"
    if fault["type"] == "missing":
        return f"{key}: missing; add it (profiles/ has examples){more}"
    rule = fault["msg"].removeprefix("Value error, ")
    value = "" if fault["type"] == "value_error" else f", found {fault['input']!r}"
    return f"{key}: {rule}{value}{more}"
