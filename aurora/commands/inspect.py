"""`aurora inspect MODEL_DIR`: parameters, bytes and bits per parameter of a model folder, by part."""

import json
from pathlib import Path

import click

from aurora.core.errors import exit_with_message
from aurora.model.folder import read_config, read_headers, refuse_foreign_quantization
from aurora.model.quantization import Quantization
from aurora.model.sizes import planned, stored


def table(groups: dict[str, dict]) -> str:
    """The groups as aligned text."""
    lines = [f"{'part':<12}{'parameters':>18}{'bytes':>18}{'GiB':>10}{'bits/parameter':>16}"]
    for name, group in groups.items():
        size = group["bytes"]
        bits = group["bits_per_parameter"]
        lines.append(f"{name:<12}{group['parameters']:>18,}{size:>18,}{size / 2**30:>10.3f}{bits:>16.3f}")
    return "\n".join(lines)


@click.command()
@click.argument("model_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--nf4", is_flag=True, help="As the model would be held in 4 bits (double quantisation, bfloat16).")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@exit_with_message
def inspect(model_dir: Path, nf4: bool, as_json: bool) -> None:
    """Print parameters, bytes and bits per parameter of MODEL_DIR by part, from headers alone."""
    config = read_config(model_dir)
    refuse_foreign_quantization(model_dir, config)
    if nf4 and not config.get("quantization_config"):
        read_headers(model_dir)
        groups = planned(model_dir, Quantization(bits=4, double_quant=True, compute_dtype="bfloat16"))
    else:
        groups = stored(model_dir)
    click.echo(json.dumps(groups, indent=2) if as_json else table(groups))
