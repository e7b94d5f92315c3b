"""Rules of clean: pure functions that find the first faulty round of a conversation, and the reason.

A round is (prompt, answer). A rule returns Fault(index of the first faulty round, reason, evidence) or None; what
is repaired instead is in aurora/clean/repairs.py. Each has its switch in `clean` of params.yaml.
"""

import re
from collections.abc import Callable, Sequence
from functools import cache

from aurora.clean.answers import EVIDENCE, Fault, Rounds, around, other_model, placeholder_answer, refusal, storable
from aurora.clean.params import Clean
from aurora.clean.repairs import MOJIBAKE
from aurora.clean.template_markers import ABOUT_MARKERS, leftover
from aurora.clean.truncation import asks_to_go_on, cut_off
from aurora.core.chinese import CHINESE_RANGES, chinese_characters

SURROGATE = re.compile("[\ud800-\udfff]")
CHINESE_RUN = re.compile(f"[{CHINESE_RANGES}]{{4,}}")
KANA = re.compile("[\u3041-\u30ff]")
FOREIGN_WORD = re.compile(
    "[A-Za-z\u00c0-\u024f]+(?:['’-][A-Za-z\u00c0-\u024f]+)*|[\u0370-\u052f\u0590-\u06ff]+|[\u0900-\u0dff\u0e00-\u0eff]+"
    "|[\u1100-\u11ff\uac00-\ud7af]+|[\u3041-\u30ff]"
)
TRADITIONAL = 0.1  # share of characters that exist in traditional script alone, from which a text counts so
CODE_BLOCK = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)

URL = re.compile(r"https?://\S+|www\.\S+")
PICTURE_MARKUP = re.compile(r"!\[[^\]\n]*\]\s*[(\[]")
PICTURE_SLOT = re.compile(
    r"[(（\[<【《][^)）\]>】》\n]{0,10}(?:图片|圖片|图像|照片|截图|插图|附图|图表|图示|链接|网址|视频|音频|录音|image|photo|picture|link|url|video|audio)[^)）\]>】》\n]{0,6}[)）\]>】》]",
    re.IGNORECASE,
)
PICTURE = re.compile(
    r"(?:描述|形容|解释|识别|辨认|分析|欣赏|看一?看|观察|根据|参考|说明|命名|标题|翻译|评价|评论|概括|总结|介绍|为|给|从|对|用)[^。\n，,：:]{0,12}"
    r"(?:这|那|该|此|下|上|附|所附|给定的?|提供的?|以下|下列|下面的?|上面的?|上述|上传的?|附上的?|附带的?|附件中的?)(?:一)?(?:张|幅|段|个|的)?"
    r"(?:图片|圖片|图像|照片|截图|插图|画作|画|附图|漫画|视频|音频|录音|图)(?!书|像处理|形|表示|灵|论|案|谱|纸|层|块|标|画|片格式|片大小)"
    r"|^[^。\n，,]{0,6}(?:看图|见图|如图所示|由图可知)|[这该此](?:图片|图像|照片|截图|图示|幅图|张图|张照片|张图片)(?:中|里|上)?(?:是|有|显示|描绘|表现|展示)?(?:什么|谁|哪)"
    r"|(?:根据|依据|按照|结合|观察)(?:图片|图像|照片|上图|下图|附图|插图)(?!格式|大小|处理)"
    r"|把[^。\n]{0,16}录音[^。\n]{0,6}转"
)
DESCRIBED = re.compile(r"《|[：:\n]\s*[^\s(（\[<【!][^\n]{6,}")  # a title, or the picture in words
NEEDS_PAGE = re.compile(
    r"总结|總結|概括|概述|摘要|归纳|阅读|打开|访问|查看|浏览|提取|主题|分析|识别|描述|标题|观点|欣赏|看看|翻译|改写|文章|帖子|新闻|这篇|旗帜|照片|视频|解释|评论|(?:给定的?|这个|该|此|以下|下面的?|下列)(?:网站|网页|链接)"
)
MAKES_CODE = re.compile(
    r"代码|脚本|python|java|函数|正则|爬|程序|html|css|api|sql|json|bash|shell|curl|git|插件|扩展|命令|编程|```|配置|报错|错误|安装|部署|域名",
    re.IGNORECASE,
)
LEAKED = re.compile(
    r"^\W*(?:请|請)?(?:您|你)?(?:帮我|帮忙)?(?:翻译|翻譯|把|将)?(?:一下)?(?:以下|下面|下列|这段|这个|该)(?:的)?(?:关于|有关|與|与)?.{0,60}"
    r"(?:对话|對話|会话|聊天记录|聊天|问答|对话内容|内容)(?:翻译|译)?(?:成|为|到)?(?:简体)?(?:中文|汉语)?\W*$"
)


def lone_surrogate(rounds: Rounds, params: Clean) -> Fault | None:
    """Half of a character pair, which no UTF-8 file can hold."""
    for index, (prompt, answer, *_) in enumerate(rounds):
        for text in (prompt, answer):
            if not text.isascii() and SURROGATE.search(text):
                return Fault(index, "lone_surrogate", storable(text[:EVIDENCE]))
    return None


def mojibake(rounds: Rounds, params: Clean) -> Fault | None:
    """Text in a wrong encoding that could not be repaired."""
    for index, (prompt, answer, *_) in enumerate(rounds):
        if "乱码" in prompt or "编码" in prompt:
            continue
        for text in (prompt, answer):
            if not text.isascii() and (found := MOJIBAKE.search(text)):
                return Fault(index, "mojibake", around(text, found))
    return None


def template_markers(rounds: Rounds, params: Clean) -> Fault | None:
    """Text with a marker of a prompt template that could neither be removed nor read as a turn."""
    for index, (prompt, answer, *_) in enumerate(rounds):
        found, text = leftover(prompt), prompt
        if not found:
            found, text = leftover(answer), answer
        if found and not ABOUT_MARKERS.search(prompt):
            return Fault(index, "template_markers", around(text, found))
    return None


def unreachable_prompt(rounds: Rounds, params: Clean) -> Fault | None:
    """A prompt that needs a picture, a recording or a web page that is not there."""
    for index, (prompt, *_) in enumerate(rounds):
        if len(prompt) > 2000:
            continue
        text = URL.sub(" ", prompt) if "http" in prompt or "www." in prompt else prompt
        if MAKES_CODE.search(text):
            continue
        found = PICTURE_MARKUP.search(prompt)
        if not found and len(text) <= 120:
            found = PICTURE_SLOT.search(text)
            if (
                not found
                and len(text) <= 70
                and (found := PICTURE.search(text))
                and DESCRIBED.search(text, found.end())
            ):
                found = None
            if not found and text is not prompt and NEEDS_PAGE.search(text):
                found = URL.search(prompt)
        if found:
            return Fault(index, "unreachable_prompt", around(prompt, found))
    return None


def truncated_answer(rounds: Rounds, params: Clean, unmarked: bool = False) -> Fault | None:
    """An answer that ends mid-text and is not continued; nor may the answer that would become the last.

    `unmarked` as `cut_off` takes it.
    """
    ends = [cut_off(answer, params.truncated_from, unmarked) for _prompt, answer, *_ in rounds]
    for index, end in enumerate(ends):
        if end and not (index + 1 < len(rounds) and asks_to_go_on(rounds[index + 1][0])):
            first = index
            while first and ends[first - 1]:
                first -= 1
            return Fault(first, "truncated_answer", end)
    return None


def short_answer(rounds: Rounds, params: Clean) -> Fault | None:
    """An answer shorter than min_answer_characters."""
    for index, (_prompt, answer, *_) in enumerate(rounds):
        if len(answer) < params.min_answer_characters:
            return Fault(index, "short_answer", answer[:EVIDENCE])
    return None


def too_long(rounds: Rounds, params: Clean) -> Fault | None:
    """The round at which a conversation exceeds max_characters."""
    length = 0
    for index, (prompt, answer, *_) in enumerate(rounds):
        length += len(prompt) + len(answer)
        if length > params.max_characters:
            return Fault(index, "too_long", f"{length} characters")
    return None


def leaked_translation_prompt(rounds: Rounds, params: Clean) -> Fault | None:
    """A first prompt that is an instruction to the translator of the data set, not the user's."""
    prompt = rounds[0][0]
    if len(prompt) <= 90 and "翻" in prompt and LEAKED.match(prompt):
        return Fault(0, "leaked_translation_prompt", prompt)
    return None


def not_chinese(rounds: Rounds, params: Clean) -> Fault | None:
    """A conversation that is not in Chinese; code, and answers in a language that was asked for, do not count."""
    for prompt, *_ in rounds:
        for found in CHINESE_RUN.finditer(prompt):
            if not KANA.search(prompt[max(0, found.start() - 3) : found.end() + 3]):
                return None
    text = CODE_BLOCK.sub(" ", "\n".join(part for pair in rounds for part in pair[:2]))
    chinese = chinese_characters(text)
    foreign = len(FOREIGN_WORD.findall(text))
    if len(KANA.findall(text)) * 4 >= chinese:
        chinese = 0  # Japanese
    if foreign < 5 or chinese >= params.min_chinese_share * (chinese + foreign):
        return None
    return Fault(0, "not_chinese", f"{chinese} Chinese characters, {foreign} foreign words: {text.strip()[:80]}")


def traditional_share(texts: Sequence[str]) -> float:
    """Share of Chinese characters that exist in traditional script alone, in the first 200 of six texts each."""
    sample = "".join(text[:200] for text in texts[:6])
    found = len(_traditional().findall(sample))
    return found / chinese_characters(sample) if found else 0.0


@cache
def _traditional() -> re.Pattern[str]:
    """Characters of Big5, the traditional set, that GB 2312, the simplified one, lacks."""
    characters = (
        character
        for character in map(chr, range(0x4E00, 0xA000))
        if _encodes(character, "big5") and not _encodes(character, "gb2312")
    )
    return re.compile(f"[{''.join(characters)}]")


def _encodes(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


Rule = Callable[[Rounds, Clean], Fault | None]

# (switch in params, rule). Rules that look at one round come first, so that later ones see what is left of it.
RULES: tuple[tuple[str | None, Rule], ...] = (
    (None, lone_surrogate),
    ("mojibake", mojibake),
    ("template_markers", template_markers),
    ("placeholder_answers", placeholder_answer),
    ("leaked_translation_prompts", leaked_translation_prompt),
    ("other_models", other_model),
    ("refusals", refusal),
    ("unreachable_prompts", unreachable_prompt),
    ("min_answer_characters", short_answer),
    ("max_characters", too_long),
    ("truncated_answers", truncated_answer),
    ("min_chinese_share", not_chinese),
)
