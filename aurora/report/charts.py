"""Charts as SVG text: bars, lines, shares and intervals, whose bytes depend on their data alone.

Colours are CSS classes with a light and a dark value, so that a chart fits the page, or the viewer, that shows it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
SHARES = (1, 0, 2)  # colours of the parts of a bar
STYLE = """<style>
text{font:12px system-ui,"Noto Sans CJK SC",sans-serif;fill:#1f2328}.title{font-size:14px;font-weight:600}.small{font-size:10px}
.paper{fill:#fff}.grid{stroke:#e2e5e9}.mark{stroke:#59636e;stroke-dasharray:4 3}.fill0{fill:#8a94a0}.fill1{fill:#c4522d}
.fill2{fill:#4a7ab5}.line0{stroke:#8a94a0}.line1{stroke:#c4522d}.line2{stroke:#4a7ab5}.line0,.line1,.line2{fill:none;stroke-width:1.8}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.paper{fill:#0d1117}.grid{stroke:#30363d}.mark{stroke:#9198a1}
.fill0{fill:#9aa4b0}.fill1{fill:#e8764f}.fill2{fill:#6ea3e0}.line0{stroke:#9aa4b0}.line1{stroke:#e8764f}.line2{stroke:#6ea3e0}}.inside{fill:#0d1117}
</style>"""
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with what its error bar reaches."""

    value: float
    low: float
    high: float


def bars(title: str, counts: Mapping[str, float]) -> str:
    """Horizontal bars, one for each name, with their numbers."""
    most = max(counts.values(), default=0) or 1
    left, row = _left(counts), 18
    parts = []
    for place, (name, count) in enumerate(counts.items()):
        y = 40 + row * place
        width = (WIDTH - left - 70) * count / most
        parts += [
            _text(left - 8, y + 11, name, "end"),
            f"<rect x='{left}' y='{y}' width='{width:.1f}' height='13' class='fill2'/>",
            _text(left + width + 6, y + 11, f"{count:,}"),
        ]
    return _picture(title, 50 + row * len(counts), parts)


def lines(title: str, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """Lines over a common x, the second and later ones with a dot at each point; a series without a point has no line."""
    points = [point for line in series.values() for point in line] or [(0.0, 0.0)]
    height, left, right, top, bottom = 400, 60, WIDTH - 20, 80, 350
    x_ticks, y_ticks = _ticks([x for x, _ in points]), _ticks([y for _, y in points])

    def place(x: float, y: float) -> Point:
        return (left + (right - left) * _share(x, x_ticks), bottom - (bottom - top) * _share(y, y_ticks))

    parts = []
    for tick in y_ticks:
        _, y = place(x_ticks[0], tick)
        parts += [_line(left, y, right, y), _text(left - 8, y + 4, f"{tick:g}", "end")]
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        parts.append(_text(x, bottom + 18, f"{tick:g}", "middle"))
    for number, line in enumerate(series.values()):
        places = [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f"<polyline points='{path}' class='line{number}'/>")
        if number:
            parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' class='fill{number}'/>" for x, y in places]
    parts += [*_legend(series, left), _text((left + right) / 2, bottom + 38, x_label, "middle")]
    parts.append(_text(left, top - 14, y_label))
    return _picture(title, height, parts)


def shares(title: str, rows: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """A bar for each row, cut into the shares of `names`, which add up to at most 1, with percents in the wide ones."""
    left, step, top = _left(rows), 34, 64
    width = WIDTH - left - 30
    parts = list(_legend(names, left, SHARES))
    for place, (name, values) in enumerate(rows.items()):
        x, y = float(left), top + step * place
        parts.append(_text(left - 8, y + 15, name, "end"))
        for number, series in enumerate(names):
            wide = width * values.get(series, 0.0)
            parts.append(f"<rect x='{x:.1f}' y='{y}' width='{wide:.1f}' height='22' class='fill{SHARES[number]}'/>")
            if wide > 40:
                parts.append(_text(x + wide / 2, y + 15, f"{100 * values[series]:.0f} %", "middle", "inside"))
            x += wide
    return _picture(title, top + step * len(rows) + 8, parts)


def intervals(
    title: str, rows: Mapping[str, Mapping[str, Interval]], names: Sequence[str], x_label: str, mark: float
) -> str:
    """A row for each name with a dot and an error bar for each of the series `names`, and a dashed line at `mark`.

    Values are shares from 0 to 1; the axis fits them.
    """
    left, step, top = _left(rows), 14 + 6 * len(names), 70
    right, bottom = WIDTH - 30, top + step * len(rows)
    found = [value for row in rows.values() for value in row.values()]
    ticks = _ticks([mark, *(max(0.0, item.low) for item in found), *(min(1.0, item.high) for item in found)])

    def across(share: float) -> float:
        return left + (right - left) * _share(min(max(share, ticks[0]), ticks[-1]), ticks)

    parts = [_text((left + right) / 2, bottom + 34, x_label, "middle"), *_legend(names, left)]
    for tick in ticks:
        parts += [
            _line(across(tick), top - 6, across(tick), bottom),
            _text(across(tick), bottom + 16, f"{100 * tick:.3g} %", "middle"),
        ]
    parts.append(_line(across(mark), top - 6, across(mark), bottom, "mark"))
    parts.append(_text(across(mark), top - 10, "chance", "middle", "small"))
    for place, (name, values) in enumerate(rows.items()):
        y = top + step * place + step / 2
        parts.append(_text(left - 8, y + 3, name, "end", "small"))
        for number, series in enumerate(names):
            if series in values:
                value, height = values[series], y + 6 * (number - (len(names) - 1) / 2)
                parts.append(_line(across(value.low), height, across(value.high), height, f"line{number}"))
                parts.append(f"<circle cx='{across(value.value):.1f}' cy='{height:.1f}' r='3.5' class='fill{number}'/>")
    return _picture(title, bottom + 44, parts)


def _picture(title: str, height: float, parts: Sequence[str]) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:g}' width='{WIDTH}' "
        f"height='{height:g}' role='img'>"
    )
    body = [f"<title>{escape(title)}</title>", STYLE, "<rect width='100%' height='100%' class='paper'/>"]
    body.append(f"<text x='16' y='22' class='title'>{escape(title)}</text>")
    return "\n".join([head, *body, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    mark = f" class='{kind}'" if kind else ""
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'{mark}>{escape(text)}</text>"


def _line(x: float, y: float, to_x: float, to_y: float, kind: str = "grid") -> str:
    return f"<line x1='{x:.1f}' y1='{y:.1f}' x2='{to_x:.1f}' y2='{to_y:.1f}' class='{kind}'/>"


def _legend(
    names: Sequence[str] | Mapping[str, object], left: float, colours: Sequence[int] = (0, 1, 2)
) -> Iterator[str]:
    x = left
    for number, name in zip(colours, names, strict=False):
        yield f"<circle cx='{x + 5:.1f}' cy='38' r='4' class='fill{number}'/>"
        yield _text(x + 14, 42, name)
        x += 40 + 7 * len(name)


def _left(names: Sequence[str] | Mapping[str, object]) -> int:
    return 30 + 6 * max(map(len, names), default=0)


def _share(value: float, ticks: Sequence[float]) -> float:
    return (value - ticks[0]) / (ticks[-1] - ticks[0])


def _ticks(values: Sequence[float]) -> list[float]:
    # Four to eight round numbers that enclose all values.
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    raw = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]
