"""A project whose pipeline has ended: a tiny base, a random adapter on it, the merged model, sources and cards."""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from ruamel.yaml import YAML
from stand_ins.tiny_mixtral import DENSE, tiny_model, write_model

from aurora.adapter.record import weights_hash
from aurora.core.files import sha256_file
from aurora.merge.merge import merge
from aurora.report.adapter_card import adapter_card
from aurora.report.model_card import merged_card

ROOT = Path(__file__).parent.parent.parent
SCORES = {
    model: {name: {"acc": acc, "stderr": 0.06, "n": 48} for name in ("ceval", "mmlu", "cmmlu")}
    | {"loss": 3 - acc, "zh_reply_rate": acc}
    for model, acc in (("base", 0.25), ("tuned", 0.5))
}
BASE_URI = "hf://owner/tiny-mixtral@" + "1" * 40


def write_project(root: Path) -> Path:
    """Writes all of it below `root`; the outputs are read-only, as DVC leaves them."""
    base, adapter, merged = root / "data/raw/model/base", root / "models/adapter", root / "models/merged"
    write_model(base)
    files = [
        {"path": path.name, "sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(base.iterdir())
    ]
    facts = {"uri": BASE_URI, "revision": "1" * 40, "licence": "Apache-2.0", "files": files}
    (base / "manifest.json").write_text(json.dumps(facts))
    write_adapter(base, adapter, facts)
    merge(base, adapter, merged)
    origin = {"source": "chats", "kind": "instructions", "uri": "hf://datasets/owner/chats@" + "2" * 40 + "/c.jsonl"}
    origin |= {"revision": "2" * 40, "licence": "Apache-2.0", "non_commercial": False, "bytes": 9}
    origin |= {"path": "data/raw/instructions/chats", "dvc_hash": "3" * 32 + ".dir"}
    (root / "data/clean").mkdir(parents=True)
    sources = root / "data/clean/sources.json"
    sources.write_text(json.dumps({"sources": [origin]}))
    (root / "metrics").mkdir()
    for name, card in (("adapter_card", adapter_card), ("model_card", merged_card)):
        text = card(base, adapter, sources, SCORES)
        (root / f"metrics/{name}.md").write_text(text, encoding="utf-8")
    (root / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    params = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["quantization"] = DENSE.model_dump()
    with (root / "params.yaml").open("w", encoding="utf-8") as file:
        YAML().dump(params, file)
    for folder in (base, adapter, merged):
        for path in folder.iterdir():
            path.chmod(0o444)
    return root


def write_adapter(base: Path, adapter: Path, facts: dict) -> None:
    """A LoRA adapter whose deltas are large enough to change answers, with the record of its training."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_model(seed=0), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(adapter)
    model.unload()
    (adapter / "README.md").unlink(missing_ok=True)
    record = {
        "base": {name: facts[name] for name in ("uri", "revision", "licence")} | {"weights_sha256": weights_hash(base)},
        "rows": {"train": "4" * 32, "held_out": "5" * 32, "sources": {"chats": 7}},
        "sft": {"learning_rate": 0.1},
        "quantization": DENSE.model_dump(),
        "versions": {"torch": "2.13.0"},
    }
    (adapter / "training.json").write_text(json.dumps(record))
