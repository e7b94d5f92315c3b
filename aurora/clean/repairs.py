"""Safe repairs of text: invisible characters, HTML remnants, and text read in a wrong encoding."""

import html
import re
from collections.abc import Sequence
from functools import partial

from aurora.core.chinese import chinese_characters

# C0 without tab and line feed, C1, soft hyphen, zero-width, directional, BOM, interlinear, private use, noncharacters.
INVISIBLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"
    "\ue000-\uf8ff\ufff9-\ufffb\ufffe\uffff]"
)
JOINER = re.compile("[\u200c\u200d]")
# A joiner has work between emoji and in scripts such as Arabic and Devanagari; none at ASCII, Chinese or a margin.
IDLE_JOINER = re.compile(
    "(?:(?<=[\x00-\x7f\u3000-\u9fff\uff00-\uffef])|^)[\u200c\u200d]+|[\u200c\u200d]+(?=[\x00-\x7f\u3000-\u9fff\uff00-\uffef]|$)"
)
# All of these in one class, since most texts have none.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ue000-\uf8ff\ufff9-\ufffb"
    "\ufffe\uffff]"
)
LINE_END = re.compile("\r\n?|[\u2028\u2029\x0b\x0c\x85]")

CODE = re.compile(
    r"```|`<|</?\w+>`|html|css|javascript|jquery|\bjs\b|jsx|\bphp\b|\bxml\b|\bsvg\b|\bvue\b|react|python|\bsql\b|markdown"
    r"|代码|网页|标签|标记|编程|脚本|程序|函数|前端|模板|正则|爬虫|<!doctype",
    re.IGNORECASE,
)
ENTITY = re.compile(
    r"&(?:nbsp|lt|gt|amp|quot|apos|hellip|mdash|ndash|ldquo|rdquo|lsquo|rsquo|middot|times|deg|copy|#\d{1,6}|#x[0-9a-f]{1,5});",
    re.IGNORECASE,
)
BREAK = re.compile(r"[ \t]*<(?:br|hr)\s*/?>[ \t]*\n?|</(?:p|div|li|tr|h[1-6]|blockquote)\s*>[ \t]*\n?", re.IGNORECASE)
POWER = re.compile(r"<sup>([^<>]{1,20})</sup>", re.IGNORECASE)
TAG = re.compile(
    r"</?(?P<name>p|div|span|font|b|i|u|s|em|strong|small|big|center|a|img|ul|ol|li|table|tbody|thead|tr|td|th|h[1-6]|sub|sup"
    r"|blockquote|section|article|figure|label|button|svg|path)(?:\s+[a-z_:@][a-z0-9_:.-]*(?:\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+)))*\s*/?>",
    re.IGNORECASE,
)

CLOSING = re.compile(r"</([a-z0-9]+)\s*>", re.IGNORECASE)
OFTEN_OPEN = {"p", "li", "tr", "td", "th", "tbody", "thead", "center", "font", "h1", "h2", "h3", "h4", "h5", "h6"}
ADDRESS = re.compile(r"src\s*=\s*[\"']?(?:https?:|//|data:)", re.IGNORECASE)
ABOUT_ENTITIES = re.compile(r"html|xml|实体|转义|escape|网页|标签", re.IGNORECASE)
SIGNS = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&apos;": "'", "&nbsp;": " ", "&amp;": "&"}

MOJIBAKE = re.compile(
    "[\ufffd]|[锟]斤拷|[烫]烫烫|[屯]屯屯"
    "|[â]€[\u0080-\u00bf\u2018-\u2122œžŸš]|[Ã][\u0080-\u00bf\u2018-\u201e]"
    "|[ä-é][\u0080-\u00bf\u0152-\u2122]{2}[ä-é][\u0080-\u00bf\u0152-\u2122]{2}"
    "|[ï]¼[\u0080-\u00bfŒ]|[ã]€[\u0080-\u00bf‚]"
    "|[锛銆](?![是的一在和有不可])[\u4e00-\u9fff\ue000-\uf8ff]|[鐨]勶|[浣]犲|[涓]€"
)
BYTE = {byte.decode("cp1252", "ignore") or chr(byte[0]): byte[0] for byte in (bytes([n]) for n in range(256))}


def visible(text: str) -> str:
    """Text without invisible characters, with `\\n` line ends and no blanks at its ends."""
    if not UNSEEN.search(text):
        return text
    text = INVISIBLE.sub("", LINE_END.sub("\n", text))
    if JOINER.search(text):
        text = IDLE_JOINER.sub("", text)
    return text


def without_html(text: str) -> str:
    """Text with tags of web pages taken out, breaks as line ends, entities as characters, until none is left."""
    while True:
        plain = text
        if "&" in plain:
            plain = ENTITY.sub(lambda found: html.unescape(found[0]).replace("\u00a0", " "), plain)
        if "<" in plain:
            closed = {name.lower() for name in CLOSING.findall(plain)}
            plain = POWER.sub(r"^\1", BREAK.sub("\n", plain))
            plain = TAG.sub(partial(_tag, closed), plain)
        if plain == text:
            return text
        text = plain.strip()


def _tag(closed: set[str], tag: re.Match[str]) -> str:
    """Nothing for a tag that marked text up; one that is never closed is the subject: 写 <img src="地址"> 就行。"""
    name = tag["name"].lower()
    is_markup = (
        tag[0].startswith("</") or name in closed or name in OFTEN_OPEN or (name == "img" and ADDRESS.search(tag[0]))
    )
    return "" if is_markup else tag[0]


def without_entities(text: str, so_far: Sequence[str]) -> str:
    """Code with the entities of a web page as the signs that they mean.

    A sign that the text also writes itself shows that its entity is meant; so does a conversation about HTML.
    """
    if "&" not in text or any(ABOUT_ENTITIES.search(other) for other in so_far):
        return text
    for entity, sign in SIGNS.items():
        if entity in text and sign not in (ENTITY.sub("", text) if sign == "&" else text):
            text = text.replace(entity, sign)
    return text


def reread(text: str) -> str | None:
    """The text in its true encoding, if its bytes in a wrong one are valid UTF-8 Chinese throughout; else None."""
    for encode in (_western, lambda value: value.encode("latin-1"), lambda value: value.encode("gb18030")):
        try:
            right = encode(text).decode("utf-8")
        except (KeyError, UnicodeError):
            continue
        # Six characters, since a word or two can be valid in both by chance.
        if right != text and chinese_characters(right) >= 6:
            return right
    return None


def _western(text: str) -> bytes:
    # Browsers read the five bytes that cp1252 leaves undefined as controls.
    return bytes(BYTE[character] for character in text)
