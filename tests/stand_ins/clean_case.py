"""Fetched sources and rows for tests of clean."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow.parquet

from aurora.clean.clean import clean
from aurora.clean.params import Clean
from aurora.clean.parse_rows import Drop
from aurora.core.messages import Conversation, Message, Round
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


class DroppedRow(NamedTuple):
    source: str
    position: int
    drop: Drop


class Cleaned(NamedTuple):
    """What clean writes, read again."""

    kept: list[tuple[Conversation, str]]  # and the cluster
    dropped: list[DroppedRow]
    metrics: dict


def cleaned(
    folders: Mapping[str, Path],
    benchmarks: Iterable[Path],
    params: Clean,
    sources: Mapping | None = None,
    out: Path | None = None,
) -> Cleaned:
    """Runs clean into the folder `out`, or one that goes, and reads its files."""
    with tempfile.TemporaryDirectory() as name:
        spill, out = Path(name, "rows"), out or Path(name, "out")
        spill.mkdir()
        out.mkdir(parents=True, exist_ok=True)
        metrics = clean(folders, benchmarks, params, sources or {}, out, spill)
        assert metrics == json.loads((out / "metrics.json").read_text())
        dropped = pyarrow.parquet.read_table(out / "dropped.parquet").to_pylist()
        file = out / "conversations.parquet"
        kept = pyarrow.parquet.read_table(file).to_pylist() if file.exists() else []
    return Cleaned(
        [(conversation(row), row["cluster"]) for row in kept],
        [DroppedRow(row["source"], row["position"], Drop(row["reason"], row["evidence"])) for row in dropped],
        metrics,
    )


def conversation(row: dict) -> Conversation:
    """A row of conversations.parquet."""
    texts = [message["content"] for message in row["messages"]]
    count = len(texts) // 2
    train, steps = row.get("train", [True] * count), row.get("steps", [""] * count)
    rounds = tuple(map(Round, texts[::2], texts[1::2], train, steps))
    found = Conversation(row["source"], row["position"], rounds, row.get("system", ""), row.get("tools", ""))
    assert found.id == row["id"]
    return found
