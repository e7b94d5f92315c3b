"""The merged model's card in Hugging Face's form."""

from pathlib import Path

from aurora.adapter.record import read_record
from aurora.core.files import dvc_hash
from aurora.core.manifests import find_manifest
from aurora.report.adapter_card import HERE, base_name, card_data, provenance_section, read_instructions, told_of_both

USE = f"""\
The LoRA adapter below was added to the base: W + (alpha / r) B A, summed in float32 and rounded once. Tensor names and
types are the base's.

## Use

```python
from transformers import pipeline

chat = pipeline("text-generation", "{HERE}", dtype="auto", device_map="auto")
print(chat([{{"role": "user", "content": "你好"}}], max_new_tokens=256, do_sample=False)[0]["generated_text"][-1]["content"])
```

`{HERE}` is this repository's name or the folder's path.
"""


def merged_card(base: Path, adapter: Path, sources: Path, scores: dict[str, dict]) -> str:
    """README.md of the merged model; arguments and errors as those of `adapter_card`."""
    record, manifest = read_record(adapter), find_manifest(base) or {}
    tags = ["lora", "merged", "conversational"]
    data = card_data(manifest, read_instructions(sources), scores, "transformers", tags)
    parts = [
        f"# {base_name(manifest)}, tuned on Chinese conversations\n",
        USE,
        *told_of_both(base, adapter, sources, scores),
        provenance_section(record, dvc_hash(adapter)),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(parts)
