"""Pages in Markdown and HTML, and pictures that are well-formed and tell their numbers."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from aurora.report.blocks import Heading, Paragraph, Picture, Table, html, markdown
from aurora.report.charts import bars, dots, lines

SVG = "{http://www.w3.org/2000/svg}"
BLOCKS = [
    Heading("Title", 1),
    Paragraph("One <b>\n# two"),
    Table(("name", "n"), [("a|b", "1"), ("<script>x</script>", "2")], frozenset({1})),
    Picture("p.svg", bars("Bars", {"a": 1}), "a picture"),
]


def test_markdown_holds_tables_and_no_markup_of_the_content() -> None:
    assert markdown(BLOCKS, "metrics/pictures") == (
        "# Title\n\n"
        "One \\<b\\> \\# two\n\n"
        "| name | n |\n| --- | ---: |\n| a\\|b | 1 |\n| \\<script\\>x\\</script\\> | 2 |\n\n"
        "![a picture](metrics/pictures/p.svg)\n"
    )


class Reader(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_stands_alone_and_holds_the_same() -> None:
    page = Reader(html(BLOCKS, "Title"))
    assert "script" not in page.tags and "b" not in page.tags
    assert page.tags.count("svg") == 1 and page.tags.count("td") == 4
    assert "<script>x</script>" in page.text and "One <b>\n# two" in page.text


def circles(picture: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(picture)
    return [(float(item.get("cx")), float(item.get("cy"))) for item in root.iter(f"{SVG}circle")]


def test_bars_are_as_long_as_their_numbers() -> None:
    picture = bars("Bars <&>", {"a": 1, "b & c": 4, "none": 0})
    root = ElementTree.fromstring(picture)
    widths = [float(item.get("width")) for item in list(root.iter(f"{SVG}rect"))[1:]]
    assert widths[1] == pytest.approx(4 * widths[0], abs=0.4) and widths[2] == 0
    texts = [item.text for item in root.iter(f"{SVG}text")]
    assert texts == ["Bars <&>", "a", "1", "b & c", "4", "none", "0"]


def test_dots_lie_where_their_shares_are() -> None:
    rows = {"x": {"base": 0.0, "tuned": 1.0}, "y": {"tuned": 0.5}}
    _, _, (zero, top), (one, same), (half, below) = circles(dots("D", rows, ("base", "tuned"), "acc", 0.25))
    assert half == pytest.approx((zero + one) / 2, abs=0.1)
    assert top == same < below


def test_lines_rise_with_their_values_within_the_picture() -> None:
    picture = lines("L", {"a": [(0, 5.0), (10, 6.0), (20, 7.0)], "b": []}, "step", "loss")
    root = ElementTree.fromstring(picture)
    (points, empty) = [item.get("points") for item in root.iter(f"{SVG}polyline")]
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert places[1][1] == pytest.approx((places[0][1] + places[2][1]) / 2, abs=0.1)
    assert all(0 <= x <= 720 and 0 <= y <= 400 for x, y in places)
    assert empty == ""


def test_a_flat_or_empty_line_is_no_error() -> None:
    ElementTree.fromstring(lines("L", {"a": [(0, 2.0), (1, 2.0)]}, "x", "y"))
    ElementTree.fromstring(lines("L", {"a": []}, "x", "y"))
    ElementTree.fromstring(bars("B", {}))
    ElementTree.fromstring(dots("D", {}, ("base",), "x", 0.25))
