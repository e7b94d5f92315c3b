"""report: REPORT.md, and the metrics, plot tables and replies that git tracks."""

from pathlib import Path

import click

from aurora.core.errors import exit_with_message
from aurora.report.inputs import MODELS, shown
from aurora.report.write import Outputs, write_report

PATH = click.Path(path_type=Path)


@click.command()
@click.option("--clean", type=PATH, required=True, help="metrics.json of clean.")
@click.option("--format", type=PATH, required=True, help="metrics.json of format.")
@click.option("--sft", type=PATH, required=True, help="Folder of metrics and curve of sft.")
@click.option("--merge", type=PATH, required=True, help="metrics.json of merge.")
@click.option("--base", type=PATH, required=True, help="Folder of eval of the base.")
@click.option("--tuned", type=PATH, required=True, help="Folder of eval of the tuned model.")
@click.option("--adapter", type=PATH, required=True, help="PEFT folder of sft.")
@click.option("--checkpoints", type=PATH, required=True, help="scores.json of checkpoints.")
@click.option("--sources", type=PATH, required=True, help="sources.json of clean.")
@click.option("--base-manifest", type=PATH, required=True, help="Manifest of the fetched base.")
@click.option("--lengths", type=PATH, required=True, help="lengths.csv of format.")
@click.option("--out", type=PATH, required=True, help="Folder to write into.")
@click.option("--report", type=PATH, required=True, help="Markdown page to write, beside the folder.")
@click.option("--page", type=PATH, required=True, help="HTML page to write.")
@exit_with_message
def main(base: Path, tuned: Path, out: Path, report: Path, page: Path, **places: Path) -> None:
    """Gather what git tracks."""
    models = {"base": base, "tuned": tuned}
    scores = write_report(Outputs(models=models, **places), out, report, page)
    change = ", ".join(f"{model} {shown(scores[model]['zh_reply_rate'], '.2f')}" for model in MODELS)
    print(f"report: zh_reply_rate {change}; loss {scores['base']['loss']:.3f} -> {scores['tuned']['loss']:.3f}")


if __name__ == "__main__":
    main()
