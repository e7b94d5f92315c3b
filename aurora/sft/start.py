"""The adapter that a training goes on from: found, proved to be the one that was named, and of the same base."""

import shutil
from pathlib import Path

from aurora.adapter.config import read_adapter_config
from aurora.adapter.record import check_base
from aurora.core.errors import ModelError, ParamsError
from aurora.core.files import replacing, sha256_file
from aurora.sft.params import Sft, StartFrom

WEIGHTS = "adapter_model.safetensors"
SCRATCH = Path(".aurora/start")  # adapters of other commits, by their hash
SAME = ("r", "lora_alpha", "use_rslora", "use_dora")  # of adapter_config.json and of sft.lora


def start_folder(start: StartFrom) -> Path:
    """The folder of the adapter, taken out of DVC's cache or remote where a commit is named.

    Raises ModelError where it is not there, and ParamsError where it is not the one of `sha256`.
    """
    folder = Path(start.adapter)
    if start.rev is not None:
        folder = SCRATCH / start.sha256
        if not folder.is_dir():
            _take(start, folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ModelError(f"params.yaml: sft.start_from.adapter: {weights} not found; name a folder that PEFT wrote")
    if (found := sha256_file(weights)) != start.sha256:
        raise ParamsError(
            f"params.yaml: sft.start_from.sha256: {weights} has {found}; write this one if it is the adapter you mean"
        )
    return folder


def _take(start: StartFrom, folder: Path) -> None:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    with replacing(folder) as partial:
        try:
            DVCFileSystem(rev=start.rev).get(start.adapter, str(partial), recursive=True)
        except (DvcException, OSError, ValueError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            reason = str(error).partition("\n")[0][:200]
            raise ModelError(
                f"params.yaml: sft.start_from: {start.adapter} of {start.rev} cannot be read ({reason}); run dvc pull"
                " where the remote is reached, or name another commit"
            ) from None


def check_start(sft: Sft, base: Path) -> None:
    """Raises ModelError for an adapter of another base, ParamsError for one of another shape."""
    if (start := sft.start_from) is None:
        return
    folder = start_folder(start)
    check_base(folder, base)
    config, wanted = read_adapter_config(folder), sft.lora.config().to_dict()
    for name in SAME:
        if config.get(name, False) != wanted[name]:
            raise ParamsError(
                f"params.yaml: sft.lora.{name} is {wanted[name]}, but {folder} has {config.get(name)}; let them agree"
            )
