"""One process a card: a stage run again, as many times as its section says, under `accelerate launch`."""

import logging
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Protocol

from aurora.core.errors import ParamsError, ResourceError
from aurora.core.yaml_files import read_yaml

TURN = 3  # seconds in which the launcher ends all processes once one has failed


class Processes(Protocol):
    """A section of params.yaml whose stage can run in several processes."""

    @property
    def processes(self) -> int: ...

    @property
    def accelerate_config(self) -> str | None: ...

    @property
    def threads(self) -> int: ...


def is_worker() -> bool:
    """Whether this process is one that `accelerate launch` has started."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def is_first_worker() -> bool:
    """Whether it is the first of its machine."""
    return is_worker() and os.environ["LOCAL_RANK"] == "0"


def check_workers(stage: str, params: Processes) -> None:
    """Raises ParamsError where the launcher has started another number of processes than params.yaml states."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != params.processes:
        raise ParamsError(
            f"params.yaml: {stage}.processes is {params.processes}, but {started} were started; let them agree"
        )


@contextmanager
def behind_the_first() -> Iterator[Path]:
    """For a process that is not the first of all: a folder that goes in place of the output, and no word on stderr.

    An error that the first has too is told by the first alone.
    """
    with (
        tempfile.TemporaryDirectory() as name,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stderr(nowhere),
    ):
        try:
            yield Path(name)
        except Exception:
            time.sleep(TURN)
            raise


def check_machines(stage: str, file: str) -> None:
    """Raises ParamsError for a file that is missing, or that `accelerate config` would not have written."""
    from accelerate.commands.config.config_args import load_config_from_file

    if not Path(file).is_file():
        raise ParamsError(
            f"params.yaml: {stage}.accelerate_config: {file} not found; write it by: accelerate config --config_file {file},"
            " or set null for one machine"
        )
    read_yaml(Path(file))
    try:
        load_config_from_file(file)
    except (ValueError, TypeError, KeyError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ParamsError(
            f"{file}: accelerate does not take it ({reason}); write it again by: accelerate config --config_file {file}"
        ) from None


def launch(stage: str, params: Processes, options: list[str]) -> None:
    """Runs `python -m stages.STAGE` with `options` in as many processes as `params` say.

    Of all that `accelerate config` can set, only what names the machines is taken; the recipe is in params.yaml.
    Raises ResourceError if a process fails for a reason that it has not said itself, else exits as it did.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no"]
    arguments += ["--num_processes", str(params.processes), "--num_cpu_threads_per_process", str(params.threads)]
    if params.accelerate_config:
        check_machines(stage, params.accelerate_config)
        arguments += ["--config_file", params.accelerate_config]
    else:
        arguments += shlex.split("--num_machines 1 --machine_rank 0 --main_process_port 0 --gpu_ids all")
    for name in ("torch.distributed.elastic", "torch.distributed.run", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*arguments, "-m", f"stages.{stage}", *options]))
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        code = next(iter(error.failures.values())).exitcode
        if code == 1:  # said in its own line
            sys.exit(1)
        print(file=sys.stderr)  # the dead process may have left a bar behind
        raise ResourceError(
            f"{stage}: a process ended with status {code} (below 0: a signal); dvc repro goes on from what was saved"
        ) from None
