"""Benchmark documents for people and for other programs: a table, Markdown, CSV.

Flows in: documents as document.py makes them. Flows out: text. A figure that was not measured is a
dash in the table and empty in CSV. Not here: the report with charts (report.py).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent import json_lines

HEADERS = ("MODEL", "TEST", "TOK/S", "RANGE", "TTFT", "J/TOKEN", "WATTS", "HEAT", "OF LIMIT")
NONE = "-"


def label(document: Mapping[str, Any]) -> str:
    """The test's short name, as llama-bench writes it: pp512, tg128 @ d1024, chat hi x2."""
    if document.get("scenario") == "chat":
        return f"chat {document.get('language')} x{document.get('concurrency')}"
    prompt, gen, depth = (document.get(f"n_{name}") or 0 for name in ("prompt", "gen", "depth"))
    parts = [f"pp{prompt}"] * bool(prompt) + [f"tg{gen}"] * bool(gen)
    return "+".join(parts) + (f" @ d{depth}" if depth else "")


def rows(documents: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row per document, in the order of HEADERS."""
    return [_row(document) for document in documents]


def _row(document: Mapping[str, Any]) -> tuple[str, ...]:
    energy = document.get("energy") or {}
    ttft = (document.get("ttft_s") or {}).get("median")
    start, high = (document.get(f"temperature_{x}_celsius") for x in ("start", "max"))
    share = document.get("roofline_fraction")
    return (
        str(document.get("model")),
        label(document),
        _number(document.get("median_ts"), 2),
        f"{_number(document.get('min_ts'), 2)}-{_number(document.get('max_ts'), 2)}",
        NONE if ttft is None else f"{1000 * ttft:.0f} ms",
        _number(energy.get("j_per_token"), 3),
        _number(energy.get("mean_w"), 2),
        NONE if high is None else f"{_number(start, 0)}>{high:.0f} C",
        NONE if share is None else f"{100 * share:.0f} %",
    )


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def markdown(documents: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table for an issue or a README."""
    lines = ["| " + " | ".join(HEADERS).lower() + " |", "|" + "---|" * len(HEADERS)]
    for row in rows(documents):
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines)


def as_csv(documents: Sequence[Mapping[str, Any]]) -> str:
    """Every field of every document; a list or an object is JSON in its cell."""
    names = list(dict.fromkeys(name for document in documents for name in document))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for document in documents:
        writer.writerow([_cell(document.get(name)) for name in names])
    return out.getvalue().rstrip("\n")


def _cell(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json_lines.dumps(value)
    return "" if value is None else value


def reasons(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Why figures are missing, each reason once."""
    found = {str((document.get("energy") or {}).get("reason") or "") for document in documents}
    return [f"energy: {reason}" for reason in sorted(found) if reason]
