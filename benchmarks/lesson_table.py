"""The table of lesson.py: one line for each measured lesson, in the columns of the project's notes.

Flows in: the results file. Flows out: text. Rises are in per cent of the base's bits per byte: the
mean of the languages (each counts the same, as in the gate), and the worst language. Not here:
measuring.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

COLUMNS = (
    "run", "seed", "taught/other/held %", "clean %", "raw %", "canned", "copy", "leak", "words",
    "who", "gate", "end", "steps", "train s", "step s", "pre s", "gate s", "MB",
)  # fmt: skip

Result = dict[str, Any]


def table(results: Iterable[Result]) -> str:
    """Sorted by lesson, model, label and seed; columns as wide as their widest cell."""
    rows = [cells(one) for one in sorted(results, key=_order)]
    lines = [COLUMNS, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def cells(result: Result) -> Sequence[str]:
    """One result in the order of COLUMNS. A failed run shows its error."""
    run = f"{result['label']} {result['arm']} {result['model']} {' '.join(result['adapt'])}"
    if "error" in result:
        return (run, str(result["seed"]), result["error"][:60], *[""] * (len(COLUMNS) - 3))
    gate = result["gate"]
    checks = gate["checks"]
    return (
        run,
        str(result["seed"]),
        "/".join(_percent(result["right"][kind]) for kind in ("taught", "other", "held_out")),
        rise(result["bits_before"]["clean"], result["bits_after"]["clean"]),
        rise(result["bits_before"]["raw"], result["bits_after"]["raw"]),
        _number(checks.get("canned", {}).get("after"), 2),
        _number(checks.get("copying", {}).get("after"), 2),
        _number(result["leak"], 2),
        f"{result['words']}/{result['n_general']}",
        f"{result['identity']}/{result['n_identity']}{' taught' * result['identity_taught']}",
        "passes" if gate["passed"] else f"refuses: {', '.join(failed(gate))}",
        result["ended"],
        str(result["steps"]),
        _number(result["train_s"], 0),
        _number(result["step_s"], 2),
        _number(result["prepare_s"], 0),
        _number(result["gate_s"], 0),
        _number(result["peak_bytes"] / 1e6, 0),
    )


def failed(gate: Result) -> list[str]:
    """Names of the checks that failed."""
    return [name for name, check in gate["checks"].items() if not check["passed"]]


def rise(before: dict[str, float], after: dict[str, float]) -> str:
    """Per cent: of the mean, and in brackets of the worst language, such as '+23.3 (kn +30)'."""
    by_language = {code: after[code] / before[code] - 1 for code in before}
    mean = fmean(after.values()) / fmean(before.values()) - 1
    worst = max(by_language, key=lambda code: by_language[code])
    return f"{mean:+.1%} ({worst} {by_language[worst]:+.0%})".replace("%", "")


def _order(result: Result) -> tuple[str, str, str, str, int]:
    names = (result["arm"], result["model"], result["label"], " ".join(result["adapt"]))
    return (*names, result["seed"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}".removesuffix("%")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
