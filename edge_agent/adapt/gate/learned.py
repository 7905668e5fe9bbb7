"""Did the lesson teach anything? Otherwise an adapter that changes nothing would pass the gate.

Flows in: an Exam with some taught chats, and both sides. Flows out: one GateCheck. A lesson of
facts is learned when its questions get their answers. A lesson that did not end `answered` (a
style, a persona, many rows) is also learned when its rows became much likelier. Not here: what the
lesson did elsewhere (checks.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from edge_agent.adapt.gate.exam import Exam, GateAnswer, GateCheck, Side, bits_per_byte, skipped
from edge_agent.adapt.gate.words import words
from edge_agent.records import Message

ANSWERED_F1 = 0.8
"""A taught question is answered when the word F1 of its answer and the taught one is at least this:
a word or two may differ."""
ANSWERED_SHARE = 0.8
"""Share of the taught questions that must be answered. Lessons that ended `answered` have 0.9 to 1
here, adapters scaled to 0.3 have 0.04 (dev/log)."""
LIKELIER = 0.8
"""Or: bits per byte of the taught rows, as a part of those before the lesson."""
NAME = "learned"


def learned_check(exam: Exam, before: Side, after: Side, validation: GateCheck) -> GateCheck:
    """Whether the lesson was learned. `limit` is the least share of answered questions, or the most
    bits per byte; `note` says which."""
    if not exam.learned:
        return skipped(NAME, "the run kept no taught rows")
    was, now = (_answered(exam.learned, side.recited) for side in (before, after))
    note = f"{len(exam.learned)} taught questions answered, limit is the least"
    if now >= ANSWERED_SHARE or exam.lesson.ended == "answered":
        return GateCheck(NAME, was, now, ANSWERED_SHARE, now >= ANSWERED_SHARE, note)
    bits = [bits_per_byte(side.learned) for side in (before, after)]
    limit = LIKELIER * bits[0]
    is_lower = validation.before is None or (validation.after or 0.0) < validation.before
    note = f"bits per byte of {len(exam.learned)} taught rows; {now:.0%} of them are answered"
    return GateCheck(NAME, bits[0], bits[1], limit, bits[1] <= limit and is_lower, note)


def _answered(chats: Sequence[Sequence[Message]], answers: Sequence[GateAnswer]) -> float:
    return fmean(
        word_f1(answer, chat[-1].content) >= ANSWERED_F1
        for chat, answer in zip(chats, answers, strict=True)
    )


def word_f1(answer: GateAnswer, taught: str) -> float:
    """Harmonic mean of precision and recall of the answer's words (SQuAD, arXiv 1606.05250); of an
    answer that was cut, against as many words of the taught one.

    >>> word_f1(GateAnswer("the door is", True), "The door is blue and old.")
    1.0
    """
    said, wanted = words(answer.text), words(taught)
    if answer.is_cut:
        wanted = wanted[: len(said)]
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted)) if same else 0.0
