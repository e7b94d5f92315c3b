"""The merged model's card in Hugging Face's form: base, data with licences, recipe, provenance by hashes, scores."""

from pathlib import Path

from aurora.adapter.record import read_record
from aurora.core.files import dvc_hash
from aurora.core.manifests import find_manifest, read_origins
from aurora.report.adapter_card import (
    SCORES,
    base_name,
    base_section,
    field,
    front_matter,
    hub_id,
    licence_fields,
    non_commercial_note,
    provenance_section,
    recipe_section,
    table,
)

BENCHMARKS = {"ceval": "C-Eval (val)", "mmlu": "MMLU (test)", "cmmlu": "CMMLU (test)"}


def merged_card(base: Path, adapter: Path, sources: Path) -> str:
    """README.md of the merged model; `sources` is the file in which clean tells of what it read.

    Raises DataError where that file, or what the card reads of base and adapter, is missing or damaged.
    """
    record, manifest = read_record(adapter), find_manifest(base) or {}
    origins = {
        origin["source"]: origin for origin in read_origins(sources) if origin["kind"] == "instructions"
    }
    licences = [manifest.get("licence"), *(origin["licence"] for origin in origins.values())]
    front = {
        "base_model": hub_id(manifest.get("uri")),
        "base_model_relation": "finetune",
        "datasets": sorted({found for origin in origins.values() if (found := hub_id(origin["uri"]))}),
        "language": ["zh", "en"],
        "library_name": "transformers",
        **licence_fields(licences),
        "pipeline_tag": "text-generation",
        "tags": ["lora", "merged", "conversational"],
    }
    rows = record.get("rows", {}).get("sources", {})
    data = [
        (
            name,
            origin["licence"],
            origin["uri"],
            f"{rows[name]:,}" if name in rows else "",
            origin["dvc_hash"],
        )
        for name, origin in origins.items()
    ]
    manifests = {"the base": manifest} | origins
    parts = [
        front_matter(front),
        f"# {base_name(manifest)}, tuned on Chinese conversations\n",
        "The LoRA adapter below was added to the base: W + (alpha / r) B A, summed in float32 and rounded once."
        " Files, tensor names and types are the base's.\n",
        base_section(manifest, record),
        "## Data\n",
        table(("source", "licence", "from", "training rows", "DVC hash"), data),
        non_commercial_note(manifests),
        recipe_section(adapter, record),
        provenance_section(record, ("adapter", dvc_hash(adapter))),
        '## Use\n\n```python\nfrom transformers import pipeline\n\nchat = pipeline("text-generation", "models/merged")\n'
        'print(chat([{"role": "user", "content": "你好"}])[0]["generated_text"][-1]["content"])\n```\n',
        SCORES,
    ]
    return "\n".join(parts)


def with_scores(card: str, scores: dict[str, dict]) -> str:
    """The card with the scores of `base` and `tuned` (metrics/eval.json), as a table and as model-index metadata."""
    tuned = scores["tuned"]
    measured = [name for name in BENCHMARKS if name in tuned]
    rows = [
        (
            BENCHMARKS[name],
            *(
                f"{scores[model][name]['acc']:.4f} ± {scores[model][name]['stderr']:.4f}"
                for model in ("base", "tuned")
            ),
            tuned[name]["n"],
        )
        for name in measured
    ]
    for key, label in (
        ("loss", "held-out loss, nats a token"),
        ("zh_reply_rate", "share of replies in Chinese"),
        ("lpr", "line pass rate of replies (Language Confusion Benchmark)"),
        ("wpr", "word pass rate of replies (Language Confusion Benchmark)"),
    ):
        if key in tuned:
            values = (scores[model][key] for model in ("base", "tuned"))
            # No share of replies where none has a language.
            rows.append((label, *("-" if value is None else f"{value:.4f}" for value in values), ""))
    index = [
        {
            "name": "tuned",
            "results": [
                {
                    "task": {"type": "text-generation"},
                    "dataset": {"name": BENCHMARKS[name], "type": name},
                    "metrics": [{"type": "acc", "value": round(tuned[name]["acc"], 6), "name": "accuracy"}],
                }
                for name in measured
            ],
        }
    ]
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    if measured:
        front += "\n" + field("model-index", index)
    head = body.split(SCORES)[0]
    measured_here = "Measured by this pipeline on both models, the same way."
    found = table(("", "base", "tuned", "questions"), rows)
    return f"---\n{front}\n---\n{head}{SCORES}\n{measured_here}\n\n{found}"
