"""Held-out loss, replies and benchmarks of the base with each kept adapter, the base being loaded once."""

from pathlib import Path
from typing import TYPE_CHECKING

from aurora.checkpoints.params import Checkpoints
from aurora.core.errors import DataError, ParamsError
from aurora.core.files import write_json
from aurora.eval.evaluate import check_subjects, read_subjects, score_benchmarks
from aurora.eval.params import Benchmark, Eval
from aurora.model.quantization import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from aurora.eval.benchmarks import Subject
    from aurora.eval.resume_cache import ResumeCache


def score_checkpoints(
    base: Path,
    checkpoints: Path,
    rows: Path,
    benchmarks: Path,
    out: Path,
    params: Checkpoints,
    settings: Eval,
    quantization: Quantization,
) -> list[dict]:
    """Scores each of params.steps and writes them to `out`/scores.json: {scores: [{step, loss, …}]}.

    Raises DataError for a step that the training did not keep and what `evaluate` raises.
    """
    folders = {step: checkpoints / f"step-{step}" for step in sorted(set(params.steps))}
    for step, folder in folders.items():
        if not folder.is_dir():
            raise DataError(f"{folder}: not found; add {step} to sft.keep_checkpoints and run dvc repro sft")
    if foreign := [name for name in params.benchmarks if name not in settings.tasks]:
        raise ParamsError(f"params.yaml: checkpoints.benchmarks has {foreign[0]}, which eval.tasks lacks; add it there")
    found = read_subjects(benchmarks, settings) if params.benchmarks else {}
    subjects = {name: members for name, members in found.items() if name in params.benchmarks}
    check_subjects(subjects)
    scores = _scores(base, folders, rows, subjects, settings, quantization) if folders else []
    write_json(out / "scores.json", {"scores": scores})
    return scores


def _scores(
    base: Path,
    folders: dict[int, Path],
    rows: Path,
    subjects: dict["Benchmark", list["Subject"]],
    settings: Eval,
    quantization: Quantization,
) -> list[dict]:
    import torch
    from peft import LoraConfig

    from aurora.eval.resume_cache import digest_of, open_resume_cache
    from aurora.lora.attach import attach, load_weights
    from aurora.lora.targets import find_targets
    from aurora.model.folder import meta_model
    from aurora.model.loading import load_model, load_tokenizer

    torch.set_num_threads(settings.threads)
    tokenizer, model = load_tokenizer(base), load_model(base, quantization)
    config = LoraConfig.from_pretrained(next(iter(folders.values())))  # of one training, and so of all
    targets = find_targets(meta_model(base), config, str(base))
    tuned = attach(model, targets).eval()
    digest, scores, caches = digest_of(base), [], []
    for step, folder in folders.items():
        load_weights(tuned, targets, folder)
        cache = open_resume_cache(f"{digest} {digest_of(folder)}", quantization.model_dump())
        caches.append(cache)
        scores.append({"step": step} | _score(model, tokenizer, rows, subjects, settings, cache))
    for cache in caches:
        cache.forget()
    return scores


def _score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    rows: Path,
    subjects: dict["Benchmark", list["Subject"]],
    settings: Eval,
    cache: "ResumeCache",
) -> dict:
    """One line of scores.json; the layers of `model` hold the adapter."""
    from aurora.eval.held_out import held_out_loss
    from aurora.eval.prefix import PrefixLM
    from aurora.eval.replies import answer_prompts

    most = min(settings.max_length, model.config.max_position_embeddings)
    loss = held_out_loss(model, rows, settings.loss_rows, settings.batch_tokens, cache)
    metrics, _ = answer_prompts(model, tokenizer, rows, settings.replies, most, cache)
    found = {"loss": loss} | metrics
    if subjects:
        lm = PrefixLM(model, tokenizer=tokenizer, batch_tokens=settings.batch_tokens, max_length=most, memory=cache)
        results, _ = score_benchmarks(lm, subjects, settings)
        found |= {name: results[name] for name in subjects}
    return found
