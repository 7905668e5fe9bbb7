"""What the gate compares, and where it draws the line. A pure function of two sides.

Why it exists: a small model loops, mixes scripts and knows little before any lesson, so an absolute
limit would fail every lesson. A check is relative: its limit is the value before the lesson plus a
margin, but at least a floor that a good model keeps. Flows in: an Exam (what was scored and asked)
and the Side of the model before and after the lesson. Flows out: a GateCheck for each property. Not
here: asking the engine (gate.py), the checks of answers (answer_checks.py), of what the lesson was
to teach (learned.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from edge_agent.adapt.gate.answer_checks import ALPHA, answer_checks
from edge_agent.adapt.gate.clean_set import CleanRow
from edge_agent.adapt.gate.exam import (
    NOTHING_LEFT,
    Exam,
    GateCheck,
    RowScore,
    Side,
    bits_per_byte,
    skipped,
)
from edge_agent.adapt.gate.learned import learned_check
from edge_agent.adapt.gate.significance import bootstrap_lower

VALIDATION_RISE = 0.005
"""Allowed relative rise of the validation bits per byte. Training kept the weights that were best
on these rows, so a larger rise is a fault (another template, a broken file) and needs no
statistics. Half a percent covers batching and rounding."""
CLEAN_RISE, INSTRUCT_RISE = 0.10, 0.03
LANGUAGE_RISE = 0.25
"""Allowed relative rise of the clean set's bits per byte: mean of the languages, the same for an
instruct model, and worst language. Every lesson of an instruct model with rehearsal stayed below
0.011, every one without it was above 0.18 (dev/log)."""
PLAIN_RISE = 0.15
"""Allowed relative rise of the bits per byte of plain text, in the worst language. Lessons with
rehearsal rise by up to 0.10, those without by 0.20 to 1.7 (dev/log). The texts are the same on both
sides and long, so the rise is not chance."""


def judge(exam: Exam, before: Side, after: Side) -> list[GateCheck]:
    """All checks, failed or not, always in the same order."""
    validation = _validation(before.validation, after.validation)
    return [
        learned_check(exam, before, after, validation),
        validation,
        *_clean(exam, before, after),
        _plain(exam, before, after),
        *answer_checks(exam, before, after),
    ]


_Pair = tuple[RowScore, RowScore]
"""One row before and after."""


def _validation(before: Sequence[RowScore], after: Sequence[RowScore]) -> GateCheck:
    if not sum(score.n_bytes for score in before):
        return skipped("validation_bits_per_byte", "the run kept no rows for validation")
    was, now = bits_per_byte(before), bits_per_byte(after)
    limit = was * (1 + VALIDATION_RISE)
    return GateCheck(
        "validation_bits_per_byte", was, now, limit, now <= limit, f"{len(before)} rows"
    )


def _clean(exam: Exam, before: Side, after: Side) -> list[GateCheck]:
    """Two checks: the mean of the languages, and the language that became worst, so that a gain in
    English cannot hide a loss in Kannada."""
    names = ("clean_bits_per_byte", "clean_worst_language")
    groups = _by_language(exam.scored, before.scored, after.scored)
    if not groups:
        return [skipped(name, NOTHING_LEFT) for name in names]
    allowed = INSTRUCT_RISE if exam.lesson.is_instruct else CLEAN_RISE
    note = f"{len(exam.scored)} rows"
    overall = _clean_check(names[0], list(groups.values()), allowed, note)
    worst = max(groups, key=lambda language: _nan_last(_rise([groups[language]])))
    return [overall, _clean_check(names[1], [groups[worst]], LANGUAGE_RISE, worst)]


def _plain(exam: Exam, before: Side, after: Side) -> GateCheck:
    """Text outside the chat template, in the language that became worst. A base model's chats get
    better with any lesson, while the rest of it may break."""
    name, groups = "plain_text", _by_language(exam.plain, before.plain, after.plain)
    if not groups:
        return skipped(name, "there are no plain texts")
    worst = max(groups, key=lambda language: _nan_last(_rise([groups[language]])))
    was, now = _mean_of([groups[worst]], 0), _mean_of([groups[worst]], 1)
    limit = was * (1 + PLAIN_RISE)
    return GateCheck(name, was, now, limit, now <= limit, worst)


def _by_language(
    rows: Sequence[CleanRow], before: Sequence[RowScore], after: Sequence[RowScore]
) -> dict[str, list[_Pair]]:
    groups: dict[str, list[_Pair]] = {}
    for row, *pair in zip(rows, before, after, strict=True):
        groups.setdefault(row.language, []).append((pair[0], pair[1]))
    return groups


def _clean_check(name: str, groups: list[list[_Pair]], allowed: float, note: str) -> GateCheck:
    was, now = _mean_of(groups, 0), _mean_of(groups, 1)
    limit = was * (1 + allowed)
    is_chance = math.isfinite(now) and now > limit and bootstrap_lower(groups, _rise, ALPHA) <= 0
    note += ", over the limit by chance" if is_chance else ""
    return GateCheck(name, was, now, limit, now <= limit or is_chance, note)


def _mean_of(groups: Sequence[Sequence[_Pair]], side: int) -> float:
    """Mean of the languages' bits per byte. Each language counts the same, although a Kannada
    letter has three bytes. `side`: 0 before the lesson, 1 after it."""
    return fmean(bits_per_byte([pair[side] for pair in group]) for group in groups)


def _rise(groups: Sequence[Sequence[_Pair]]) -> float:
    return _mean_of(groups, 1) / _mean_of(groups, 0) - 1


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value
