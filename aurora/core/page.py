"""The one base of all HTML pages: a single file without scripts or outside links, light and dark, for any width."""

import re
from pathlib import Path

BASE = Path(__file__).parent
CHINESE = re.compile(r"[㐀-鿿豈-﫿][㐀-鿿豈-﫿　-〿＀-￯“”‘’…—]*")


def render(template: Path, **values: object) -> str:
    """The page that a Jinja2 template, which extends page.html, makes of these values; text in them is never markup.

    The filter `chinese` marks runs of Chinese as such, so that browsers choose their fonts and voices by it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([template.parent, BASE]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["chinese"] = _chinese
    return environment.get_template(template.name).render(lang="en", **values)


def _chinese(text: str) -> str:
    from markupsafe import Markup, escape

    return Markup(CHINESE.sub(lambda run: f'<span lang="zh">{run[0]}</span>', str(escape(text))))
