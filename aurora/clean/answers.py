"""Rules for answers: placeholders, refusals, and answers in the name of another vendor's model.

Each says with a Fault at which round a conversation stops being fit, or None; see aurora/clean/filters.py.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from aurora.clean.params import Clean
from aurora.core.messages import Round

Rounds = Sequence[tuple[str, str] | Round]  # prompt and answer; a Round has more behind them
EVIDENCE = 160  # characters kept of what shows a fault


class Fault(NamedTuple):
    """The first faulty round of a conversation, and the reason."""

    index: int  # 0-based round
    reason: str
    evidence: str


EDGE = " \t\n\"'“”‘’<>《》〈〉[]【】()（）{}*_`#:：.。,，!！-—…"
PLACEHOLDERS = {
    "noinput", "no input", "nooutput", "no output", "no answer", "无输入", "无输出", "无需输入", "不需要输入", "没有输入",
    "没有输出", "无需输出", "无内容", "无回答", "无答案", "暂无", "暂无内容", "略", "n/a", "nan", "null", "undefined", "todo",
    "placeholder", "输出", "回答", "答案", "output", "answer", "response", "your answer here", "在此输入", "待补充",
}  # fmt: skip
# Answers that a question about words, signs or code can have.
WORDS_ALONE = {
    "输出", "回答", "答案", "output", "answer", "response", "nan", "null", "undefined", "todo", "placeholder", "略",
}  # fmt: skip
ABOUT_WORDS = re.compile(
    r"翻译|译成|译为|译文|词|英文|中文|拼写|代码|程序|返回|print|\bnull\b|\bnan\b|undefined|打印", re.IGNORECASE
)
ABOUT_MARKS = re.compile(r"标点|符号|表情|括号|引号|句号|问号|省略号|emoji", re.IGNORECASE)
OPERATOR = re.compile(r"[+\-*/=<>]")
MARKER = re.compile(r"<\s*(?:no\s?input|no\s?output|nooutput|无输入|无输出|输出|placeholder)\s*>", re.IGNORECASE)

MODELS = (
    r"(?:Open\s?AI|Chat\s?GPT|GPT[-\s]?[345](?:\.5)?(?:-turbo)?|InstructGPT|Anthropic|Claude(?!\s?(?:Monet|Debussy|Shannon|·))|"
    r"文心(?:一言)?+|ERNIE|Bard|Gemini|LaMDA|PaLM|通义(?:千问)?+|Qwen|讯飞星火|星火认知|Kimi|豆包|LLaMA|Vicuna|MOSS|ChatGLM|智谱|"
    r"百川|Baichuan|DeepSeek|深度求索|New\s?Bing|Copilot|Siri|小爱同学|混元|盘古大模型|悟道)"
)
VENDORS = (
    r"(?:Open\s?AI|Anthropic|Google|谷歌|百度|阿里巴巴|阿里云|阿里|腾讯|华为|科大讯飞|讯飞|微软|Microsoft|Meta|Facebook|智谱|"
    r"清华|月之暗面|字节跳动|百川|DeepSeek|深度求索|苹果公司)"
)
MADE = r"(?:训练|開發|开发|創建|创建|創造|创造|研发|推出|制作|製作|培训|培訓|设计|打造|构建|提供支持|所有|编程)"
OTHER_MODEL = re.compile(
    rf"我(?:是|就是|叫|的名字是|的名字叫|名叫)[^。！？!?\n]{{0,14}}{MODELS}(?!\s*的?(?:用户|粉丝|忠实|使用者|爱好者|创始|员工|工程师|开发者|CEO|首席))"
    rf"|(?:我|我们)(?!们)[^。！？!?\n]{{0,16}}(?:由|被|受|来自|出自|是)\s*{VENDORS}[^。！？!?\n，,]{{0,12}}{MADE}(?![^。！？!?\n，,]{{0,8}}(?:工程师|员工|产品经理))"
    rf"|作为(?:一个|一款|一名|一种|一位|一台)?[^。！？!?\n，,]{{0,8}}{VENDORS}[^。！？!?\n，,]{{0,8}}{MADE}[^。！？!?\n]{{0,24}}(?:我|本模型|本人|本AI)"
    rf"|作为\s*(?:一个|一款|一名)?\s*{MODELS}[^。！？!?\n]{{0,16}}(?:我|，\s*本)"
    rf"|(?:我的|我在)[^。！？!?\n]{{0,12}}{MODELS}[^。！？!?\n]{{0,6}}(?:创造者|创建者|开发者|训练|公司|团队|制造|研发)"
    rf"|我的(?:创造者|開發者|开发者|创建者|制造商|训练者|开发团队|母公司|开发公司)[^。！？!?\n]{{0,10}}(?:{MODELS}|{VENDORS})"
    rf"|{VENDORS}[^。！？!?\n，,]{{0,6}}{MADE}(?:了|出|出了)?\s*我(?!们)"
    rf"|\b(?:I am|I'm|I’m|my name is|as)\b[^.!?\n]{{0,24}}\b(?:ChatGPT|OpenAI|GPT-?[345]|Claude|Bard|Gemini|Qwen|ERNIE)\b(?!\s*(?:user|fan|engineer))"
    rf"|\bI\b[^.!?\n]{{0,30}}(?:trained|created|developed|made|built) by {VENDORS}",
    re.IGNORECASE,
)
FICTION = re.compile(r"第一人称|小说|故事|剧本|科幻")
NAMED = re.compile(  # a first look, in small letters: most answers name no one
    "|".join((
        "openai", "open ai", "gpt", "anthropic", "claude", "文心", "ernie", "bard", "gemini", "lamda", "palm",
        "通义", "qwen", "星火", "kimi", "豆包", "llama", "vicuna", "moss", "chatglm", "智谱", "百川", "baichuan",
        "deepseek", "深度求索", "bing", "copilot", "siri", "小爱同学", "混元", "盘古", "悟道", "google", "谷歌", "百度", "阿里",
        "腾讯", "华为", "讯飞", "微软", "microsoft", "meta", "facebook", "清华", "月之暗面", "字节跳动", "苹果公司",
    ))
)  # fmt: skip

ABLE = r"(?:无法|無法|不能|没有能力|沒有能力|没法|不便|不会|不可以|没有办法|不具备|沒有辦法)"
# 我不会像人一样学习 says what a machine is; 我不会提供 declines.
MACHINE_ABLE = ABLE.replace("|不会", "|不会(?=提供|回答|协助|生成|参与|讨论|支持|给出|创作|编写|透露)")
TASK = (
    r"(?:回答|回复|提供|完成|满足|滿足|协助|帮助|帮您|帮你|为您|为你|執行|执行|生成|访问|查看|处理|分析|总结|预测|给出|转录|显示|顯示|"
    r"创建|创作|编写|写|渲染|浏览|打开|判断|确定|讨论|参与|支持|接受|拥抱|理解|识别|翻译|实现|接收|描述|直接|阅读|查找|继续|讨论|透露|"
    r"运行|绘制|播放|上网|联网|对您|对你)"
)
MACHINE = r"(?:语言模型|語言模型|AI|人工智能|人工智慧|机器人|聊天助手|智能助手|文本模型|虚拟助手)"
REFUSAL_OF_MACHINE = re.compile(
    rf"(?:作为|作為|我是|我只是|身为|因为我是)[^。！!\n]{{0,14}}{MACHINE}(?!\s*，?[您你])[^。！!\n]{{0,24}}(?:{MACHINE_ABLE}|没有.{{0,12}}(?:能力|权限|信息|功能))"
    rf"|(?:As an?|I am an?|I'm an?|I’m an?|I'm just an?) (?:AI|language model|artificial)[^.!\n]{{0,60}}(?:can't|cannot|can not|unable|not able|don't have|do not have|not capable|need you to)",
    re.IGNORECASE,
)
REFUSAL = re.compile(
    rf"^\W*(?:我)?(?:很|非常|十分|真的)?(?:抱歉|对不起|對不起|遗憾)(?!.{{0,3}}听到)[^。！!\n]{{0,40}}{ABLE}[^。！!\n]{{0,16}}{TASK}"
    rf"|^[^。\n]{{0,40}}(?:您|你)(?:并|好像)?(?:没有|未|沒有)(?:给|提供|给出|指定|告诉|说明|附上)[^。\n]{{0,40}}(?:{ABLE}|请提供|才能)"
    rf"|^\W*我{ABLE}(?:回答|完成|提供|满足|协助|处理)[^。\n]{{0,20}}(?:这|该|此|您|你|因为|请求|问题)"
    rf"|^\W*(?:很|非常)?(?:抱歉|对不起)[^。\n]{{0,20}}(?:没有提供|没有给(?!予)|未提供)"
    rf"|^\W*(?:很|非常)?(?:抱歉|对不起)[^。\n]{{0,12}}(?:问题|输入|请求|句子)[^。\n]{{0,8}}(?:不完整|不清楚|不明确)"
    rf"|^\W*(?:I'm sorry|I’m sorry|I am sorry|Sorry|I apologi[sz]e|Unfortunately)\b[^.!\n]{{0,60}}\b(?:can't|cannot|can not|can’t|unable|not able|don't have|do not have|didn't provide|need more)",
    re.IGNORECASE,
)
ASKS = re.compile(  # for the text that the prompt forgot, and says no more
    r"^\W*(?:您好|你好)?\W*(?:请(?:问)?(?:您|你)?(?:能否|可以|能|能不能)?(?:先)?(?:给我|向我)?(?:提供|给出|告诉我|输入|粘贴|发送)"
    r"|(?:To provide|Please provide|Could you (?:please )?provide|Can you (?:please )?provide|I need more|I would need|I'd need)\b)",
    re.IGNORECASE,
)
# A prompt that says that more will come.
PROMISES = re.compile(r"我(?:会|将|要|想|来|给|希望|需要)|\bI(?:'ll| will| want)\b")
WROTE_FOR_SOMEONE = re.compile(
    r"(?<![微相自短威守置确可亲坚迷笃])信(?!息|用|任|号|念|仰|心|赖|誉|徒|条|道|奉|服|贷)|邮件|郵件|借口|藉口|道歉|客服|顾客|客户|对话|台词|拒绝|婉拒|翻译|译成|译为|改写|回复|回应|角色|扮演|短信|留言|谢绝|造句|语气"
)
REFUSAL_LENGTH = 260  # characters; a longer answer apologises and then helps


def placeholder_answer(rounds: Rounds, params: Clean) -> Fault | None:
    """A placeholder instead of an answer: `<noinput>`, 无输入, only punctuation."""
    for index, (prompt, answer, *_) in enumerate(rounds):
        inner = answer.strip(EDGE).lower()
        # Marks alone are no answer, but an operator can be one.
        marks = not inner and not OPERATOR.search(answer) and not ABOUT_MARKS.search(prompt)
        if marks or (inner in PLACEHOLDERS and not (inner in WORDS_ALONE and ABOUT_WORDS.search(prompt))):
            return Fault(index, "placeholder_answer", answer[:EVIDENCE])
        if "<" in answer and (found := MARKER.search(answer)) and "`" not in answer:
            return Fault(index, "placeholder_answer", around(answer, found))
    return None


def other_model(rounds: Rounds, params: Clean) -> Fault | None:
    """An answer in which the assistant says that it is another vendor's model."""
    for index, (prompt, answer, *_) in enumerate(rounds):
        if not NAMED.search(answer.lower()) or FICTION.search(prompt):
            continue
        if found := OTHER_MODEL.search(answer):
            return Fault(index, "other_model", around(answer, found))
    return None


def refusal(rounds: Rounds, params: Clean) -> Fault | None:
    """A short answer that declines, or asks for the text that the prompt forgot."""
    for index, (prompt, answer, *_) in enumerate(rounds):
        if len(answer) > REFUSAL_LENGTH:
            continue
        found = REFUSAL_OF_MACHINE.search(answer, 0, 160)
        if found and found.start() > 40:
            found = None  # the help came first
        if not found and (found := REFUSAL.search(answer, 0, 160)) and WROTE_FOR_SOMEONE.search(prompt):
            found = None  # the apology is what was asked for
        if not found and not index and not PROMISES.search(prompt) and not WROTE_FOR_SOMEONE.search(prompt):
            found = ASKS.search(answer)
        if found:
            return Fault(index, "refusal", around(answer, found))
    return None


def around(text: str, found: re.Match[str]) -> str:
    """What was found, with some text on either side."""
    start, end = found.span()
    return text[max(0, start - 20) : min(len(text), max(end, start + 40) + 40)][:EVIDENCE]


def storable(text: str) -> str:
    """Text with lone surrogates written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
