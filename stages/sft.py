"""sft: a LoRA adapter for the quantised base, trained on the rows of format."""

import sys
from pathlib import Path

import click

from aurora.core.errors import exit_with_message
from aurora.core.lifetime import end_with_parent
from aurora.core.locks import locked
from aurora.core.params import read_section
from aurora.launch import check_workers, is_first_worker, is_worker, launch
from aurora.model.quantization import Quantization
from aurora.sft.params import Sft
from aurora.sft.train import SCRATCH, check_before, train


@click.command()
@click.option("--base", type=click.Path(path_type=Path), required=True, help="Base model folder.")
@click.option("--rows", type=click.Path(path_type=Path), required=True, help="Folder of the format stage.")
@click.option("--adapter", type=click.Path(path_type=Path), required=True, help="PEFT folder to write.")
@click.option("--checkpoints", type=click.Path(path_type=Path), required=True, help="Folder of kept adapters.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of metrics and curve.")
@exit_with_message
def main(base: Path, rows: Path, adapter: Path, checkpoints: Path, out: Path) -> None:
    """Fine-tune the base."""
    params, quantization = read_section("sft", Sft), read_section("quantization", Quantization)
    try:
        if is_worker():
            end_with_parent()
            check_workers("sft", params)
            if is_first_worker():
                check_before(base, rows, params, quantization)
            line = train(base, rows, adapter, out, params, quantization, checkpoints)
            if line:  # of the first process alone
                print(line)
            return
        with locked(SCRATCH / "lock"):
            many = params.processes > 1
            check_before(base, rows, params, quantization, memory=not many)  # else the first worker looks at its card
            if many:
                launch("sft", params, sys.argv[1:])
            else:
                print(train(base, rows, adapter, out, params, quantization, checkpoints))
    except KeyboardInterrupt:
        if not is_worker():
            print("\nsft: interrupted; dvc repro goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
