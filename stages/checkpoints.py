"""checkpoints: scores of the adapters that sft kept at chosen steps."""

from pathlib import Path

import click

from aurora.checkpoints.params import Checkpoints
from aurora.checkpoints.score import score_checkpoints
from aurora.core.errors import exit_with_message
from aurora.core.files import replacing
from aurora.core.params import read_section
from aurora.eval.params import Eval
from aurora.model.quantization import Quantization


@click.command()
@click.option("--base", type=click.Path(path_type=Path), required=True, help="Base model folder.")
@click.option("--checkpoints", type=click.Path(path_type=Path), required=True, help="Adapters that sft kept.")
@click.option("--rows", type=click.Path(path_type=Path), required=True, help="held_out.parquet of format.")
@click.option("--benchmarks", type=click.Path(path_type=Path), required=True, help="Fetched benchmarks.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@exit_with_message
def main(base: Path, checkpoints: Path, rows: Path, benchmarks: Path, out: Path) -> None:
    """Score kept checkpoints."""
    params, settings = read_section("checkpoints", Checkpoints), read_section("eval", Eval)
    quantization = read_section("quantization", Quantization)
    with replacing(out) as partial:
        partial.mkdir()
        scores = score_checkpoints(base, checkpoints, rows, benchmarks, partial, params, settings, quantization)
    lines = ", ".join(f"step {score['step']:,} loss {score['loss']:.3f}" for score in scores)
    print(f"checkpoints: {lines or 'none to score'}")


if __name__ == "__main__":
    main()
