"""The words of a lesson's verdict: passed or refused, answers before and after, what may help.

Why it exists: the chat, `adapt run` and `adapters show` say the same of the same lesson. Flows in:
the gate's report as JSON (adapt/gate/gate.py), and which adapter answers. Flows out: lines. Not
here: a plan and its progress (lesson_text.py), where the lines are printed.

>>> gate = {"passed": False, "reasons": ["canned: 0.8"], "advice": ["Give more wordings."]}
>>> for line in verdict_lines(LessonVerdict("tiny", "night", gate)):
...     print(line)
Refused: night is kept and does not answer.
- Give more wordings.
  canned: 0.8
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NARROWEST = 72
"""Columns of a terminal from which answers stand side by side."""
SAME = "(the same)"


@dataclass(frozen=True)
class LessonVerdict:
    """`gate`: GateReport.as_json, None before it was judged. `status`: as the registry has it."""

    model: str
    name: str
    gate: Mapping[str, Any] | None
    is_active: bool = False
    status: str = ""


def verdict_lines(verdict: LessonVerdict, columns: int = 0) -> list[str]:
    """The verdict in one sentence, both answers to the shown questions, the advice, the figures of
    failed checks. `columns`: of the terminal, 0 when it is none."""
    gate = verdict.gate or {}
    return [
        _sentence(verdict),
        *_answers(gate.get("samples") or [], columns),
        *(f"- {sentence}" for sentence in gate.get("advice") or []),
        *(f"  {reason}" for reason in gate.get("reasons") or []),
    ]


def _sentence(verdict: LessonVerdict) -> str:
    name, model = verdict.name, verdict.model
    if verdict.gate is None:
        said = f"Not judged: no gate has looked at {name}"
    else:
        said = "Passed" if verdict.gate.get("passed") else "Refused"
    if verdict.is_active and said == "Refused":
        return f"Refused, and activated all the same: {model} answers with {name}."
    if verdict.is_active:
        return f"{said}: {model} answers with {name} now."
    if verdict.status == "rolled_back":
        return f"{said}, and taken back since: {name} does not answer."
    if said == "Passed":
        how = f"`edge-agent adapters activate {name}` lets it answer"
        return f"Passed: {name} does not answer yet; {how}."
    if said == "Refused":
        return f"Refused: {name} is kept and does not answer."
    return f"{said}, and it does not answer."


def _answers(samples: Sequence[Mapping[str, Any]], columns: int) -> list[str]:
    """Question, answer before, answer after: three columns where they fit."""
    rows = [
        tuple(" ".join(str(one.get(key, "")).split()) for key in ("prompt", "before", "after"))
        for one in samples
    ]
    rows = [(asked, was, SAME if now == was else now) for asked, was, now in rows]
    beside = _side_by_side([("ASKED", "BEFORE", "AFTER"), *rows], columns) if rows else []
    if beside:
        return ["", *beside, ""]
    below = [
        line
        for asked, was, now in rows
        for line in (f"asked:  {asked}", f"before: {was}", f"after:  {now}", "")
    ]
    return ["", *below] if below else []


def _side_by_side(rows: Sequence[Sequence[str]], columns: int) -> list[str]:
    """Lines of equal columns; [] when the terminal is too narrow for them."""
    from rich.cells import cell_len

    width = (columns - 4) // 3
    if columns < NARROWEST:
        return []
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [""] for cell in row]
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            if any(cell_len(part) > width for part in parts):
                return []
            padded = [part + " " * (width - cell_len(part)) for part in parts]
            lines.append("  ".join(padded).rstrip())
    return lines
