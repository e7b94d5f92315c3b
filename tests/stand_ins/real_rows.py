"""Rounds of the real rows that a developer may have at hand."""

import json


def real_conversations(folder) -> list[list[tuple[str, str]]]:
    """Every real row, up to its first turn without text."""
    found = []
    for path in sorted((folder / "instructions").rglob("*.json")):
        for row in json.loads(path.read_text()):
            if "instruction" in row and row.get("output"):
                found.append([("\n".join(filter(None, (row["instruction"], row.get("input")))), row["output"])])
    for path in sorted((folder / "instructions").rglob("*.jsonl")):
        for line in path.read_text().splitlines():
            rounds = []
            for turn in json.loads(line)["conversation"]:
                if not (turn["human"] and turn["assistant"]):
                    break
                rounds.append((turn["human"], turn["assistant"]))
            found += [rounds] if rounds else []
    return found
