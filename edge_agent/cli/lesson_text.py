"""The words of a lesson before its verdict: what waits, the plan, what the audit found, progress.

Flows in: documents of /v1/feedback and /adapt, and events of a lesson (adapt/messages.py's records
as JSON). Flows out: lines. Not here: the verdict (verdict.py), following a lesson
(commands/adapt.py, chat_lesson.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_agent.cli.terminal import duration_text, size_text

STEPLESS = ("prepare", "prefix", "rehearse", "paused", "save")
"""Phases of adapt/messages.py's TrainingProgress that count no steps: their note says how far."""


def waiting_text(waiting: Mapping[str, int]) -> str:
    """
    >>> waiting_text({"corrections": 1, "approved": 2, "bad": 5})
    '1 correction and 2 good answers wait to be learned'
    >>> waiting_text({"corrections": 0, "approved": 0, "bad": 5})
    'nothing waits to be learned'
    """
    names = {"corrections": "correction", "approved": "good answer"}
    counts = ((waiting[key], name) for key, name in names.items() if waiting[key])
    parts = [f"{count} {name}{'s' * (count != 1)}" for count, name in counts]
    total = waiting["corrections"] + waiting["approved"]
    if not parts:
        return "nothing waits to be learned"
    return f"{' and '.join(parts)} {'waits' if total == 1 else 'wait'} to be learned"


def time_in_words(duration_s: float) -> str:
    """
    >>> [time_in_words(s) for s in (20, 59.9, 130, 3600, 9000)]
    ['less than a minute', 'about a minute', 'about 2 minutes', 'about an hour', 'about 2.5 hours']
    """
    if duration_s < 45:
        return "less than a minute"
    if duration_s < 90:
        return "about a minute"
    if duration_s < 3540:
        return f"about {duration_s / 60:.0f} minutes"
    hours = f"{duration_s / 3600:.1f}".removesuffix(".0")
    return "about an hour" if hours == "1" else f"about {hours} hours"


def rehearsal_text(planned: Mapping[str, Any]) -> str:
    """
    >>> rehearsal_text({"rehearsal": {"kind": "none"}})
    'nothing is rehearsed'
    >>> rehearsal_text({"rehearsal": {"kind": "kl", "rows": 90, "tokens": 4100, "bytes": 143_000,
    ...     "seconds": 5.25}})
    '90 rows are rehearsed (kl): 4100 tokens, 143 kB on the disk, 5.25 s once'
    """
    found = planned.get("rehearsal") or {}
    if not found.get("rows"):
        return "nothing is rehearsed"
    parts = [f"{found.get('tokens', 0)} tokens"]
    if found.get("bytes"):
        parts.append(f"{size_text(found['bytes'])} on the disk")
    if found.get("seconds"):
        parts.append(f"{duration_text(found['seconds'])} once")
    return f"{found['rows']} rows are rehearsed ({found.get('kind')}): {', '.join(parts)}"


def longest_text(planned: Mapping[str, Any], epochs: int) -> str:
    """How long a lesson of all its epochs takes.

    >>> longest_text({"epoch_s": 8, "prefix_s": 1, "rehearsal": {"seconds": 5}}, 14)
    'at most 14 epochs: about 2 minutes; then the gate asks its questions'
    """
    once_s = (planned.get("prefix_s") or 0.0) + (
        (planned.get("rehearsal") or {}).get("seconds") or 0.0
    )
    epoch_s = planned.get("epoch_s")
    time = "unknown time" if epoch_s is None else time_in_words(once_s + epochs * epoch_s)
    return f"at most {epochs} epochs: {time}; then the gate asks its questions"


def findings(planned: Mapping[str, Any]) -> list[str]:
    """What the audit left out, one line each.

    >>> findings({"flagged": [{"row": 3, "reason": "loop", "text": "the the the"}]})
    ['row 3 is left out: the answer repeats itself: the the the']
    """
    # Deferred: only rows with faults need it.
    from edge_agent.adapt.trainer.audit import REASONS

    return [
        f"row {found.get('row')} is left out:"
        f" {REASONS.get(str(found.get('reason')), found.get('reason'))}: {found.get('text')}"
        for found in planned.get("flagged") or []
    ]


def event_text(event: Mapping[str, Any]) -> str | None:
    """How far the lesson is; None for an event that does not say it.

    >>> event_text({"event": "judging", "note": "as it is: questions, 3 of 30"})
    'judging, as it is: questions, 3 of 30'
    """
    kind = event.get("event")
    if kind in ("judging", "paused"):
        return f"{kind}, {event.get('note') or event.get('reason')}"
    return progress_text(event) if kind == "progress" else None


def progress_text(event: Mapping[str, Any]) -> str:
    """
    >>> progress_text({"phase": "prefix", "step": 0, "note": "states below block 22: 3 of 20"})
    'prefix, states below block 22: 3 of 20'
    >>> progress_text({"phase": "train", "step": 3, "loss": 1.5, "tok_s": 210.4, "note": ""})
    'train, loss 1.500, 210 tok/s'
    """
    parts = [str(event.get("phase"))]
    if event.get("note") and (event.get("phase") in STEPLESS or not event.get("step")):
        return f"{parts[0]}, {event['note']}"
    for key, label in (("loss", "loss"), ("validation_bits_per_byte", "bits/byte")):
        if event.get(key) is not None:
            parts.append(f"{label} {event[key]:.3f}")
    if event.get("tok_s"):
        parts.append(f"{event['tok_s']:.0f} tok/s")
    return ", ".join(parts)
