"""Labelled rows for the rules of clean that judge a text, and how well the rules find them."""

import random
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

from scipy.stats import binomtest

from aurora.clean import filters
from aurora.clean.contamination import Question, Questions, read_questions
from aurora.clean.repairs import MOJIBAKE
from aurora.clean.truncation import cut_off, ends_unmarked
from aurora.core.yaml_files import read_yaml
from aurora.pipeline.params import load_params

ROOT = Path(__file__).parent.parent.parent
CLEAN = load_params(ROOT / "profiles/paper.yaml").clean
SAMPLES = ROOT / "tests/clean/rule_samples.yaml"
CORPUS = ROOT / "tests/clean/corpus"
BY_TEXT = ("refusal", "other_model", "unreachable_prompt", "not_chinese")


class Judged(NamedTuple):
    """A labelled row, and whether the rule found it."""

    kind: str
    label: bool
    found: bool
    text: str


class Quality(NamedTuple):
    """Precision and recall of a rule with 95 % Clopper-Pearson intervals; None where no row tells it."""

    rows: int
    precision: tuple[float, float, float] | None
    recall: tuple[float, float, float] | None


def quality(rows: list[Judged]) -> Quality:
    hits = [row for row in rows if row.found]
    true = [row for row in rows if row.label]
    both = sum(row.label for row in hits)
    return Quality(len(rows), _share(both, len(hits)), _share(both, len(true)))


def _share(part: int, whole: int) -> tuple[float, float, float] | None:
    if not whole:
        return None
    interval = binomtest(part, whole).proportion_ci(method="exact")
    return part / whole, interval.low, interval.high


def judged() -> dict[str, list[Judged]]:
    """All labelled rows by rule."""
    samples = read_yaml(SAMPLES)
    result = {name: list(by_text(name, samples[name])) for name in BY_TEXT}
    english = lines("english.txt")
    for prompt, answer in pairwise(english):
        fault = filters.not_chinese([(prompt, answer)], CLEAN)
        result["not_chinese"].append(Judged("English", True, fault is not None, prompt))
    result["truncated_answer"] = list(truncated(samples))
    result["mojibake"] = list(mojibake())
    result["contaminated"] = list(contaminated())
    return result


def lines(name: str) -> list[str]:
    return [line for line in (CORPUS / name).read_text(encoding="utf-8").split("\n") if line.strip()]


def by_text(rule: str, entries: list[dict]) -> Iterator[Judged]:
    for entry in entries:
        pairs = list(product(entry["prompts"], entry["answers"]))
        if "only" in entry:
            pairs = [(prompt, entry["answers"][number]) for prompt, number in entry["only"]]
        for (prompt, answer), word in product(pairs, entry.get("words", [""])):
            answer = answer.replace("{name}", word)
            fault = getattr(filters, rule)([(prompt, answer)], CLEAN)
            yield Judged(entry["kind"], entry["label"], fault is not None, f"{prompt} / {answer}")


def truncated(samples: dict) -> Iterator[Judged]:
    """Whole answers, and the same cut within a sentence; per kind, as rows of one source."""
    chance = random.Random(3)
    paragraphs = lines("chinese.txt")

    def prose(number: int) -> str:
        return "\n\n".join(chance.sample(paragraphs, number))

    def listed(number: int) -> str:
        items = [paragraph[:60].rsplit("，", 1)[0] + "。" for paragraph in chance.sample(paragraphs, number)]
        return "要点如下：\n" + "\n".join(f"{at}. {item}" for at, item in enumerate(items, 1))

    def code(number: int) -> str:
        body = "\n".join(f"    total += {chance.randrange(99)}  # 第{at}步" for at in range(number * 3))
        return f"{chance.choice(paragraphs)}\n```python\ndef f(total):\n{body}\n    return total\n```\n{chance.choice(paragraphs)}"

    for kind, made in (("prose", prose), ("list", listed), ("code", code)):
        short = [chance.choice(paragraphs) for _ in range(40)]
        for _ in range(60):
            whole = made(chance.randrange(6, 10))
            yield _cut(kind, False, whole, short)
            yield from (_cut(kind, True, text, short) for text in _broken_off(whole, 1, chance))
    for kind in ("medical", "law"):
        for whole in samples[f"{kind}_answers"]:
            yield _cut(kind, False, whole, paragraphs[:40])
            yield from (_cut(kind, True, text, paragraphs[:40]) for text in _broken_off(whole, 5, chance))
    people = samples["people_answers"]
    for first, second in product(people, people):
        text = first if first == second else f"{first}，另外{second}"
        yield _cut("written by people", False, text, people * 2)
    for text in samples["enumerations"]:
        for end in ("", "；其他", "；等等") if "；" in text else ("", ", 102", ", 104"):
            yield _cut("enumeration", False, text + end, paragraphs[:40])
    for text, wish in product(paragraphs[:12], samples["wishes"]):
        yield _cut("closing wish", False, f"{text}\n\n{paragraphs[20]}\n\n{wish}", paragraphs[:40])


def _broken_off(whole: str, times: int, chance: random.Random) -> Iterator[str]:
    """The beginning of a text up to a place within a sentence, so many times."""
    for _ in range(times):
        place = chance.randrange(CLEAN.truncated_from + 20, len(whole) - 3)
        while whole[place - 1] in "。！？；：，、.)\n `*-" or whole[place] in "。！？；\n`":
            place -= 1
        if place > CLEAN.truncated_from:
            yield whole[:place]


def _cut(kind: str, label: bool, text: str, of_source: list[str]) -> Judged:
    unmarked = ends_unmarked(of_source, CLEAN.truncated_from)
    return Judged(kind, label, cut_off(text, CLEAN.truncated_from, unmarked) is not None, text[-40:])


def mojibake() -> Iterator[Judged]:
    chinese = lines("chinese.txt")
    wrong = {
        "UTF-8 read as Latin-1": lambda text: text.encode().decode("latin-1"),
        "UTF-8 read as cp1252": lambda text: text.encode().decode("cp1252", "ignore"),
        "UTF-8 read as GB 18030": lambda text: text.encode().decode("gb18030", "replace"),
        "replacement characters": lambda text: text[:20] + "\ufffd" + text[21:],
    }
    for kind, change in wrong.items():
        for text in chinese[:30]:
            yield Judged(kind, True, bool(MOJIBAKE.search(change(text))), change(text)[:40])
    for text in chinese[100:200]:
        yield Judged("Chinese", False, bool(MOJIBAKE.search(text)), text[:40])
    others = [
        "Café Noël à Orléans，很好喝", "Müller und Söhne 是一家公司", "São Paulo 在巴西", "Tiếng Việt 很难学", "Ångström 是长度单位",
        "naïve 的意思是天真", "价格是 €20 和 £15", "Ça va? 是法语的问候", "温度 25℃，角度 90°", "x² + y² = 1", "“引号”——破折号……", "① ② ③ 三点",
        "東京はとても大きいです", "서울은 큰 도시입니다", "Привет 是俄语", "α、β 和 γ 射线", "鐘錶店在街角", "銀行的鎖壞了", "锛是一种木工工具",
        "涓涓细流汇成大海", "浣熊喜欢洗东西", "鐨是一个罕见的字", "emoji 🙂👍🏃‍♂️ 很常见", "龘字很难写", "Œuvre 一词来自法语",
    ]  # fmt: skip
    for text, end in product(others, ("", "。", "，这是一句话。")):
        yield Judged("signs of other languages", False, bool(MOJIBAKE.search(text + end)), text)


def contaminated() -> Iterator[Judged]:
    """Copies of questions of the embedded benchmarks, and texts that only share their subject."""
    import json
    import shutil
    import tempfile

    questions: list[Question] = []
    with tempfile.TemporaryDirectory() as name:
        for benchmark in ("mmlu", "ceval", "cmmlu"):
            folder = Path(name) / benchmark
            shutil.copytree(ROOT / "samples" / benchmark, folder)
            manifest = {"source": benchmark, "kind": "benchmark", "format": benchmark, "rows": None, "files": []}
            (folder / "manifest.json").write_text(json.dumps(manifest))
            questions += read_questions(folder)
    terms = ["传染性单核细胞增多症", "系统性红斑狼疮", "慢性阻塞性肺疾病", "原发性醛固酮增多症", "急性化脓性阑尾炎", "中华人民共和国民法典", "不当得利返还请求权", "边际消费倾向递减规律", "肾病综合征", "特发性血小板减少性紫癜", "妊娠期高血压疾病", "化脓性骨髓炎"]  # fmt: skip
    for number, term in enumerate(terms):
        options = tuple(f"{term[:2]}{text}{number}" for text in ("由病毒引起", "由细菌引起", "与遗传有关", "原因不明"))
        questions += [Question(f"own/test:{number}", f"{term}____", options)]
    index = Questions(questions, CLEAN.contamination)

    def found(kind: str, label: bool, texts: list[list[str]]) -> Iterator[Judged]:
        for text, hit in zip(texts, index.find(texts), strict=True):
            yield Judged(kind, label, hit is not None, text[0][:60])

    def options(question: Question, sign: str) -> str:
        return "\n".join(f"{letter}{sign}{text}" for letter, text in zip("ABCD", question.options, strict=True))

    yield from found("with options", True, [[f"{q.text}\n{options(q, '. ')}", "选A。"] for q in questions])
    yield from found(
        "within a text",
        True,
        [[f"请做这道题：{q.text}（  ）\n{options(q, '、')}\n答案是什么？", "B"] for q in questions],
    )
    ends = [
        "有哪些症状？",
        "是怎么引起的？",
        "应该怎么治疗？",
        "和普通疾病有什么区别？",
        "的定义是什么？",
        "怎么预防？",
        "",
    ]
    yield from found(
        "on the same term", False, [[f"{term}{end}", f"{term}是一个专业术语。"] for term in terms for end in ends]
    )
    stems = [q.text.strip("_。.？? ") for q in questions if not q.place.startswith("mmlu")]
    heads = [text[: len(text) // 2] for text in stems]
    yield from found(
        "half a question", False, [[f"{head}？请简单说明。", "说明如下。"] for head in heads if len(head) > 3]
    )
    chinese = lines("chinese.txt")
    yield from found(
        "another subject", False, [[text, other] for text, other in zip(chinese[:150], chinese[150:300], strict=True)]
    )
