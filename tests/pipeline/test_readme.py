"""The README tells what is: the numbers of metrics/eval.json, and every module by name."""

import json
from pathlib import Path


def test_the_table_holds_the_tracked_numbers(root: Path):
    text = (root / "README.md").read_text(encoding="utf-8")
    scores = json.loads((root / "metrics/eval.json").read_text(encoding="utf-8"))
    base, tuned = scores["base"], scores["tuned"]
    rows = [
        f"| held-out loss (nats a token) | {base['loss']:.3f} | {tuned['loss']:.3f} |",
        f"| `zh_reply_rate` | {base['zh_reply_rate']:.2f} | {tuned['zh_reply_rate']:.2f} |",
        f"| replies in mixed language | {base['mixed_rate']:.2f} | {tuned['mixed_rate']:.2f} |",
    ]
    for name, key in (("C-Eval", "ceval"), ("MMLU", "mmlu"), ("CMMLU", "cmmlu")):
        cells = [f"{model[key]['acc']:.3f} ± {model[key]['stderr']:.3f}" for model in (base, tuned)]
        rows.append(f"| {name} ({base[key]['n']} questions, 5-shot) | {cells[0]} | {cells[1]} |")
    for row in rows:
        assert row in text


def test_the_tree_names_every_module(root: Path):
    tree = (root / "README.md").read_text(encoding="utf-8").partition("\naurora/\n")
    before, after = tree[0].splitlines(), tree[2].splitlines()
    for folder in ("stages", "benchmarks"):
        named = {line.split()[0] for line in before if line.startswith("  ")}
        assert {path.name for path in (root / folder).glob("[!_]*.py")} <= named
    package, named = "", set()
    for line in after[:-1]:
        name, depth = line.split()[0], len(line) - len(line.lstrip())
        package = name if depth == 2 and name.endswith("/") else package if depth == 4 else ""
        named.add(name if depth == 2 else package + name)
    modules = {path.relative_to(root / "aurora").as_posix() for path in (root / "aurora").rglob("*.py")}
    assert {name.replace("/__init__.py", "/") for name in modules} - {"__init__.py"} <= named
