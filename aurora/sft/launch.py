"""One process a card: the sft stage run again, as many times as sft.processes says, under `accelerate launch`."""

import logging
import os
import shlex
import sys
from pathlib import Path

from aurora.core.errors import ParamsError, ResourceError
from aurora.core.yaml_files import read_yaml
from aurora.sft.params import Sft


def is_worker() -> bool:
    """Whether this process is one that `accelerate launch` has started."""
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def is_first_worker() -> bool:
    """Whether it is the first of its machine."""
    return is_worker() and os.environ["LOCAL_RANK"] == "0"


def check_workers(sft: Sft) -> None:
    """Raises ParamsError where the launcher has started another number of processes than params.yaml states."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != sft.processes:
        raise ParamsError(
            f"params.yaml: sft.processes is {sft.processes}, but {started} were started; the number is part of the"
            " recipe, since the effective batch depends on it: let them agree"
        )


def check_machines(file: str) -> None:
    """Raises ParamsError for a file that is missing, or that `accelerate config` would not have written."""
    from accelerate.commands.config.config_args import load_config_from_file

    if not Path(file).is_file():
        raise ParamsError(
            f"params.yaml: sft.accelerate_config: {file} not found; write it by: accelerate config --config_file {file},"
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


def launch(sft: Sft, options: list[str]) -> None:
    """Runs `python -m stages.sft` with `options` in sft.processes processes under DistributedDataParallel.

    Of all that `accelerate config` can set, only what names the machines is taken; the recipe is in params.yaml.
    Raises ResourceError if a process fails for a reason that it has not said itself, else exits as it did.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    arguments = ["--multi_gpu", "--mixed_precision", "no", "--dynamo_backend", "no"]
    arguments += ["--num_processes", str(sft.processes), "--num_cpu_threads_per_process", str(sft.threads)]
    if sft.accelerate_config:
        check_machines(sft.accelerate_config)
        arguments += ["--config_file", sft.accelerate_config]
    else:
        arguments += shlex.split("--num_machines 1 --machine_rank 0 --main_process_port 0 --gpu_ids all")
    for name in ("torch.distributed.elastic", "torch.distributed.run", "accelerate"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        launch_command(launch_command_parser().parse_args([*arguments, "-m", "stages.sft", *options]))
    except SignalException:
        raise KeyboardInterrupt from None
    except ChildFailedError as error:
        code = next(iter(error.failures.values())).exitcode
        if code == 1:  # said in its own line
            sys.exit(1)
        raise ResourceError(
            f"sft: a training process ended with status {code} (below 0: a signal); dvc repro goes on from the last"
            " checkpoint"
        ) from None
