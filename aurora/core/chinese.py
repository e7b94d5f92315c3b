"""What counts as a Chinese character: the one definition of all rooms."""

import re

# CJK ideographs: extension A, the main block, compatibility, the supplementary planes, and 〇.
CHINESE_RANGES = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
"""The characters, as the inside of a regular expression's brackets."""
CHINESE_CHARACTER = re.compile(f"[{CHINESE_RANGES}]")


def chinese_characters(text: str) -> int:
    """Number of Chinese characters in a text."""
    return 0 if text.isascii() else len(CHINESE_CHARACTER.findall(text))
