"""eval: benchmarks, held-out loss and replies of one model."""

import os
import sys
from pathlib import Path

import click

from aurora.core.errors import exit_with_message
from aurora.core.files import replacing
from aurora.core.lifetime import end_with_parent
from aurora.core.messages import PromptName
from aurora.core.params import read_section
from aurora.eval.evaluate import evaluate
from aurora.eval.params import Eval
from aurora.launch import behind_the_first, check_workers, is_worker, launch
from aurora.model.quantization import Quantization


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Folder of the model.")
@click.option("--benchmarks", type=click.Path(path_type=Path), required=True, help="Fetched benchmarks.")
@click.option("--rows", type=click.Path(path_type=Path), required=True, help="held_out.parquet of format.")
@click.option("--prompts", type=click.Path(path_type=Path), required=True, help="Fixed prompts by kind.")
@click.option("--prompt-sources", type=click.Path(path_type=Path), help="Fetched prompts, in a folder each.")
@click.option("--own-tasks", type=click.Path(path_type=Path), help="Folder of lm-eval task files.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@exit_with_message
def main(
    model: Path,
    benchmarks: Path,
    rows: Path,
    prompts: Path,
    prompt_sources: Path | None,
    own_tasks: Path | None,
    out: Path,
) -> None:
    """Evaluate one model."""
    params = read_section("eval", Eval)
    quantization = read_section("quantization", Quantization)
    form = read_section("format.prompt", PromptName)
    if is_worker():
        end_with_parent()
        check_workers("eval", params)
    elif params.processes > 1:
        launch("eval", params, sys.argv[1:])
        return
    first = int(os.environ.get("RANK", 0)) == 0
    with replacing(out) if first else behind_the_first() as partial:
        partial.mkdir(exist_ok=True)
        results = evaluate(
            model,
            benchmarks,
            rows,
            prompts,
            partial,
            params,
            quantization,
            form,
            own_tasks=own_tasks,
            prompt_sources=prompt_sources,
        )
    if not first:
        return
    scores = ", ".join(f"{name} {results[name]['acc']:.3f}" for name in params.tasks)
    judged = results["replies"] - results["no_language"]
    print(
        f"eval: {scores}, loss {results['loss']:.3f}, "
        f"{results['zh_reply_rate'] or 0:.0%} of {judged} replies with words in Chinese"
    )


if __name__ == "__main__":
    main()
