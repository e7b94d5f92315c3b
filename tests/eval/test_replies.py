"""Replies to Chinese prompts: what counts as Chinese, and decoding against transformers' own."""

from pathlib import Path

import pyarrow
import pytest
import torch
from stand_ins.tiny_mixtral import load_tokenizer, tiny_model

from aurora.core.errors import DataError
from aurora.core.language import language
from aurora.core.parquet import write_parquet
from aurora.eval.params import Replies
from aurora.eval.replies import (
    Prompt,
    answer_prompts,
    chinese_prompts,
    generate,
    greedy_replies,
    repetition,
    reply_metrics,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("你好！我是一个人工智能助手，很高兴为您服务。", "Chinese"),
        ("您的肚子疼可能由很多原因引起，建议多喝温水。", "Chinese"),
        ("春眠不覺曉，處處聞啼鳥。", "Chinese"),  # traditional
        ("好的", "Chinese"),
        ("答案是 42。", "Chinese"),
        ("1. 早睡早起\n2. 多喝水\n3. 每天运动 30 分钟", "Chinese"),
        ("我推荐使用 Python 和 TensorFlow 来完成这个项目。", "Chinese"),  # names
        ("《哈利·波特》（Harry Potter）的作者是 J. K. Rowling。", "Chinese"),
        ("OpenAI 在 2023 年发布了 GPT-4。", "Chinese"),
        ("详见 https://www.example.com/docs/getting-started?lang=en 上的说明，或写信给 help@example.com。", "Chinese"),
        ("可以这样写：\n```python\nfor number in range(10):\n    print(number)  # print all of them\n```", "Chinese"),
        ("可以这样写：\n```python\nfor number in range(10):\n    print(number, end", "Chinese"),  # cut off in code
        ("使用 `sorted(list, key=len)` 就能按长度排序。", "Chinese"),
        ("代码如下：\n#include <stdio.h>\nint main() {\n    int sum = 0; // add all\n    return sum;\n}", "Chinese"),
        ("可以用下面的函数：\ndef double(number):\n    result = number * 2\n    print(result)", "Chinese"),
        ("第一，早睡早起；\n第二，多喝水（每天八杯）", "Chinese"),
        ("Use the function below:\nresult = double(number)", "other"),
        ("If you like tea (and coffee), you can drink both; then sleep well.", "other"),
        ("由 $E = mc^2$ 可知能量与质量成正比。", "Chinese"),
        ("水的化学式是 H2O，二氧化碳是 CO2。", "Chinese"),
        ("ＡＩ技术发展迅速。", "Chinese"),  # full-width letters
        ("你好！Hello! How can I help you today? 我能帮您什么？", "mixed"),
        ("Hello! I am an assistant and can answer questions. 你好！我是助手，可以回答问题。", "mixed"),
        ("你好！我是助手，可以回答问题。Hello! I am an assistant and can answer questions.", "mixed"),
        ("我 like 吃 apple 因为 it is 好吃", "mixed"),
        ("Hello 你好", "mixed"),
        ("The 你好 Is 北京", "mixed"),
        ("The answer is 四十二, as you know.", "mixed"),
        ("Hello! How can I help you today?", "other"),
        ("Python", "other"),
        ("The capital of China is Beijing (北京), a city with a very long history and many people.", "other"),
        ("こんにちは、私はアシスタントです。よろしくお願いします。", "other"),  # though its kanji are Han
        ("안녕하세요 저는 도우미입니다", "other"),
        ("Привет, как дела?", "other"),
        (
            "Sure, I'd be happy to explain this in Chinese:\n"
            + "云计算把计算资源放在网络上，按需要提供给用户使用。" * 4,
            "mixed",
        ),
        (
            "云计算的资源 can be shared by many users 并且可以按需要扩展，"
            + "用户只为使用的部分付费，不必自己购买服务器。" * 3,
            "mixed",
        ),
        ("计算机协会（Association for Computing Machinery）成立于一九四七年，是世界上最早的计算机学会。", "Chinese"),
        ("的" + "\ufffd" * 21, "other"),  # bytes that are no text
        ("\ufffd\ufffd", "other"),
        ("这是一个被截断的句子\ufffd", "Chinese"),
        ("42", "none"),
        ("3.14 × 2 = 6.28", "none"),
        ("```python\nprint(1)\n```", "none"),
        ("……！？", "none"),
        ("", "empty"),
        (" \n\t ", "empty"),
    ],
)
def test_language(text: str, expected: str) -> None:
    assert language(text) == expected


def test_half_of_each_language_is_mixed_at_any_length() -> None:
    english, chinese = "We should drink more water every day. ", "我们每天都应该多喝水。"
    for count in range(1, 20):
        assert language(english * count + chinese * count) == "mixed"
        assert language(chinese * count + english * count) == "mixed"


def test_metrics_count_each_reply_once() -> None:
    replies = ["你好，很高兴认识你。", "Hello there, my friend.", "你好 hello how are you 朋友", "", "42"]
    metrics = reply_metrics(replies)
    assert metrics["zh_reply_rate"] == 1 / 4  # 42 is in no language; the empty reply is not Chinese
    assert metrics["mixed_rate"] == 1 / 4
    assert metrics["no_language"] == 1
    assert metrics["mean_length"] == sum(map(len, replies)) / 5
    for nothing, count in ((["1", "2"], 2), ([], 0)):
        metrics = reply_metrics(nothing)
        assert (metrics["zh_reply_rate"], metrics["mixed_rate"], metrics["no_language"]) == (None, None, count)
    assert reply_metrics([""])["zh_reply_rate"] == 0


def test_repetition() -> None:
    assert repetition("abcdef") == 0
    assert repetition("") == 0
    assert repetition("一" * 105) == 0.99
    assert repetition("这句话里没有任何重复的地方") == 0
    assert repetition("同样的一句话。" * 10) > 0.85


def held_out(path: Path, rows: list[dict]) -> Path:
    schema = pyarrow.schema(
        [
            ("id", pyarrow.string()),
            ("prompt", pyarrow.string()),
            ("input_ids", pyarrow.list_(pyarrow.int32())),
            ("labels", pyarrow.list_(pyarrow.int32())),
        ]
    )
    write_parquet(path, pyarrow.Table.from_pylist(rows, schema=schema))
    return path


def row(name: str, prompt: str, length: int = 3) -> dict:
    return {
        "id": name,
        "prompt": prompt,
        "input_ids": [1, *range(10, 9 + length), 7, 2],
        "labels": [-100] * length + [7, 2],
    }


def test_prompts_are_chinese_and_in_order_of_id(tmp_path: Path) -> None:
    path = held_out(
        tmp_path / "held_out.parquet",
        [
            row("d", "请写一首诗"),
            row("b", "你是谁？", 5),
            row("a", "Who are you?"),
            row("c", "你是谁？"),  # the same text again
            row("e", "太长的问题", 50),
            row("f", "介绍一下北京"),
        ],
    )
    found = chinese_prompts(path, 10, 20)
    assert [(prompt.id, prompt.text) for prompt in found] == [
        ("b", "你是谁？"),
        ("d", "请写一首诗"),
        ("f", "介绍一下北京"),
    ]
    assert found[0].tokens == [1, 10, 11, 12, 13]  # up to the answer
    assert chinese_prompts(path, 2, 20) == found[:2]


def test_no_chinese_prompt_is_an_error(tmp_path: Path) -> None:
    path = held_out(tmp_path / "held_out.parquet", [row("a", "Who are you?")])
    with pytest.raises(DataError, match="no prompt of up to 98 tokens is Chinese"):
        answer_prompts(tiny_model(), None, path, Replies(prompts=2, max_new_tokens=2, batch_size=2), 100)


def test_tokens_are_those_of_transformers() -> None:
    model = tiny_model()
    prompts = [[1, 5, 9], [1, 400, 7, 8, 30, 99, 1234], [1], [1, 17, 31999, 20, 4]]
    alone = [
        model.generate(torch.tensor([tokens]), max_new_tokens=24, do_sample=False, eos_token_id=-1)[0, len(tokens) :]
        for tokens in prompts
    ]
    assert generate(model, prompts, 24, frozenset([-1])) == [tokens.tolist() for tokens in alone]
    # An end in the midst of each, at another place, so that rows leave the batch one by one.
    for end in {tokens[place].item() for place, tokens in zip((3, 8, 12, 20), alone, strict=True)}:
        expected = [tokens.tolist() for tokens in alone]
        expected = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in expected]
        assert generate(model, prompts, 24, frozenset([end])) == expected


def test_replies_come_in_the_order_of_prompts(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tmp_path)
    prompts = [Prompt(str(number), "", [1, *range(100, 100 + 3 * (7 - number))]) for number in range(7)]
    together = greedy_replies(tiny_model(), tokenizer, prompts, 6, 3)
    alone = [greedy_replies(tiny_model(), tokenizer, [prompt], 6, 1)[0] for prompt in prompts]
    assert together == alone
