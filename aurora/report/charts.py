"""Charts as SVG text: bars, lines and dots, whose bytes depend on their data alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

WIDTH = 720
COLOURS = ("#8a94a0", "#c4522d", "#4a7ab5")
SIZES = (5, 3, 1.5)  # radii of the dots of each series, so that equal values show all
FONT = "font-family='system-ui,sans-serif' font-size='12' fill='#222'"
Point = tuple[float, float]


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
            f"<rect x='{left}' y='{y}' width='{width:.1f}' height='13' fill='{COLOURS[2]}'/>",
            _text(left + width + 6, y + 11, f"{count:,}"),
        ]
    return _picture(title, 50 + row * len(counts), parts)


def lines(title: str, series: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> str:
    """Lines over a common x; a series without a point has no line."""
    points = [point for line in series.values() for point in line] or [(0.0, 0.0)]
    height, left, right, top, bottom = 400, 60, WIDTH - 20, 80, 350
    x_ticks, y_ticks = _ticks([x for x, _ in points]), _ticks([y for _, y in points])

    def place(x: float, y: float) -> Point:
        return (
            left + (right - left) * _share(x, x_ticks),
            bottom - (bottom - top) * _share(y, y_ticks),
        )

    parts = []
    for tick in y_ticks:
        _, y = place(x_ticks[0], tick)
        parts += [_line(left, y, right, y), _text(left - 8, y + 4, f"{tick:g}", "end")]
    for tick in x_ticks:
        x, _ = place(tick, y_ticks[0])
        parts.append(_text(x, bottom + 18, f"{tick:g}", "middle"))
    for (_, line), colour in zip(series.items(), COLOURS, strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='1.8'/>")
    parts += [*_legend(series, left), _text((left + right) / 2, bottom + 38, x_label, "middle")]
    parts.append(_text(left, top - 14, y_label))
    return _picture(title, height, parts)


def dots(
    title: str, rows: Mapping[str, Mapping[str, float]], names: Sequence[str], x_label: str, mark: float
) -> str:
    """A row for each name with a dot for each of the series `names`, shares from 0 to 1, and a line at `mark`."""
    left, step, top = _left(rows), 13, 64
    right, bottom = WIDTH - 30, top + step * len(rows)

    def across(share: float) -> float:
        return left + (right - left) * share

    parts = [_text((left + right) / 2, bottom + 34, x_label, "middle"), *_legend(names, left)]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts += [
            _line(across(tick), top - 6, across(tick), bottom),
            _text(across(tick), bottom + 16, f"{100 * tick:g} %", "middle"),
        ]
    parts.append(_line(across(mark), top - 6, across(mark), bottom, "#777"))
    for place, (name, values) in enumerate(rows.items()):
        y = top + step * place + 4
        parts.append(_text(left - 8, y + 3, name, "end", 10))
        for size, series, colour in zip(SIZES, names, COLOURS, strict=False):
            if series in values:
                x = across(values[series])
                parts.append(f"<circle cx='{x:.1f}' cy='{y}' r='{size}' fill='{colour}'/>")
    return _picture(title, bottom + 44, parts)


def _picture(title: str, height: float, parts: Sequence[str]) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:g}' width='{WIDTH}' "
        f"height='{height:g}' role='img'>"
    )
    body = [f"<title>{escape(title)}</title>", "<rect width='100%' height='100%' fill='#fff'/>"]
    body.append(f"<text x='16' y='22' {FONT.replace('12', '14')} font-weight='600'>{escape(title)}</text>")
    return "\n".join([head, *body, *parts, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    font = FONT.replace("12", str(size))
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {font}>{escape(text)}</text>"


def _line(x: float, y: float, to_x: float, to_y: float, colour: str = "#e2e2e2") -> str:
    return f"<line x1='{x:.1f}' y1='{y:.1f}' x2='{to_x:.1f}' y2='{to_y:.1f}' stroke='{colour}'/>"


def _legend(names: Sequence[str] | Mapping[str, object], left: float) -> Iterator[str]:
    for place, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        x = left + 130 * place
        yield f"<circle cx='{x + 5:.1f}' cy='38' r='4' fill='{colour}'/>"
        yield _text(x + 14, 42, name)


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
