"""Words of Chinese text by jieba and its own dictionary."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jieba import Tokenizer


@cache
def segmenter() -> "Tokenizer":
    """jieba's segmenter, with its dictionary read from the package.

    jieba itself would read a cache that any user of the machine may have written to the temporary folder.
    """
    import jieba

    found = jieba.Tokenizer()
    found.FREQ, found.total = found.gen_pfdict(found.get_dict_file())
    found.initialized = True
    return found


def words(text: str) -> list[str]:
    """The text cut into words; spaces and signs are words too."""
    return segmenter().lcut(text)
