"""The losses of a run as a chart that any browser opens.

Flows in: the rows of log.jsonl. Flows out: the text of one SVG with its own colours. Not here: the
drawing (edge_agent/bench/svg_chart.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.bench.svg_chart import Line, lines

STYLE = """<style>
svg { background: #fff; font: 12px sans-serif }
.line { fill: none; stroke-width: 1.6 } .line.s0 { stroke: #1f6fb4 } .line.s1 { stroke: #d1582b }
.grid { stroke: #e4e4e4; fill: none } .tick, .unit { fill: #555 }
</style>"""


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Training and validation loss over steps; "" when nothing was logged."""
    drawn = [
        Line("training loss", _points(rows, "loss")),
        Line("validation loss", _points(rows, "validation_loss")),
    ]
    svg = lines("Loss", "nats per token", "step", [line for line in drawn if line.points])
    head, separator, rest = svg.partition(">")
    return f"{head}{separator}{STYLE}{rest}" if svg else ""


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float | None]]:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]
