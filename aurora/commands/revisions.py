"""Evaluations by their place: a git revision, or base and tuned of the workspace."""

import io
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.core.errors import DataError

if TYPE_CHECKING:
    import pyarrow


def stage_folders(path: Path = Path("dvc.yaml")) -> dict[str, str]:
    """The output folder of each instance of the eval stage, by its key; nothing where there is no such stage."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        stage = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]["eval"]
        return {key: stage["do"]["outs"][0].replace("${key}", key) for key in stage["foreach"]}
    except FileNotFoundError:
        return {}
    except (YAMLError, KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError):
        raise DataError(f"{path}: has no stage eval with a folder for each model; restore it from git") from None


def is_revision(name: str) -> bool:
    """Whether git knows a commit of this name here."""
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def read_revision(revision: str, folder: str) -> "pyarrow.Table":
    """questions.parquet of a folder at a git revision, from DVC's cache. Raises DataError if it is not there."""
    import dvc.api
    import pyarrow.parquet
    from dvc.exceptions import DvcException
    from dvc_data.index import DataIndexDirError
    from scmrepo.exceptions import SCMError

    path = f"{folder}/questions.parquet"
    try:
        with dvc.api.open(path, rev=revision, mode="rb") as file:
            return pyarrow.parquet.read_table(io.BytesIO(file.read()))
    except (DvcException, DataIndexDirError, SCMError, OSError) as error:
        raise DataError(
            f"{revision}:{path}: not available from DVC ({error}); run dvc fetch --all-commits, or check the revision"
        ) from None
