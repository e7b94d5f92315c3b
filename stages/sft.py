"""sft: a LoRA adapter for the quantised base, trained on the rows of format."""

from pathlib import Path

import click

from aurora.errors import one_line
from aurora.params import load_params
from aurora.training import train, write_outcome


@click.command()
@click.option("--base", type=click.Path(path_type=Path), required=True, help="Base model folder.")
@click.option("--rows", type=click.Path(path_type=Path), required=True, help="Folder of the format stage.")
@click.option("--adapter", type=click.Path(path_type=Path), required=True, help="PEFT folder to write.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of metrics and curve.")
@one_line
def main(base: Path, rows: Path, adapter: Path, out: Path) -> None:
    """Fine-tune the base."""
    params = load_params()
    metrics, curve = train(base, rows, adapter, params.sft, params.quantization)
    write_outcome(out, metrics, curve)
    print(
        f"sft: {metrics['steps']} steps, held-out loss {metrics['held_out_loss_first']:.3f}"
        f" -> {metrics['held_out_loss_last']:.3f}"
    )


if __name__ == "__main__":
    main()
