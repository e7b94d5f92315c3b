"""The adapter's model card in Hugging Face's form, and the parts that it shares with the merged model's."""

from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from aurora.adapter.config import read_adapter_config, target_modules
from aurora.adapter.record import read_record
from aurora.core.files import dvc_hash
from aurora.core.manifests import find_manifest, read_origins
from aurora.report.blocks import escaped

BENCHMARKS = {"ceval": "C-Eval (val)", "mmlu": "MMLU (test)", "cmmlu": "CMMLU (test)"}
MEASURES = {
    "loss": "held-out loss, nats per token",
    "zh_reply_rate": "share of replies in Chinese",
    "lpr": "line pass rate of replies (Language Confusion Benchmark)",
    "wpr": "word pass rate of replies (Language Confusion Benchmark)",
}
USE = """\
## Use

```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}", dtype=torch.bfloat16, device_map="auto")
model = PeftModel.from_pretrained(base, "{here}")
tokenizer = AutoTokenizer.from_pretrained("{here}")
chat = [{{"role": "user", "content": "你好"}}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**inputs.to(model.device), max_new_tokens=256, do_sample=False)
print(tokenizer.decode(reply[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

`{here}` is this repository's name or the folder's path.
"""
HERE = "THIS_REPOSITORY"


def adapter_card(base: Path, adapter: Path, sources: Path, scores: dict[str, dict]) -> str:
    """README.md of the adapter: use, scores of `base` and `tuned` (metrics/eval.json), limits, data, recipe, provenance.

    Raises DataError where `sources`, which clean wrote, or what the card reads of base and adapter, is missing or damaged.
    """
    record, manifest = read_record(adapter), find_manifest(base) or {}
    data = card_data(manifest, read_instructions(sources), scores, "peft", ["lora", "conversational"])
    name = base_name(manifest)
    parts = [
        f"# LoRA adapter for {name}, tuned on Chinese conversations\n",
        USE.format(base=hub_id(manifest.get("uri")) or f"PATH_OF_{name}", here=HERE),
        *told_of_both(base, adapter, sources, scores),
        provenance_section(record, dvc_hash(adapter)),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(parts)


def card_data(
    manifest: dict, origins: dict[str, dict], scores: dict[str, dict], library: str, tags: list[str]
) -> ModelCardData:
    """The metadata that the hub reads, with the benchmark scores of the tuned model."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=name,
            dataset_name=label,
            metric_type="acc",
            metric_name="accuracy",
            metric_value=round(scores["tuned"][name]["acc"], 6),
        )
        for name, label in BENCHMARKS.items()
        if name in scores["tuned"]
    ]
    licences = [manifest.get("licence"), *(origin["licence"] for origin in origins.values())]
    return ModelCardData(
        base_model=hub_id(manifest.get("uri")),
        base_model_relation="adapter" if library == "peft" else "finetune",
        datasets=sorted({found for origin in origins.values() if (found := hub_id(origin["uri"]))}) or None,
        language=["zh", "en"],
        library_name=library,
        pipeline_tag="text-generation",
        tags=tags,
        model_name="tuned" if results else None,
        eval_results=results or None,
        **licence_fields(licences),
    )


def told_of_both(base: Path, adapter: Path, sources: Path, scores: dict[str, dict]) -> list[str]:
    """What both cards say between use and provenance."""
    record, manifest, origins = (read_record(adapter), find_manifest(base) or {}, read_instructions(sources))
    return [
        scores_section(scores),
        limits_section(manifest, origins, record),
        data_section(origins, record.get("rows", {}).get("sources", {})),
        base_section(manifest, record),
        recipe_section(adapter, record),
    ]


def read_instructions(sources: Path) -> dict[str, dict]:
    """What clean wrote of each instruction source, by name."""
    return {origin["source"]: origin for origin in read_origins(sources) if origin["kind"] == "instructions"}


def hub_id(uri: str | None) -> str | None:
    """OWNER/NAME of a `hf://` URI, else None: only those are names that the hub knows."""
    if not uri or not uri.startswith("hf://"):
        return None
    return uri.removeprefix("hf://").removeprefix("datasets/").split("@")[0]


def licence_fields(licences: list[str | None]) -> dict:
    """The hub's licence fields: one identifier if all agree, else `other` and a name that lists them."""
    found = sorted({licence or "unknown" for licence in licences})
    if len(found) == 1 and found[0] != "unknown":
        return {"license": found[0].lower()}
    return {"license": "other", "license_name": " and ".join(found)}


def base_name(manifest: dict) -> str:
    """The last part of the base's name."""
    uri = manifest.get("uri") or "the base"
    return (hub_id(uri) or uri).split("/")[-1]


def scores_section(scores: dict[str, dict]) -> str:
    """Accuracy with its standard error, held-out loss and language of the replies, base beside tuned."""
    tuned = scores["tuned"]
    rows = [
        (
            label,
            *(f"{scores[model][name]['acc']:.4f} ± {scores[model][name]['stderr']:.4f}" for model in ("base", "tuned")),
            tuned[name]["n"],
        )
        for name, label in BENCHMARKS.items()
        if name in tuned
    ]
    for key, label in MEASURES.items():
        if key in tuned:
            values = (scores[model][key] for model in ("base", "tuned"))
            # No share of replies where none has a language.
            rows.append((label, *("-" if value is None else f"{value:.4f}" for value in values), ""))
    note = "Measured by the same pipeline on both models; ± is the standard error.\n\n"
    return "## Scores\n\n" + note + table(("", "base", "tuned", "questions"), rows)


def limits_section(manifest: dict, origins: dict[str, dict], record: dict) -> str:
    """What the model was not made or measured for."""
    count = sum(record.get("rows", {}).get("sources", {}).values())
    trained = f"It was tuned on {count:,} conversations" if count else "It was tuned on conversations"
    lines = [
        f"{trained}, most of them written by other models. What the base does not know it does not know"
        " either: answers can be wrong, and are no medical, legal or financial advice.",
        "No training or test for safety was made beyond what the base had. Longer conversations than those of the data,"
        " and tasks other than the scores above, were not measured.",
    ]
    if bound := non_commercial({"the base": manifest} | origins):
        lines.append(f"Not for commercial use, by the licence of: {', '.join(map(escaped, bound))}.")
    return "## Limits\n\n" + "".join(f"- {line}\n" for line in lines)


def non_commercial(manifests: dict[str, dict]) -> list[str]:
    """Names of those whose licence forbids commercial use."""
    return [name for name, manifest in manifests.items() if manifest.get("non_commercial")]


def data_section(origins: dict[str, dict], rows: dict[str, int]) -> str:
    """Each source with licence, place, revision, training rows and hash."""
    found = [
        (
            name,
            origin["licence"],
            origin["uri"],
            origin["revision"] or "",
            f"{rows[name]:,}" if name in rows else "",
            origin["dvc_hash"],
        )
        for name, origin in origins.items()
    ]
    return "## Data\n\n" + table(("source", "licence", "from", "revision", "training rows", "DVC hash"), found)


def base_section(manifest: dict, record: dict) -> str:
    """Where the base is from, and the hash of its weights."""
    rows = [
        ("from", manifest.get("uri") or "unknown"),
        ("revision", manifest.get("revision") or "none"),
        ("licence", manifest.get("licence") or "unknown"),
        ("SHA-256 of the weights", record.get("base", {}).get("weights_sha256") or "not recorded"),
    ]
    return "## Base\n\n" + table(("", ""), rows)


def recipe_section(adapter: Path, record: dict) -> str:
    """Every setting of the training, folded."""
    config = read_adapter_config(adapter)
    rows = [(name, config.get(name)) for name in ("r", "lora_alpha", "lora_dropout", "use_rslora")]
    rows.append(("target_modules", target_modules(config)))
    rows += [(f"quantization.{name}", value) for name, value in record.get("quantization", {}).items()]
    rows += [(f"sft.{name}", value) for name, value in record.get("sft", {}).items() if name != "lora"]
    return folded("Recipe", f"{len(rows)} settings", table(("", ""), rows))


def provenance_section(record: dict, adapter_hash: str) -> str:
    """Hashes of adapter and rows, and versions of libraries, folded."""
    rows = record.get("rows", {})
    lines = [("adapter", adapter_hash)]
    lines += [(f"rows, {name}", rows[name]) for name in ("train", "held_out") if name in rows]
    lines += list(record.get("versions", {}).items())
    note = "Hashes are those of dvc.lock and the DVC cache (MD5); a library has its version.\n\n"
    return folded("Provenance", "hashes and versions", note + table(("", ""), lines))


def folded(title: str, summary: str, text: str) -> str:
    """A section whose text is seen on a click."""
    return f"## {title}\n\n<details>\n<summary>{summary}</summary>\n\n{text}\n</details>\n"


def table(header: tuple[str, ...], rows: list[tuple]) -> str:
    """A Markdown table; text in a cell can open no markup."""
    lines = [header, ("---",) * len(header)]
    lines += [tuple(escaped(str(cell)) for cell in row) for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
