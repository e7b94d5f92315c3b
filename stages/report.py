"""report: the metrics, plot tables and replies that git tracks."""

from pathlib import Path

import click

from aurora.errors import one_line
from aurora.reporting import MODELS, write_report

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--clean", type=PATH, required=True, help="metrics.json of clean.")
@click.option("--format", "format_", type=PATH, required=True, help="metrics.json of format.")
@click.option("--sft", type=PATH, required=True, help="Folder of metrics and curve of sft.")
@click.option("--merge", type=PATH, required=True, help="metrics.json of merge.")
@click.option("--base", type=PATH, required=True, help="Folder of eval of the base.")
@click.option("--tuned", type=PATH, required=True, help="Folder of eval of the tuned model.")
@click.option("--adapter-card", type=PATH, required=True, help="README.md of the adapter.")
@click.option("--model-card", type=PATH, required=True, help="README.md of the merged model.")
@click.option("--out", type=PATH, required=True, help="Folder to write into.")
@one_line
def main(
    clean: Path,
    format_: Path,
    sft: Path,
    merge: Path,
    base: Path,
    tuned: Path,
    adapter_card: Path,
    model_card: Path,
    out: Path,
) -> None:
    """Gather what git tracks."""
    cards = {"adapter_card.md": adapter_card, "model_card.md": model_card}
    scores = write_report(clean, format_, sft, merge, {"base": base, "tuned": tuned}, cards, out)
    change = ", ".join(f"{model} {scores[model]['zh_reply_rate']:.2f}" for model in MODELS)
    print(
        f"report: zh_reply_rate {change}; loss {scores['base']['loss']:.3f} -> {scores['tuned']['loss']:.3f}"
    )


if __name__ == "__main__":
    main()
