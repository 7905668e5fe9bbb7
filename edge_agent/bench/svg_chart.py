"""Two kinds of charts as SVG text: bars with their spread, and lines over time.

Flows in: labels and numbers. Flows out: one <svg> element with a title and a description for screen
readers. Colours are CSS classes, so that paper and dark screens can differ. There is no library and
no script, because a report must still open in ten years. Not here: what is drawn (report.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 720
BAR_HEIGHT, BAR_GAP, LABEL_WIDTH, VALUE_WIDTH = 22, 10, 230, 150
LINE_HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 220, 62, 14, 12, 34
LEGEND_HEIGHT = 18
TICKS = 4
SERIES = 6
"""Number of colour classes, s0 to s5; the seventh series uses s0 again."""


@dataclass(frozen=True)
class Bar:
    """`low` and `high` are drawn as a whisker; `series` chooses the colour."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    series: int = 0


@dataclass(frozen=True)
class Line:
    """Points in order of x; a None breaks the line."""

    name: str
    points: Sequence[tuple[float, float | None]]


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from zero, with the value beside each.

    Example: `bars("Decode", "tok/s", [Bar("tg128", 21.4, low=21.0, high=21.9)])`
    """
    top = max([row.high or row.value for row in rows] + [row.value for row in rows], default=0.0)
    scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / (top or 1.0)
    parts = []
    for index, row in enumerate(rows):
        y = BAR_GAP + index * (BAR_HEIGHT + BAR_GAP)
        parts += _bar(row, y, scale)
    height = BAR_GAP + len(rows) * (BAR_HEIGHT + BAR_GAP)
    told = "; ".join(f"{row.label}: {number(row.value)} {unit}" for row in rows)
    return _svg(title, told, height, parts)


def _bar(row: Bar, y: float, scale: float) -> list[str]:
    width = max(1.0, row.value * scale)
    middle = y + BAR_HEIGHT / 2
    parts = [
        f'<text class="label" x="{LABEL_WIDTH - 10}" y="{middle + 4}" text-anchor="end">'
        f"{escape(_short(row.label))}</text>",
        f'<rect class="bar s{row.series % SERIES}" x="{LABEL_WIDTH}" y="{y}" '
        f'width="{width:.1f}" height="{BAR_HEIGHT}" rx="2"/>',
    ]
    end, text = LABEL_WIDTH + width, number(row.value)
    if row.low is not None and row.high is not None and row.high > row.low:
        left, right = (LABEL_WIDTH + value * scale for value in (row.low, row.high))
        parts.append(
            f'<path class="whisker" d="M{left:.1f} {middle}H{right:.1f}'
            f'M{left:.1f} {middle - 5}v10M{right:.1f} {middle - 5}v10"/>'
        )
        end, text = max(end, right), f"{text} ({number(row.low)}-{number(row.high)})"
    parts.append(f'<text class="value" x="{end + 8:.1f}" y="{middle + 4}">{text}</text>')
    return parts


def _short(text: str) -> str:
    return text if len(text) <= 36 else text[:35] + "…"


def lines(title: str, unit: str, x_unit: str, rows: Sequence[Line]) -> str:
    """Lines over one x axis. The y axis begins at zero unless that would waste most of the chart.

    An empty string when no point has a value.
    """
    known = [(x, y) for row in rows for x, y in row.points if y is not None]
    if not known:
        return ""
    x_low, x_high = min(x for x, _ in known), max(x for x, _ in known)
    y_low, y_high = _range([y for _, y in known])
    box = _Box(x_low, max(x_high, x_low + 1e-9), y_low, y_high)
    parts = [*_axes(box, unit, x_unit), *_legend(rows)]
    for index, row in enumerate(rows):
        parts.append(f'<path class="line s{index % SERIES}" d="{_path(row, box)}"/>')
    told = "; ".join(
        f"{row.name}: {number(min(ys))} to {number(max(ys))} {unit}"
        for row in rows
        if (ys := [y for _, y in row.points if y is not None])
    )
    return _svg(title, told, LINE_HEIGHT + LEGEND_HEIGHT * len(rows), parts)


def _legend(rows: Sequence[Line]) -> list[str]:
    """One series a line, below the axis."""
    parts = []
    for index, row in enumerate(rows):
        y = LINE_HEIGHT + LEGEND_HEIGHT * index + 10
        parts.append(f'<path class="line s{index % SERIES}" d="M{LEFT} {y - 4}h22"/>')
        parts.append(f'<text class="tick" x="{LEFT + 30}" y="{y}">{escape(row.name)}</text>')
    return parts


@dataclass(frozen=True)
class _Box:
    """Ranges of the data, and their mapping to coordinates of the SVG."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return LINE_HEIGHT - BOTTOM - share * (LINE_HEIGHT - TOP - BOTTOM)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low >= 0 and low < 0.6 * high:
        low = 0.0
    room = (high - low) * 0.08 or max(abs(high) * 0.05, 1.0)
    return (low if low == 0.0 else low - room), high + room


def _axes(box: _Box, unit: str, x_unit: str) -> list[str]:
    parts = []
    for value in ticks(box.y_low, box.y_high):
        y = box.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        text = f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
        parts.append(f"{text}{number(value)}</text>")
    bottom = LINE_HEIGHT - BOTTOM
    for value in ticks(box.x_low, box.x_high):
        text = f'<text class="tick" x="{box.x(value):.1f}" y="{bottom + 16}" text-anchor="middle">'
        parts.append(f"{text}{number(value)}</text>")
    parts.append(f'<text class="unit" x="{LEFT - 54}" y="{TOP + 2}">{escape(unit)}</text>')
    end = f'x="{WIDTH - RIGHT}" y="{LINE_HEIGHT - 4}" text-anchor="end"'
    parts.append(f'<text class="unit" {end}>{escape(x_unit)}</text>')
    return parts


def _path(row: Line, box: _Box) -> str:
    path, pen = "", "M"
    for x, y in row.points:
        if y is None:
            pen = "M"
            continue
        path += f"{pen}{box.x(x):.1f} {box.y(y):.1f}"
        pen = "L"
    return path


def ticks(low: float, high: float) -> list[float]:
    """About TICKS round values inside [low, high].

    >>> ticks(0, 10)
    [0.0, 2.5, 5.0, 7.5, 10.0]
    """
    span = (high - low) / TICKS
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = 10 ** math.floor(math.log10(span))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= span * 0.99)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 10) for i in range(count)]


def number(value: float) -> str:
    """Three significant digits, no exponent.

    >>> number(1234.5), number(12.345), number(0.01234), number(0)
    ('1234', '12.3', '0.0123', '0')
    """
    if value == 0 or not math.isfinite(value):
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _svg(title: str, told: str, height: float, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
    names = f"<title>{escape(title)}</title><desc>{escape(told)}</desc>"
    return head + names + "".join(parts) + "</svg>"
