"""YAML files that people write, read as DVC reads them (YAML 1.2)."""

from pathlib import Path

from aurora.core.errors import ParamsError


def read_yaml(path: Path) -> dict:
    """A YAML file of sections (YAML 1.2: `1e-4` is a number).

    Raises ParamsError with file, line and rule for a file that is missing, unreadable, damaged, or names a key twice.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.constructor import DuplicateKeyError
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe").load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(
            f"{path}: not found; run this in the root of the repository, or restore it by: git checkout {path}"
        ) from None
    except OSError as error:
        raise ParamsError(f"{path}: cannot be read ({error.strerror})") from None
    except DuplicateKeyError as error:
        key, line = error.problem.split('"')[1], error.problem_mark.line + 1
        raise ParamsError(f"{path} line {line}: {key}: the name stands twice; rename or remove one") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path}: not YAML ({error})") from None
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: expected sections such as 'sft:', found {type(content).__name__}")
    return content
