"""Each rule on what it must catch and on what it must leave, and truncation against labels of real rows."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from aurora.clean import filters
from aurora.clean.repairs import reread, visible, without_html
from aurora.clean.truncation import asks_to_go_on, cut_off
from aurora.pipeline.params import load_params

CLEAN = load_params(Path(__file__).parent.parent.parent / "profiles/paper.yaml").clean
HERE = Path(__file__).parent


def reason(rule, prompt: str, answer: str) -> str | None:
    fault = rule([(prompt, answer)], CLEAN)
    return fault.reason if fault else None


@pytest.mark.parametrize("answer", ["<noinput>", "无输入", "<无输出>", "N/A", "...", "。", "纽约时间: <noinput>"])
def test_placeholders(answer: str):
    assert reason(filters.placeholder_answer, "问", answer) == "placeholder_answer"


@pytest.mark.parametrize("answer", ["是", "无", "42", "+", "没有。", "None", "空气", "`<noinput>` 表示没有输入。"])
def test_short_answers_are_no_placeholders(answer: str):
    assert reason(filters.placeholder_answer, "问", answer) is None


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("把answer翻译成中文", "答案"), ("这段代码打印什么？", "undefined"), ("选择合适的标点符号", "！")],
)
def test_a_word_or_a_mark_that_was_asked_for_is_no_placeholder(prompt: str, answer: str):
    assert reason(filters.placeholder_answer, prompt, answer) is None
    assert reason(filters.placeholder_answer, "今天做什么？", answer) == "placeholder_answer"


@pytest.mark.parametrize(
    "answer",
    [
        "我是ChatGPT，一个人工智能助手。",
        "我是由OpenAI训练的大型语言模型。",
        "作为OpenAI训练的语言模型，我没有感情。",
        "你好，我叫文心一言。",
        "我的创造者是Anthropic公司。",
        "I am ChatGPT, a large language model trained by OpenAI.",
        "我是Claude，很高兴认识你。",
        "我是通义千问，由阿里云研发。",
    ],
)
def test_other_models(answer: str):
    assert reason(filters.other_model, "你是谁", answer) == "other_model"


@pytest.mark.parametrize(
    "answer",
    [
        "ChatGPT是OpenAI开发的聊天机器人。",
        "我认为百度是一家很大的公司。",
        "我是一名由百度资助的学生。",
        "GPT-4由OpenAI于2023年发布，它能理解图片。",
        "我是一个人工智能助手，可以回答问题。",
        "我喜欢Claude Monet的画。",
        "我们使用微软的软件。",
    ],
)
def test_speaking_of_a_model_is_not_being_one(answer: str):
    assert reason(filters.other_model, "介绍一下", answer) is None


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("拍张照片", "很抱歉，我无法生成图片。"),
        ("总结以下文章", "很抱歉，由于您没有提供文章内容，我无法为您提供总结。"),
        ("明天天气", "作为一个AI语言模型，我无法访问实时信息。"),
        ("天气", "I'm sorry, but as an AI, I don't have access to the latest data."),
        ("写代码", "很抱歉，我无法完成这个请求。作为一个语言模型，我不能编写或运行代码。"),
        ("总结给定文章，用1-2句话概括。", "您好！请提供文章，我将为您总结。"),
        ("描述给定诗歌的主题。", "To provide a response, I would need more information on the poem."),
        ("讲个恶毒的笑话", "作为人工智能，我不会提供伤害他人的内容。"),
    ],
)
def test_refusals(prompt: str, answer: str):
    assert reason(filters.refusal, prompt, answer) == "refusal"


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("编造一个迟到会议的借口", "对不起，我迟到了——我接到一个紧急电话，无法中断。"),
        ("写一封拒绝邀请的信", "很抱歉，我不能参加您的聚会，也无法提供帮助。"),
        ("你错了", "抱歉造成困惑！你说得没错，应该是第二个。"),
        ("把sorry翻译成中文", "对不起。"),
        ("我感冒了", "对不起听到你感到不适。多喝水，多休息。"),
        ("鱼能离开水吗", "鱼不能离开水，因为它们用鳃呼吸。"),
        ("我会给你一句话，请翻译它。", "请提供您的句子。"),
        ("写一条客服短信，向客户要订单号", "请提供您的订单号，我们会尽快处理。"),
        ("你会学习吗", "作为一种人工智能语言模型，我不会像人类那样学习，而是从文本中总结规律。"),
    ],
)
def test_apologies_that_were_asked_for_stay(prompt: str, answer: str):
    assert reason(filters.refusal, prompt, answer) is None


@pytest.mark.parametrize(
    "prompt",
    [
        "请描述这张图片里人物的表情。",
        "总结这篇文章：https://example.com/article",
        "解释你欣赏下面这幅画的地方。\n![Painting](https://example.com/a.jpg)",
        "识别与以下旗帜相关联的国家。\n(国旗图像)",
        "用一句话描述附上的画。",
        "根据图片写一个故事。",
        "给下面的图片写一个说明：\n[图片]",
        "该图示如何在论文中使用？\n[城市的图示]",
    ],
)
def test_prompts_that_need_more(prompt: str):
    assert reason(filters.unreachable_prompt, prompt, "好") == "unreachable_prompt"


@pytest.mark.parametrize(
    "prompt",
    [
        "将以下句子从被动语态改为主动语态：\n这幅画是由艺术家创作的。",
        "编写一个Python脚本，从 https://example.com/table 的表格中提取数据",
        "如何用手机拍出好照片？",
        "用三句话描述下面这幅画：梵高的《星空》",
        "为这张照片写一个标题。\n一只狗在海滩上追着飞盘奔跑",
        "每次被要求参加电话会议时，请回复 https://cal.com/peer/30",
        "写一段视频网站的介绍",
    ],
)
def test_prompts_that_suffice(prompt: str):
    assert reason(filters.unreachable_prompt, prompt, "好") is None


def test_leaked_translation_prompts():
    leaked = filters.leaked_translation_prompt
    assert reason(leaked, "请翻译以下关于落地页的对话。", "好") == "leaked_translation_prompt"
    assert reason(leaked, "请翻译以下句子：今天的对话很有意思。", "…") is None
    assert reason(leaked, "写一段关于翻译的对话", "…") is None


@pytest.mark.parametrize(
    ("prompt", "answer", "kept"),
    [
        (
            "改正语法。\nHe go to the school every day and he like it.",
            "He goes to school every day and likes it.",
            True,
        ),
        ("把下面的句子改为被动语态", "The cake was eaten by the boy in the garden.", True),
        ("1+1=?", "2", True),
        ("How do I learn to swim well?", "Start in shallow water and get used to it slowly.", False),
        ("水泳を上手になるにはどうすればいいですか。", "まずは浅い水から始めましょう。ゆっくり慣れてください。", False),
        ("수영을 잘하려면 어떻게 해야 하나요", "얕은 물에서 시작해서 천천히 익숙해지세요 그리고 연습하세요", False),
        ("```python\nprint('hello world and all of you out there')\n```", "`hello`", True),
        ("请翻译成日语：你好", "こんにちは、今日はいい天気ですね。", True),
    ],
)
def test_language_is_judged_over_the_conversation(prompt: str, answer: str, kept: bool):
    assert (reason(filters.not_chinese, prompt, answer) is None) is kept


def test_invisible_characters_go_and_joiners_of_emoji_stay():
    assert visible("\ufeff你\u200b好\x00\u202e\r\n第\u00ad二行\ue000") == "你好\n第二行"
    assert visible("🏃\u200d♂️跑") == "🏃\u200d♂️跑"
    assert visible("中\u200d文") == "中文"


def test_html_goes_once_and_for_all():
    assert without_html("<p>第一</p><p>第二<br/>三</p>&nbsp;&lt;b&gt;粗&lt;/b&gt;") == "第一\n第二\n三\n粗"
    assert without_html("10<sup>2</sup>") == "10^2"
    assert without_html("如果 a<b 且 c>d，则 x & y") == "如果 a<b 且 c>d，则 x & y"


def test_wrong_encodings_are_repaired_where_that_is_certain():
    text = "今天天气很好，我们去公园散步吧"
    assert reread(text.encode().decode("latin-1")) == text
    assert reread(text) is None
    assert reread("caf\u00e9 d\u00e9j\u00e0") is None
    assert reason(filters.mojibake, "问", "熟能生巧ï¼Œæ‰€ä»¥è¦不断尝试") == "mojibake"
    assert reason(filters.mojibake, "问", "锟斤拷锟斤拷") == "mojibake"
    assert reason(filters.mojibake, "问", "Café Noël à Orléans，很好喝") is None


def test_traditional_characters_are_told_by_the_two_character_sets():
    assert filters.traditional_share(["這個問題與國際貿易有關"]) > 0.4
    assert filters.traditional_share(["这个问题与国际贸易有关"]) == 0


def test_go_on():
    assert asks_to_go_on("接。") and asks_to_go_on("续")
    assert asks_to_go_on("继续") and asks_to_go_on("请继续写完") and asks_to_go_on("continue")
    assert not asks_to_go_on("继续教育是什么意思？请写一篇一千字的文章来说明它的历史、现状与未来，并举出三个例子说明")


def test_a_cut_answer_that_is_gone_on_with_stays():
    cut = "人工智能有很多应用。它在医疗、教育、金融等领域都有广泛的使用，例如在医疗领域，它可以帮助医生进行诊断，并且"
    whole = "提高准确率。"
    rule = filters.truncated_answer
    assert cut_off(cut, 120)
    assert rule([("问", cut), ("继续", whole)], CLEAN) is None
    assert rule([("问", cut), ("谢谢", whole)], CLEAN).index == 0
    # Cutting the last answer must not leave the one before it cut off.
    assert rule([("问", whole), ("问", cut), ("继续", cut)], CLEAN).index == 1


@pytest.mark.parametrize(
    "answer",
    [
        "1. 苹果\n2. 香蕉\n3. 橙子" * 12,
        "床前明月光\n疑是地上霜\n举头望明月\n低头思故乡",
        "尊敬的老师：\n我明天需去医院复查，想请假一天。手头工作已交接完毕，急事可打我电话。望批准，谢谢。\n张琳",
        "立即尝试它，看看您的会计流程如何被转换！这是最好的软件，人人都说好。#会计 #工具",
        "```python\nprint(1)\n```",
        "妈妈祝你一路顺风，你沿着小路一直走到了镇上，天色渐渐暗了下来，远处亮起了灯。你想做什么呢？ 1.去旅店休息 2.去商店备货 3.在镇上到处看看"
        * 2,
        "def f(x):\n    if x:\n        return 1\n    return 0\n" * 8,
    ],
)
def test_lists_poems_letters_tags_and_code_are_whole(answer: str):
    assert cut_off(answer, CLEAN.truncated_from) is None


def test_truncation_against_labels_of_real_answers(real_data: Path):
    """Labels were set by reading; precision and recall of at least 0.9 in each kind of text."""
    lines = (HERE / "truncation_labels.txt").read_text().splitlines()
    labels = {line for line in lines if not line.startswith("#")}
    for name, cut in (
        ("alpaca_gpt4_data_zh/rows_500_alpaca.json", {"list": 28, "prose": 27}),
        ("alpaca_data_zh_51k/rows_1517.json", {"list": 0, "prose": 1}),
    ):
        rows = json.loads((real_data / "instructions" / name).read_text(encoding="utf-8"))
        answers = {row.get("output") or "" for row in rows}
        for kind, number in cut.items():
            listed = [text for text in answers if bool(re.search(r"(?m)^(\d+[.、]|[-*•]) ?", text)) is (kind == "list")]
            true = {text for text in listed if hashlib.sha256(text.encode()).hexdigest()[:32] in labels}
            assert len(true) == number
            found = {text for text in listed if text and cut_off(text, CLEAN.truncated_from)}
            assert len(found & true) >= 0.9 * len(true)
            assert len(found & true) >= 0.9 * len(found)
