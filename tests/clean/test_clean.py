"""Accounting, idempotence, whole rounds, fuzz, and the stage from the outside."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stand_ins.clean_case import BENCHMARKS, CLEAN, ROOT, cleaned, put, put_benchmarks, row, turns

from aurora.clean.accounting import PAPER
from aurora.clean.apply_rules import apply_rules, whole_rounds
from aurora.clean.contamination import read_questions
from aurora.clean.params import Clean
from aurora.clean.parse_rows import Turns
from aurora.core.errors import DataError
from aurora.core.files import dvc_hash
from aurora.core.messages import Message, Round
from stages.clean import main


def messages_of(rounds: tuple[Round, ...]) -> tuple[Message, ...]:
    return turns(*(text for each in rounds for text in each[:2]))


def applied(messages: tuple[Message, ...], params: Clean = CLEAN):
    """Messages, repairs and drop."""
    found = apply_rules(Turns(messages), params)
    return messages_of(found.rounds), found.repaired, found.drop


def test_a_clean_row_is_untouched():
    messages = turns("推荐一本书", "可以读读《红楼梦》。", "继续", "还有《西游记》。")
    assert applied(messages) == (messages, (), None)


def test_legitimate_repeated_prompts_stay():
    messages = turns(
        "给我三个选项", "1、2、3。", "1", "好的，第一个。", "1", "再来一个第一个。", "继续", "继续第一个。"
    )
    assert applied(messages)[0] == messages


@pytest.mark.parametrize(
    ("messages", "rounds", "repaired", "reason"),
    [
        (turns("问", "答", "问"), 1, ["trailing_user_trimmed"], None),
        (turns("问", "答", "问", ""), 1, ["trailing_user_trimmed"], None),
        (turns("答", "问", "答", first="assistant"), 1, ["leading_assistant_trimmed"], None),
        (turns("", "答", "问", "答"), 1, ["leading_assistant_trimmed"], None),
        (turns("问", "答", "", "答", "问", "答"), 1, [], "empty_prompt"),
        (turns("问", "答", "问", "", "问", "答"), 1, [], "empty_answer"),
        ((*turns("问", "答"), *turns("答", "问", "答", first="assistant")), 1, [], "roles_not_alternating"),
        (turns("问", ""), 0, [], "empty_answer"),
        (turns("", "答"), 0, [], "empty_prompt"),
        (turns("问"), 0, [], "empty_answer"),
        ((), 0, [], "no_messages"),
    ],
)
def test_whole_rounds(messages, rounds: int, repaired: list[str], reason: str | None):
    named: list[str] = []
    found, fault = whole_rounds(messages, named, CLEAN)
    assert (len(found), named, fault and fault.reason) == (rounds, repaired, reason)


def test_a_fault_cuts_or_drops_as_the_params_say():
    messages = turns("问", "答。", "你是谁", "我是ChatGPT。", "问", "答。")
    kept, repaired, drop = applied(messages)
    assert (kept, repaired, drop) == (messages[:2], ("cut_at_other_model",), None)
    strict = CLEAN.model_copy(update={"faulty_round": "drop"})
    assert applied(messages, strict)[2].reason == "other_model"
    off = CLEAN.model_copy(update={"other_models": False})
    assert applied(messages, off)[0] == messages


def test_rows_that_hold_a_benchmark_question_are_dropped_and_listed(tmp_path: Path):
    put_benchmarks(tmp_path / "benchmark")
    benchmarks = [tmp_path / "benchmark" / name for name in BENCHMARKS]
    chinese = max(read_questions(benchmarks[1]), key=lambda question: len(question.text))
    english = max(read_questions(benchmarks[0]), key=lambda question: len(question.text))
    # Short stems count with their options.
    said = ["\n".join([question.text, *question.options]) for question in (chinese, english)]
    rows = [
        row(f"请选出正确答案。\n{said[0]}", "选B。"),
        row("出一道题", f"好的。{said[1].upper()}。"),
        row("出一道关于天气的题", "明天会不会下雨？"),
    ]
    found = cleaned({"own": put(tmp_path, "own", rows)}, benchmarks, CLEAN)
    evidence = {outcome.position: outcome.drop for outcome in found.dropped}
    assert {position: drop.reason for position, drop in evidence.items()} == dict.fromkeys((0, 1), "contaminated")
    assert evidence[0].evidence.startswith(f"{chinese.place} (1.00): 请选出正确答案。")
    assert evidence[1].evidence.startswith(f"{english.place} (1.00): 出一道题")
    counts = found.metrics["contamination"]
    assert (counts["rows"], counts["ceval"], counts["mmlu"]) == (2, 1, 1)
    assert found.metrics["total"]["dropped"] == {"contaminated": 2}


def test_traditional_script_is_kept_converted_or_dropped(tmp_path: Path):
    rows = [
        row("這個問題與國際貿易有關嗎？請說明。", "是的，這個問題與國際貿易關係密切，關稅會影響進口商品的價格。"),
        row("写出“後”的简体字。", "“後”的簡體字是“后”，這兩個字的讀音與聲調都相同，請記住這個區別。"),
        row("用日语说“东京很大”。", "東京はとても大きいです。"),
    ]
    folder = put(tmp_path, "own", rows)
    off = CLEAN.model_copy(update={"contamination": None})
    kept = cleaned({"own": folder}, [], off)
    assert kept.metrics["total"]["traditional"] == 2
    dropped = cleaned({"own": folder}, [], off.model_copy(update={"traditional": "drop"}))
    assert dropped.metrics["total"]["dropped"] == {"traditional": 2}
    converted = cleaned({"own": folder}, [], off.model_copy(update={"traditional": "convert"}))
    assert converted.metrics["total"]["repaired"] == {"traditional_converted": 1}
    answers = {c.position: c.rounds[0].answer for c, _ in converted.kept}
    assert answers[0] == "是的，这个问题与国际贸易关系密切，关税会影响进口商品的价格。"
    assert (answers[1], answers[2]) == (rows[1]["output"], rows[2]["output"])  # of the scripts, and Japanese


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    shared = row("春天为什么开花？", "因为气温升高，植物在春天开始开花，这是一种适应环境的结果，也便于昆虫传粉。")
    near = row("春天为什么开花？", "因为气温升高，植物在春天开始开花，这是一种适应环境的结果，也便于昆虫授粉。")
    first = [shared, row("问", None), row("写一首诗", "<noinput>"), row("你好呀朋友", "你好！\u200b"), near, shared]
    second = [
        {"conversation": [{"human": "你好呀朋友", "assistant": "你好！"}, {"human": "继续", "assistant": None}]},
        7,
    ]
    return {"one": put(tmp_path, "one", first, expected=7), "two": put(tmp_path, "two", second, "sharegpt")}


def test_every_row_is_accounted_for(sources: dict[str, Path]):
    off = CLEAN.model_copy(update={"contamination": None, "near_duplicates": 0.7})
    found = cleaned(sources, [], off)
    one, two = found.metrics["sources"]["one"], found.metrics["sources"]["two"]
    assert one["read"] == 6 and one["kept"] == 2
    assert one["dropped"] == {"empty_answer": 1, "exact_duplicate": 1, "near_duplicate": 1, "placeholder_answer": 1}
    assert one["repaired"] == {"invisible_removed": 1}
    assert two["dropped"] == {"exact_duplicate": 1, "not_an_object": 1}  # the first source's row stays
    assert (two["read_single_round"], two["read_multiple_rounds"]) == (1, 1)
    assert found.metrics["notes"] == [
        "one: 7 rows are expected, 6 were read",
        "two: no row is left of 2: exact_duplicate 1, not_an_object 1; the first exact_duplicate: one 3: 你好呀朋友",
    ]
    ids = [conversation.id for conversation, _ in found.kept]
    assert ids == sorted(ids)
    assert {(d.source, d.position) for d in found.dropped} | {(c.source, c.position) for c, _ in found.kept} == {
        *(("one", n) for n in range(6)),
        *(("two", n) for n in range(2)),
    }


def test_the_cluster_is_the_smallest_id_of_all_that_were_read(sources: dict[str, Path]):
    found = cleaned(sources, [], CLEAN.model_copy(update={"contamination": None, "near_duplicates": 0.7}))
    for conversation, cluster in found.kept:
        assert cluster <= conversation.id
        if conversation.rounds[0].prompt == "你好呀朋友":
            assert cluster == conversation.id


def test_the_papers_counts_are_compared_in_words(tmp_path: Path):
    folder = put(
        tmp_path, "sharegpt_70k", [{"conversation": [{"human": "问", "assistant": "答。"}]}], "sharegpt", 76399
    )
    notes = cleaned({"sharegpt_70k": folder}, [], CLEAN.model_copy(update={"contamination": None})).metrics["notes"]
    assert notes[0] == "sharegpt_70k: 76,399 rows are expected, 1 were read"
    assert "41,066 single-round and 35,333 multi-round conversations, the file has 1 and 0" in notes[1]
    assert sum(map(sum, PAPER.values())) == 176678


TEXT = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        ["", " ", "<noinput>", "我是ChatGPT。", "很抱歉，我无法提供。", "继续", "&amp;lt;b&amp;gt;粗<br>", "中\u200b文\r\n", "答案是，",
         "请翻译以下关于茶的对话。", "今天天气很好。我们去公园，然后我们又去了很远的地方并且一直走到了晚上才想起来还没有", "总结：http://a.b/c"]
    ),
)  # fmt: skip
CONVERSATION = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXT), max_size=9)


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(CONVERSATION)
def test_judging_what_was_judged_changes_nothing(pairs: list[tuple[str, str]]):
    messages, _repaired, drop = applied(tuple(Message(*pair) for pair in pairs))
    assert bool(messages) is (drop is None)
    if messages:
        assert applied(messages) == (messages, (), None)
        assert [message.role for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert all(message.content.encode() for message in messages)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(CONVERSATION, max_size=12))
def test_kept_and_dropped_are_read_and_cleaning_again_changes_nothing(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    items = [{"messages": [{"role": role, "content": text} for role, text in pairs]} for pairs in rows]
    off = CLEAN.model_copy(update={"contamination": None})
    found = cleaned({"own": put(folder, "own", items or [{}], "messages")}, [], off)
    total = found.metrics["total"]
    assert len(found.kept) + len(found.dropped) == total["read"] == max(1, len(rows))
    kept = [[{"role": m.role, "content": m.content} for m in messages_of(c.rounds)] for c, _ in found.kept]
    if kept:
        again = cleaned({"own": put(folder / "again", "own", [{"messages": m} for m in kept], "messages")}, [], off)
        assert [c.rounds for c, _ in again.kept] == [c.rounds for c, _ in found.kept]
        assert not again.metrics["total"]["repaired"] and not again.dropped


def mutated(chance: random.Random, value: object, depth: int = 0) -> object:
    """A value with one thing wrong somewhere."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        new = {k: v for k, v in value.items() if k != key or chance.random() < 0.8}
        if key in new:
            new[chance.choice([key, key, key, key.upper(), "输出", "", "note"])] = mutated(
                chance, new.pop(key), depth + 1
            )
        return new
    if isinstance(value, list) and value and chance.random() < 0.8:
        new = list(value)
        at = chance.randrange(len(new))
        new[at] = mutated(chance, new[at], depth + 1)
        return new if chance.random() < 0.8 else new[:at] + new[at + 1 :] + new[:at]
    if isinstance(value, str) and chance.random() < 0.6:
        at = chance.randrange(len(value) + 1)
        piece = chance.choice(
            ["\ud800", "\x00", "\ufffd", "\u200b", "<br>", "&lt;", "```", "\r\n", "<noinput>", "，", "🏃\u200d", "Ã©", "\udfff\ud83d", "字" * 3000]
        )  # fmt: skip
        return chance.choice([value[:at] + piece + value[at:], value[:at], piece])
    deep: object = "底"
    for _ in range(chance.choice([1, 5, 60])):
        deep = [deep] if chance.random() < 0.5 else {"a": deep}
    return chance.choice([None, True, 0, -1.5, 1e999, float("nan"), 10**300, "", [], {}, deep, "None", value, [value]])


def written(chance: random.Random, item: object) -> str:
    """A row as one line of JSON, at times with a key that stands twice, raw depth, or blanks of any kind."""
    line = json.dumps(item, ensure_ascii=chance.random() < 0.5)
    if line.startswith('{"') and chance.random() < 0.05:
        line = chance.choice(['{"output": 1, ', '{"instruction": "a", "instruction": "b", ']) + line[1:]
    if chance.random() < 0.01:
        line = '{"messages": ' + "[" * 20000 + "]" * 20000 + "}"
    return chance.choice(["", "", " ", "\t"]) + line + chance.choice(["\n", "\r\n", "\n\n"])


def test_ten_thousand_mutated_rows_are_kept_or_dropped_with_a_reason(tmp_path: Path):
    """Through files and all rules, with benchmarks and near duplicates: every row is found again, once."""
    chance = random.Random(17)
    put_benchmarks(tmp_path / "benchmark")
    folders = {}
    rows = 5250
    for name, format_ in (("alpaca_data_zh_51k.json", "alpaca"), ("sharegpt_70k.jsonl", "sharegpt")):
        text = (ROOT / "samples" / name).read_text(encoding="utf-8")
        base = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
        lines = ["{}\n"]  # tells that these are JSON lines
        for _ in range(rows - 1):
            item = chance.choice(base)
            for _ in range(chance.randrange(1, 4)):
                item = mutated(chance, item)
            lines.append(written(chance, item))
        content = b"\xef\xbb\xbf" + "".join(lines).encode("utf-8", "backslashreplace")
        folders[format_] = put(tmp_path, format_, content, format_, expected=rows)
    found = cleaned(folders, [tmp_path / "benchmark" / name for name in BENCHMARKS], CLEAN)
    places = [(row.source, row.position) for row, _ in found.kept]
    places += [(outcome.source, outcome.position) for outcome in found.dropped]
    assert sorted(places) == [(name, position) for name in ("alpaca", "sharegpt") for position in range(rows)]
    assert found.metrics["total"]["read"] == 2 * rows and not found.metrics["notes"]
    for kept, _ in found.kept:
        texts = [text for each in kept.rounds for text in each[:2]]
        assert texts and all(text.strip() == text != "" and text.encode() for text in texts)
    for outcome in found.dropped:
        assert outcome.drop.reason and outcome.drop.evidence.encode() is not None
    reasons = found.metrics["total"]["dropped"]
    print({"kept": len(found.kept)} | reasons)
    wanted = "wrong_type not_an_object missing_key lone_surrogate mojibake repeated_key nested_too_deeply"
    assert {*wanted.split(), "exact_duplicate", "near_duplicate"} <= set(reasons)


@pytest.mark.minutes
def test_mutated_files_end_in_an_account_or_in_one_clear_error(tmp_path: Path):
    """400 files, a third of them Parquet: bytes exchanged, cut off, a BOM in front, CRLF."""
    chance = random.Random(23)
    whole = {
        "alpaca": json.dumps(
            json.loads((ROOT / "samples/alpaca_data_zh_51k.json").read_text())[:12], indent=1
        ).encode(),
        "sharegpt": b"".join((ROOT / "samples/sharegpt_70k.jsonl").read_bytes().splitlines(keepends=True)[:12]),
    }
    table = pyarrow.Table.from_pylist([json.loads(line) for line in whole["sharegpt"].splitlines()])
    pyarrow.parquet.write_table(table, tmp_path / "parquet")
    whole["sharegpt in parquet"] = (tmp_path / "parquet").read_bytes()
    off = CLEAN.model_copy(update={"contamination": None, "near_duplicates": None})
    outcomes: Counter[str] = Counter()
    for number in range(400):
        format_ = chance.choice(sorted(whole))
        content = bytearray(whole[format_])
        parquet = b"PAR1" in content
        for _ in range(chance.randrange(3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        if chance.random() < 0.3:
            content = content[: chance.randrange(len(content))]
        if not parquet and chance.random() < 0.3:
            content = bytearray(content.replace(b"\n", b"\r\n"))
        if not parquet and chance.random() < 0.3:
            content = bytearray(b"\xef\xbb\xbf") + content
        folder = put(tmp_path / str(number), "own", bytes(content), format_.removesuffix(" in parquet"))
        try:
            metrics = cleaned({"own": folder}, [], off).metrics["total"]
        except DataError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
            outcomes["error"] += 1
        else:
            assert metrics["kept"] + sum(metrics["dropped"].values()) == metrics["read"]
            outcomes["account"] += 1
    assert min(outcomes.values()) > 40


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository's data/raw with the embedded sources, and the small profile."""
    for name, format_ in (
        ("alpaca_data_zh_51k", "alpaca"),
        ("alpaca_gpt4_data_zh", "alpaca"),
        ("sharegpt_70k", "sharegpt"),
    ):
        put(tmp_path / "instructions", name, next((ROOT / "samples").glob(f"{name}.*")), format_)
    put_benchmarks(tmp_path / "benchmark")
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stage():
    arguments = ["--instructions", "instructions", "--benchmarks", "benchmark", "--out", "clean"]
    return CliRunner().invoke(main, arguments)


def test_the_stage_on_the_embedded_sources(raw: Path):
    put(raw / "instructions", "left_behind", [])
    for name in ("of_another_profile", "language_confusion"):
        (raw / "prompts" / name).mkdir(parents=True)
    (raw / "instructions/own_file.txt").write_text("")
    result = stage()
    assert result.exit_code == 0, result.output
    assert "removed instructions/left_behind, which params.yaml does not name" in result.stderr
    assert not (raw / "instructions/left_behind").exists()
    assert [path.name for path in (raw / "prompts").iterdir()] == ["language_confusion"]
    metrics = json.loads((raw / "clean/metrics.json").read_text())
    total = metrics["total"]
    assert result.stdout.splitlines()[-1] == f"clean: kept {total['kept']:,} of {total['read']:,}"
    table = pyarrow.parquet.read_table(raw / "clean/conversations.parquet")
    dropped = pyarrow.parquet.read_table(raw / "clean/dropped.parquet")
    assert table.num_rows == total["kept"] and dropped.num_rows == total["read"] - total["kept"]
    assert table.column_names == ["id", "source", "position", "messages", "cluster"]
    assert dropped.column_names == ["source", "position", "reason", "evidence"]
    assert sum(metrics["topics"].values()) == total["kept"]
    reasons = {
        "empty_answer", "exact_duplicate", "near_duplicate", "placeholder_answer", "refusal", "other_model",
        "unreachable_prompt", "truncated_answer", "leaked_translation_prompt", "mojibake", "not_chinese",
    }  # fmt: skip
    assert reasons <= set(total["dropped"])
    origins = json.loads((raw / "clean/sources.json").read_text())["sources"]
    folders = [*(raw / "benchmark").iterdir(), *(path for path in (raw / "instructions").iterdir() if path.is_dir())]
    assert [Path(origin["path"]).name for origin in origins] == [folder.name for folder in sorted(folders)]
    assert [origin["dvc_hash"] for origin in origins] == [dvc_hash(folder) for folder in sorted(folders)]
    page = (raw / "clean/report.html").read_text(encoding="utf-8")
    assert all(reason in page for reason in total["dropped"])


def test_the_same_inputs_give_the_same_bytes(raw: Path):
    names = ("conversations.parquet", "dropped.parquet", "sources.json", "metrics.json", "report.html")
    assert stage().exit_code == 0
    first = [(raw / "clean" / name).read_bytes() for name in names]
    assert stage().exit_code == 0
    assert first == [(raw / "clean" / name).read_bytes() for name in names]


def test_a_row_that_is_not_json_is_one_line_and_leaves_nothing(raw: Path):
    path = raw / "instructions/sharegpt_70k/rows"
    count = len(path.read_bytes().splitlines())
    with open(path, "ab") as file:
        file.write(b'{"conversation": [\n')
    result = stage()
    assert result.exit_code == 1 and not (raw / "clean").exists()
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert f"instructions/sharegpt_70k/rows line {count + 1} column" in line and "not JSON" in line
    assert "Traceback" not in result.output
    assert not list(raw.glob(".clean*"))


def test_a_missing_source_names_the_stage_that_writes_it(raw: Path):
    shutil.rmtree(raw / "instructions/sharegpt_70k")
    result = stage()
    assert result.exit_code == 1
    assert "dvc repro fetch@sharegpt_70k" in result.stderr


@pytest.mark.slow
def test_real_rows(real_data: Path, tmp_path: Path):
    """The known defects of the real rows, one by one."""
    one = put(tmp_path, "one", real_data / "instructions/alpaca_data_zh_51k/rows_1517.json")
    two = put(tmp_path, "two", real_data / "instructions/alpaca_gpt4_data_zh/rows_500_conversations.json", "sharegpt")
    three = put(tmp_path, "three", real_data / "instructions/sharegpt_70k/sharegpt_zh_500.jsonl", "sharegpt")
    found = cleaned({"one": one, "two": two, "three": three}, [], CLEAN.model_copy(update={"contamination": None}))
    kept = {(c.source, c.position): messages_of(c.rounds) for c, _ in found.kept}
    dropped = {(outcome.source, outcome.position): outcome.drop.reason for outcome in found.dropped}
    assert len(kept) + len(dropped) == 2517 and not kept.keys() & dropped.keys()
    assert kept["one", 1195][0].content.startswith("写一篇故事")
    assert dropped["one", 157] == "placeholder_answer"
    assert dropped["one", 242] == "empty_answer"
    markers = (788, 789, 790, 791, 792, 795, 940, 941, 942, 960, 961)
    assert all("输入" not in kept["one", position][0].content for position in markers)
    assert all("noinput" not in kept["one", position][0].content for position in markers)
    assert kept["three", 118][-1].role == "assistant" and kept["three", 340][-1].role == "assistant"
    assert len(kept["three", 58]) == 2  # its second prompt is empty
    rows = json.loads((real_data / "instructions/alpaca_data_zh_51k/rows_1517.json").read_text(encoding="utf-8"))
    without = [
        n for n, r in enumerate(rows) if (r.get("output") or "") and not any("一" <= c <= "龥" for c in r["output"])
    ]
    assert sum(("one", number) in kept for number in without) >= 0.97 * len(without)
    assert len(without) > 140
    assert sum(source == "one" for source, _ in kept) > 0.98 * 1517
    prompts = Counter(m.content for messages in kept.values() for m in messages[::2])
    assert prompts["继续"] == 8 and prompts["1"] >= 64  # of 8 and 68
