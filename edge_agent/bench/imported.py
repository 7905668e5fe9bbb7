"""Benchmark documents of other machines: our own JSON lines, or llama-bench's.

Flows in: a .jsonl file. Flows out: documents with the fields that a report needs. A torn last line,
which a power cut leaves, is skipped; any other bad line raises with its number. Not here: what a
report says (report.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from edge_agent.bench.figures import ImportFailed, checked
from edge_agent.json_lines import dumps, numbered_lines


def read_documents(path: Path) -> list[dict[str, Any]]:
    """Documents of a .jsonl file; a torn last line is skipped. Raises ImportFailed.

    Example: `documents = read_documents(Path("nano.jsonl"))`
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImportFailed(f"cannot read {path}", str(error), "give a .jsonl file") from error
    found: list[dict[str, Any]] = []
    numbered = numbered_lines(text)
    for position, (number_, line) in enumerate(numbered):
        try:
            document = json.loads(line)
            dumps(document).encode()  # raises for half a surrogate pair
        except (ValueError, RecursionError) as error:
            if position == len(numbered) - 1 and not text.endswith("\n"):
                break
            raise _bad_line(path, number_, str(error)) from error
        if not isinstance(document, dict) or "avg_ts" not in document:
            raise _bad_line(path, number_, "it is no benchmark document: it has no avg_ts")
        place = f"line {number_} of {path}"
        found.append(adopted(checked(document, place), path.stem))
    return found


def _bad_line(path: Path, number_: int, why: str) -> ImportFailed:
    hint = "import what `edge-agent bench --jsonl` or `llama-bench -o jsonl` printed"
    return ImportFailed(f"line {number_} of {path} cannot be imported", why, hint)


def adopted(document: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The document with all fields a report needs; a llama-bench row gets those it lacks."""
    if document.get("v") == 1:
        return dict(document)
    prompt, gen = document.get("n_prompt") or 0, document.get("n_gen") or 0
    scenario = "prefill+decode" if prompt and gen else "prefill" if prompt else "decode"
    given = document.get("samples_ts") or [document["avg_ts"]]
    samples = [rate for rate in given if rate is not None]
    return {
        **document,
        "scenario": scenario,
        "engine": "llama-bench",
        "model": Path(str(document.get("model_filename") or "unknown")).stem,
        "board_name": origin,
        "run_id": str(document.get("test_time") or origin),
        "median_ts": median(samples) if samples else None,
        "min_ts": min(samples, default=None),
        "max_ts": max(samples, default=None),
        "energy": {"reason": "llama-bench measures no energy"},
    }
