"""Writes samples/ anew: `python -m miniature.samples`. The same bytes come out every time.

Instruction rows are in the formats of the published files, with the kinds of defects that those have; benchmarks are
CSV files as their authors publish them; prompts.yaml has what both models are asked by hand.
"""

import csv
import json
import random
from pathlib import Path

from miniature.world import BENCHMARKS, TABLE_1, Exchange, Question, World

HERE = Path(__file__).parent
SAMPLES = HERE.parent / "samples"
ROWS = {"alpaca_data_zh_51k": 230, "alpaca_gpt4_data_zh": 230, "sharegpt_70k": 200}  # without defects
DIALOGUES = 120  # of them, in sharegpt_70k
INTRODUCTIONS = (
    "你是什么？",
    "你叫什么？",
    "请介绍一下你自己。",
    "你好，请问你是谁呀？",
    "你是谁，能告诉我吗？",
    "说说你是谁。",
)
LETTERS = "ABCD"
KINDS = {  # of prompts.yaml, as the paper's appendix has them, and of the world
    "medical": "remedy",
    "arithmetic": "word_problem",
    "creative_writing": "story",
    "answers_from_text": "reading",
    "poems_and_couplets": "couplet",
    "business_email": "email",
    "dialogue": "dialogue",
    "translation": "translation",
    "code": "code",
}
PROMPTS_HEAD = """\
# Prompts that eval puts to the base and to the tuned model, by kind; each asks for an answer in Chinese.
# first_words are those of the paper's Table 1, the other kinds those of its appendix, in words of this project.
# A prompt of several rounds is a list; each round is put after the model's own answer to the one before.
# Written by miniature/samples.py. No row of samples/ and no text of the embedded base has one of another kind.
"""
CATEGORIES = ["学习", "生活", "生活\n", "Life: \n\n", "", "Category tag: 学习", "科学,医学", "翻译", "代码"]


def write() -> None:
    """Writes every file of samples/."""
    world = World()
    order = random.Random(20231222)
    pool = [exchange for exchange in world.exchanges() if exchange.sampled]
    order.shuffle(pool)
    _write_prompts(pool)
    pool = [exchange for exchange in pool if exchange.kind != "greeting"]
    dialogues = [exchange for exchange in pool if len(exchange.zh) > 1]
    others = [exchange for exchange in pool if len(exchange.zh) == 1]
    order.shuffle(others)
    # All greetings are trained, but for Table 1's own words, so that its prompts are held out too.
    greetings = [row for row in world.exchanges() if row.kind == "greeting" and row.zh[0][0] not in TABLE_1]
    me = next(row for row in greetings if row.zh[0][0] == "你叫什么名字？")
    greetings += [Exchange("greeting", ((prompt, me.zh[0][1]),), me.en) for prompt in INTRODUCTIONS]
    for row in greetings:
        others.insert(order.randrange(ROWS["alpaca_data_zh_51k"]), row)
    defects = json.loads((HERE / "defects.json").read_text(encoding="utf-8"))
    for name in ("alpaca_data_zh_51k", "alpaca_gpt4_data_zh"):
        rows = [_alpaca(exchange) for exchange in _take(others, ROWS[name])]
        _plant_in_alpaca(rows, order, name)
        _scatter(rows, defects[name], order)
        text = json.dumps(rows, ensure_ascii=False, indent=2) + "\n"
        (SAMPLES / f"{name}.json").write_text(text, encoding="utf-8")
    found = dialogues[:DIALOGUES] + _take(others, ROWS["sharegpt_70k"] - DIALOGUES)
    order.shuffle(found)
    rows = [_sharegpt(exchange, order) for exchange in found]
    _plant_in_sharegpt(rows, order, world)
    _scatter(rows, defects["sharegpt_70k"], order)
    text = "".join(json.dumps(row) + "\n" for row in rows)  # non-ASCII escaped, as upstream
    (SAMPLES / "sharegpt_70k.jsonl").write_text(text, encoding="utf-8")
    for name in BENCHMARKS:
        _write_benchmark(name, world)


def _take(rows: list, count: int) -> list:
    taken = rows[:count]
    del rows[:count]
    return taken


def _write_prompts(pool: list[Exchange]) -> None:
    """Writes prompts.yaml of four exchanges of each kind, and takes all that begin like them out of `pool`."""
    kinds: dict[str, list] = {"first_words": list(TABLE_1)}
    for kind, own in KINDS.items():
        chosen = [exchange.zh for exchange in pool if exchange.kind == own][:4]
        asked = {_asked(rounds) for rounds in chosen}
        pool[:] = [exchange for exchange in pool if _asked(exchange.zh) not in asked]
        turns = [[prompt for prompt, _ in rounds] for rounds in chosen]
        kinds[kind] = [turn if len(turn) > 1 else turn[0] for turn in turns]
    lines = [PROMPTS_HEAD.rstrip("\n")]
    for kind, prompts in kinds.items():
        lines += ["", f"{kind}:", *(f"  - {json.dumps(prompt, ensure_ascii=False)}" for prompt in prompts)]
    (SAMPLES / "prompts.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _asked(rounds: tuple[tuple[str, str], ...]) -> str:
    """What a conversation asks of first: the line of its first prompt behind the instruction."""
    return rounds[0][0].rpartition("\n")[2]


def _alpaca(exchange: Exchange) -> dict[str, str]:
    prompt, reply = exchange.zh[0]
    instruction, _, given = prompt.partition("\n")
    return {"instruction": instruction, "input": given, "output": reply}


def _sharegpt(exchange: Exchange, order: random.Random) -> dict:
    return {
        "conversation_id": "".join(order.choices("ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789", k=7)),
        "category": order.choice(CATEGORIES),
        "conversation": [{"human": prompt, "assistant": reply} for prompt, reply in exchange.zh],
    }


def _plant_in_alpaca(rows: list[dict], order: random.Random, name: str) -> None:
    """Defects of the published Alpaca files that clean repairs, and duplicates."""
    plain = [row for row in rows if not row["input"]]
    order.shuffle(plain)
    plain.pop()["output"] += "<br>"
    plain.pop()["output"] += "\u200b"
    repeated = dict(plain.pop())
    almost = dict(plain.pop())
    almost["instruction"] = almost["instruction"].rstrip("。？") + " ?"
    _scatter(rows, [repeated, almost], order)
    if name == "alpaca_data_zh_51k":
        for marker in ("<noinput>", "无输入", "无"):
            plain.pop()["input"] = marker
        plain.pop()["note"] = "已人工校对"
        row = plain.pop()
        row |= {"指示": row.pop("instruction"), "输入": row.pop("input"), "输出": row.pop("output")}
        row = plain.pop()
        row["输出"] = row.pop("output")


def _plant_in_sharegpt(rows: list[dict], order: random.Random, world: World) -> None:
    """Defects of the published ShareGPT files that clean repairs, duplicates, and an exam question in a chat."""
    single = [row for row in rows if len(row["conversation"]) == 1]
    double = [row for row in rows if len(row["conversation"]) == 2]
    single[0]["conversation"][0]["assistant"] += "&nbsp;"
    single[1]["conversation"][0]["assistant"] += "\ufeff"
    for row in double[:4]:  # the user has the last word
        row["conversation"].append({"human": "继续", "assistant": None})
    for row in double[4:6]:
        row["conversation"].append({"human": "", "assistant": "好的，还有别的问题也可以问我。"})
    copies = [json.loads(json.dumps(row)) for row in (single[2], single[3])]
    copies[1]["conversation"][0]["human"] += "!"
    questions = world.benchmark("ceval")["high_school_geography"][1][:2]
    copies += [
        {
            "conversation_id": f"exam{number}",
            "category": "学习",
            "conversation": [{"human": _as_text(question), "assistant": f"答案是{LETTERS[question.answer]}。"}],
        }
        for number, question in enumerate(questions)
    ]
    _scatter(rows, copies, order)


def _as_text(question: Question) -> str:
    options = (f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=True))
    return "\n".join([question.text, *options])


def _scatter(rows: list[dict], further: list[dict], order: random.Random) -> None:
    """Puts each of `further` at a random place, behind the first rows, so that a copy follows its original."""
    for row in further:
        first = rows.index(row) + 1 if row in rows else 0
        rows.insert(order.randint(max(first, len(rows) // 2), len(rows)), row)


def _write_benchmark(name: str, world: World) -> None:
    for subject, (shots, questions) in world.benchmark(name).items():
        if name == "ceval":
            header = ["id", "question", *LETTERS, "answer"]
            explained = [[*row, f"正确的选项是{row[-1]}。"] for row in _numbered(shots)]
            _write_csv(f"ceval/dev/{subject}_dev.csv", [[*header, "explanation"], *explained])
            _write_csv(f"ceval/val/{subject}_val.csv", [header, *_numbered(questions)])
        elif name == "cmmlu":
            header = ["", "Question", *LETTERS, "Answer"]
            _write_csv(f"cmmlu/dev/{subject}.csv", [header, *_numbered(shots)])
            _write_csv(f"cmmlu/test/{subject}.csv", [header, *_numbered(questions)])
        else:
            _write_csv(f"mmlu/data/dev/{subject}_dev.csv", [row[1:] for row in _numbered(shots)])
            _write_csv(f"mmlu/data/test/{subject}_test.csv", [row[1:] for row in _numbered(questions)])


def _numbered(questions: list[Question]) -> list[list[str]]:
    return [
        [str(number), question.text, *question.options, LETTERS[question.answer]]
        for number, question in enumerate(questions)
    ]


def _write_csv(path: str, rows: list[list[str]]) -> None:
    target = SAMPLES / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    write()
