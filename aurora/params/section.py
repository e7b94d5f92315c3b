"""What all sections of params.yaml share: strict types, and reading no more than a stage declares.

A stage imports the module of its own section alone, so that a change of another section's schema does not make it
out of date, and reads its section alone, as dvc.yaml says it does.
"""

import json
import os
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from aurora.errors import ParamsError

PARAMS_FILE = Path("params.yaml")
MAP = Path("dvc.yaml")

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Base of all sections: immutable, strict about keys, and a number is never read from text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


Kind = TypeVar("Kind")


def read_section(key: str, kind: type[Kind], path: Path = PARAMS_FILE) -> Kind:
    """What stands at a dotted `key` of a params file, checked against its schema: a section, or one value.

    Raises ParamsError with the file, the key, the value and the rule; also where DVC runs a stage that does not
    declare this key, since DVC would then not notice a change of it.
    """
    _require_declared(key)
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


def _require_declared(key: str) -> None:
    # DVC names the stage that it runs.
    name = os.environ.get("DVC_STAGE")
    if not name or not MAP.is_file():
        return
    stage, _, instance = name.partition("@")
    entry = read_yaml(MAP).get("stages", {}).get(stage)
    if not isinstance(entry, dict):
        return
    declared = [item for item in entry.get("do", entry).get("params") or () if isinstance(item, str)]
    declared = [item.replace("${key}", instance) for item in declared]
    if not any(key == item or key.startswith(f"{item}.") for item in declared):
        raise ParamsError(
            f"{MAP}: stage {stage} reads {key}, which it does not declare; add - {key} to its params"
        )


def read_yaml(path: Path) -> dict:
    """Reads a YAML file of sections (YAML 1.2, as DVC does: `1e-4` is a number). Raises ParamsError."""
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; restore it by: git checkout {path}") from None
    except DuplicateKeyError as error:
        key, line = error.problem.split('"')[1], error.problem_mark.line + 1
        raise ParamsError(f"{path} line {line}: {key}: the name stands twice; rename or remove one") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML ({error})") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: expected sections such as 'sft:', found {type(content).__name__}")
    return content


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
