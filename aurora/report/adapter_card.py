"""The adapter's model card, and the parts that it shares with the merged model's."""

import json
from pathlib import Path

from aurora.adapter.config import read_adapter_config, target_modules
from aurora.adapter.record import read_record
from aurora.core.manifests import find_manifest

SCORES = "## Scores\n"


def adapter_card(base: Path, adapter: Path) -> str:
    """README.md of the adapter, from its training.json and adapter_config.json."""
    record, manifest = read_record(adapter), find_manifest(base) or {}
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
        front_matter(front),
        f"# LoRA adapter for {base_name(manifest)}, tuned on Chinese conversations\n",
        base_section(manifest, record),
        "## Data\n",
        table(("source", "training rows"), [(name, f"{count:,}") for name, count in rows.items()]),
        "The licences of the sources stand in the card of the merged model; that of the base is given above.\n",
        non_commercial_note({"the base": manifest}),
        recipe_section(adapter, record),
        provenance_section(record),
        SCORES,
    ]
    return "\n".join(parts)


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
    uri = manifest.get("uri") or "the base"
    return (hub_id(uri) or uri).split("/")[-1]


def base_section(manifest: dict, record: dict) -> str:
    rows = [
        ("from", manifest.get("uri") or "unknown"),
        ("revision", manifest.get("revision") or "none"),
        ("licence", manifest.get("licence") or "unknown"),
        ("SHA-256 of the weights", record.get("base", {}).get("weights_sha256") or "not recorded"),
    ]
    return "## Base\n\n" + table(("", ""), rows)


def non_commercial_note(manifests: dict[str, dict]) -> str:
    """One line with the names of those whose licence forbids commercial use; empty if none does."""
    bound = [name for name, manifest in manifests.items() if manifest.get("non_commercial")]
    return f"Not for commercial use, by the licence of: {', '.join(bound)}.\n" if bound else ""


def recipe_section(adapter: Path, record: dict) -> str:
    config = read_adapter_config(adapter)
    rows = [(name, config.get(name)) for name in ("r", "lora_alpha", "lora_dropout", "use_rslora")]
    rows.append(("target_modules", target_modules(config)))
    rows += [(f"quantization.{name}", value) for name, value in record.get("quantization", {}).items()]
    rows += [(f"sft.{name}", value) for name, value in record.get("sft", {}).items() if name != "lora"]
    return "## Recipe\n\n" + table(("", ""), rows)


def provenance_section(record: dict, *more: tuple[str, str]) -> str:
    rows = record.get("rows", {})
    lines = [*more, *((f"rows, {name}", rows[name]) for name in ("train", "held_out") if name in rows)]
    lines += [(name, version) for name, version in record.get("versions", {}).items()]
    note = "Hashes are those of dvc.lock and the DVC cache (MD5); a version stands behind the library's name.\n\n"
    return "## Provenance\n\n" + note + table(("", ""), lines)


def front_matter(fields: dict) -> str:
    lines = [field(name, value) for name, value in fields.items() if value not in (None, [], "")]
    return "---\n" + "\n".join(lines) + "\n---\n"


def field(name: str, value: object) -> str:
    # JSON is YAML, and needs no rule of its own for what to quote.
    return f"{name}: {json.dumps(value, ensure_ascii=False)}"


def table(header: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    cells = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"
