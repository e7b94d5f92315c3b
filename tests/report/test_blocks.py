"""Pages in Markdown and HTML, and pictures that are well-formed and tell their numbers."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from aurora.report.blocks import Heading, Link, Paragraph, Picture, Table, html, markdown
from aurora.report.charts import Interval, bars, intervals, lines, shares

SVG = "{http://www.w3.org/2000/svg}"
BLOCKS = [
    Heading("Title", 1),
    Paragraph("One <b>\n# two"),
    Table(("name", "n"), [("a|b", "1"), ("<script>x</script>", "2")], frozenset({1}), frozenset({0})),
    Paragraph("See ", Link("metrics/a_b.md"), "."),
    Picture("p.svg", bars("Bars", {"a": 1}), "a picture"),
]


def test_markdown_holds_tables_and_no_markup_of_the_content() -> None:
    assert markdown(BLOCKS, "metrics/pictures") == (
        "# Title\n\n"
        "One \\<b\\> \\# two\n\n"
        "| name | n |\n| --- | ---: |\n| **a\\|b** | **1** |\n| \\<script\\>x\\</script\\> | 2 |\n\n"
        "See [metrics/a\\_b.md](metrics/a_b.md).\n\n"
        "![a picture](metrics/pictures/p.svg)\n"
    )


class Reader(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        assert not any(name == "src" or name.startswith("on") for name, _ in attrs)
        self.links += [value for name, value in attrs if name == "href"]
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_no_break_space_keeps_a_number_with_its_unit() -> None:
    assert markdown([Paragraph("1\u00a0%\u00a0→\u00a0 97\u00a0%")], "") == "1\u00a0%\u00a0→\u00a0 97\u00a0%\n"


def test_html_stands_alone_and_holds_the_same() -> None:
    page = Reader(html(BLOCKS, "Title", "../../"))
    assert "script" not in page.tags and "b" not in page.tags
    assert page.links == ["../../metrics/a_b.md"]
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


def test_intervals_lie_where_their_values_are_on_an_axis_that_fits() -> None:
    rows = {
        "x": {"base": Interval(0.5, 0.4, 0.6), "tuned": Interval(0.7, 0.6, 0.8)},
        "y": {"tuned": Interval(0.6, 0.5, 0.7)},
    }
    picture = intervals("D", rows, ("base", "tuned"), "acc", 0.4)
    _, _, (low, top), (high, second), (middle, below) = circles(picture)
    assert middle == pytest.approx((low + high) / 2, abs=0.1)
    assert top < second < below
    root = ElementTree.fromstring(picture)
    bars_ = [item for item in root.iter(f"{SVG}line") if item.get("class") == "line1"]
    assert [float(item.get("x1")) for item in bars_] == pytest.approx([middle, low], abs=0.1)
    (chance,) = (item for item in root.iter(f"{SVG}line") if item.get("class") == "mark")
    assert float(chance.get("x1")) < low
    assert {"40 %", "80 %"} <= {item.text for item in root.iter(f"{SVG}text")}
    assert "0 %" not in {item.text for item in root.iter(f"{SVG}text")}


def test_shares_fill_their_part_of_a_bar() -> None:
    root = ElementTree.fromstring(shares("S", {"base": {"a": 0.25, "b": 0.75}, "tuned": {"b": 1.0}}, ("a", "b")))
    widths = [float(item.get("width")) for item in list(root.iter(f"{SVG}rect"))[1:]]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2) and widths[2] == 0
    assert widths[3] == pytest.approx(widths[0] + widths[1], abs=0.2)
    assert {"25 %", "75 %", "100 %"} <= {item.text for item in root.iter(f"{SVG}text")}


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
    ElementTree.fromstring(intervals("D", {}, ("base",), "x", 0.25))
    ElementTree.fromstring(shares("S", {}, ("a",)))
