"""Fetched sources and rows for tests of clean."""

import json
import shutil
from pathlib import Path

from aurora.core.messages import Message
from aurora.pipeline.params import load_params

ROOT = Path(__file__).parent.parent.parent
CLEAN = load_params(ROOT / "profiles/paper.yaml").clean
BENCHMARKS = ("mmlu", "ceval", "cmmlu")


def put(folder: Path, name: str, rows: object, format_: str = "alpaca", expected: int | None = None) -> Path:
    """A fetched source: `rows` as bytes, as a JSON list, or copied from a path."""
    target = folder / name
    target.mkdir(parents=True)
    if isinstance(rows, Path):
        rows = rows.read_bytes()
    elif not isinstance(rows, bytes):
        rows = json.dumps(rows).encode()
    (target / "rows").write_bytes(rows)
    manifest = {
        "source": name,
        "kind": "instructions",
        "format": format_,
        "rows": expected,
        "uri": f"samples/{name}",
        "licence": "MIT",
        "files": [{"path": "rows", "bytes": len(rows)}],
    }
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def put_benchmarks(folder: Path) -> None:
    for name in BENCHMARKS:
        shutil.copytree(ROOT / "samples" / name, folder / name)
        manifest = {"source": name, "kind": "benchmark", "format": name, "rows": None, "files": []}
        manifest |= {"uri": f"samples/{name}", "licence": "MIT"}
        (folder / name / "manifest.json").write_text(json.dumps(manifest))


def row(prompt: str, answer: object, **more: object) -> dict:
    return {"instruction": prompt, "input": "", "output": answer} | more


def turns(*texts: str, first: str = "user") -> tuple[Message, ...]:
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    return tuple(Message(roles[number % 2], text) for number, text in enumerate(texts))
