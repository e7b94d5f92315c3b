"""Model cards in Hugging Face's form: base, data with licences, recipe, provenance by hashes, scores.

A card is written with its model, before anything is measured on it; the scores are added by `with_scores`, in a
file of the report, since no stage changes what another has written.
"""

import json
from pathlib import Path

from aurora.provenance import dvc_hash, read_manifest, read_record
from aurora.store import read_json

SCORES = "## Scores\n"
REPORTED = "They are measured after this folder is written: `metrics/{file}` of the same commit is this card with them.\n"
BENCHMARKS = {"ceval": "C-Eval (val)", "mmlu": "MMLU (test)", "cmmlu": "CMMLU (test)"}


def merged_card(base: Path, adapter: Path, instructions: Path) -> str:
    """README.md of the merged model; `instructions` is the folder of the fetched instruction sources."""
    record, manifest = read_record(adapter), read_manifest(base) or {}
    sources = [
        (folder, read_json(folder / "manifest.json", f"fetch@{folder.name}"))
        for folder in sorted(instructions.iterdir())
        if folder.is_dir()
    ]
    licences = [manifest.get("licence"), *(source["licence"] for _, source in sources)]
    front = {
        "base_model": hub_id(manifest.get("uri")),
        "base_model_relation": "finetune",
        "datasets": sorted({found for _, source in sources if (found := hub_id(source["uri"]))}),
        "language": ["zh", "en"],
        "library_name": "transformers",
        **licence_fields(licences),
        "pipeline_tag": "text-generation",
        "tags": ["lora", "merged", "conversational"],
    }
    rows = record.get("rows", {}).get("sources", {})
    data = [
        (
            folder.name,
            source["licence"],
            source["uri"],
            f"{rows[folder.name]:,}" if folder.name in rows else "",
            dvc_hash(folder),
        )
        for folder, source in sources
    ]
    parts = [
        _front(front),
        f"# {_name(manifest)}, tuned on Chinese conversations\n",
        "The LoRA adapter below was added to the base: W + (alpha / r) B A, summed in float32 and rounded once."
        " Files, tensor names and types are the base's.\n",
        _base(manifest, record),
        "## Data\n",
        _table(("source", "licence", "from", "training rows", "DVC hash"), data),
        _recipe(adapter, record),
        _provenance(record, ("adapter", dvc_hash(adapter))),
        '## Use\n\n```python\nfrom transformers import pipeline\n\nchat = pipeline("text-generation", "models/merged")\n'
        'print(chat([{"role": "user", "content": "你好"}])[0]["generated_text"][-1]["content"])\n```\n',
        SCORES,
        REPORTED.format(file="model_card.md"),
    ]
    return "\n".join(parts)


def adapter_card(base: Path, adapter: Path) -> str:
    """README.md of the adapter, from its training.json and adapter_config.json."""
    record, manifest = read_record(adapter), read_manifest(base) or {}
    front = {
        "base_model": hub_id(manifest.get("uri")),
        "base_model_relation": "adapter",
        "language": ["zh", "en"],
        "library_name": "peft",
        **licence_fields([manifest.get("licence")]),
        "pipeline_tag": "text-generation",
        "tags": ["lora", "conversational"],
    }
    rows = record.get("rows", {}).get("sources", {})
    parts = [
        _front(front),
        f"# LoRA adapter for {_name(manifest)}, tuned on Chinese conversations\n",
        _base(manifest, record),
        "## Data\n",
        _table(("source", "training rows"), [(name, f"{count:,}") for name, count in rows.items()]),
        "The licences of the sources stand in the card of the merged model; that of the base is given above.\n",
        _recipe(adapter, record),
        _provenance(record),
        SCORES,
        REPORTED.format(file="adapter_card.md"),
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
    ):
        if key in tuned:
            rows.append((label, *(f"{scores[model][key]:.4f}" for model in ("base", "tuned")), ""))
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
        front += "\n" + _field("model-index", index)
    head = body.split(SCORES)[0]
    table = _table(("", "base", "tuned", "questions"), rows)
    return f"---\n{front}\n---\n{head}{SCORES}\nMeasured by this pipeline on both models, the same way.\n\n{table}"


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


def _name(manifest: dict) -> str:
    uri = manifest.get("uri") or "the base"
    return (hub_id(uri) or uri.removeprefix("embedded:")).split("/")[-1]


def _base(manifest: dict, record: dict) -> str:
    rows = [
        ("from", manifest.get("uri") or "unknown"),
        ("revision", manifest.get("revision") or "none"),
        ("licence", manifest.get("licence") or "unknown"),
        ("SHA-256 of the weights", record.get("base", {}).get("weights_sha256") or "not recorded"),
    ]
    return "## Base\n\n" + _table(("", ""), rows)


def _recipe(adapter: Path, record: dict) -> str:
    config = read_json(adapter / "adapter_config.json", "sft")
    rows = [(name, config.get(name)) for name in ("r", "lora_alpha", "lora_dropout", "use_rslora")]
    rows.append(("target_modules", ", ".join(sorted(config.get("target_modules") or ()))))
    rows += [(f"quantization.{name}", value) for name, value in record.get("quantization", {}).items()]
    rows += [(f"sft.{name}", value) for name, value in record.get("sft", {}).items() if name != "lora"]
    return "## Recipe\n\n" + _table(("", ""), rows)


def _provenance(record: dict, *more: tuple[str, str]) -> str:
    rows = record.get("rows", {})
    lines = [*more, *((f"rows, {name}", rows[name]) for name in ("train", "held_out") if name in rows)]
    lines += [(name, version) for name, version in record.get("versions", {}).items()]
    note = "Hashes are those of dvc.lock and the DVC cache (MD5); a version stands behind the library's name.\n\n"
    return "## Provenance\n\n" + note + _table(("", ""), lines)


def _front(fields: dict) -> str:
    lines = [_field(name, value) for name, value in fields.items() if value not in (None, [], "")]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _field(name: str, value: object) -> str:
    # JSON is YAML, and needs no rule of its own for what to quote.
    return f"{name}: {json.dumps(value, ensure_ascii=False)}"


def _table(header: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"
