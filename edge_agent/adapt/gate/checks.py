"""What the gate compares, and where it draws the line. A pure function of two sides.

Flows in: an Exam (what was scored and asked) and the Side of the model before and after the lesson.
Flows out: one Check for each question put to them. A small weak model loops, mixes scripts and
knows little before any lesson, so a check is relative: `limit` is what was before plus a margin,
but never below a floor that a good model keeps. Where answers are counted, crossing the limit is
not enough: the exact sign test must say that chance would not do it. Not here: asking (gate.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from edge_agent.adapt.gate.clean_set import CleanRow
from edge_agent.adapt.gate.copying import TaughtSpans
from edge_agent.adapt.gate.detectors import is_looping, is_wrong_script, news_signs, seq_rep
from edge_agent.adapt.gate.identity import Identity
from edge_agent.adapt.gate.significance import bootstrap_lower, sign_test
from edge_agent.adapt.gate.words import words
from edge_agent.records import Message

ALPHA = 0.05
"""Of the sign test and the bootstrap, one-sided. Of 30 answers at least 5 must have turned bad and
none good before a counted check can fail (1/2^5 = 0.03)."""
VALIDATION_RISE = 0.005
"""Training stopped where this split was best, so any rise is a fault (another template, a broken
file): no statistics. Half a percent is what batching and float rounding can do."""
CLEAN_RISE = 0.10
LANGUAGE_RISE = 0.25
MARGIN = 0.10
"""A counted check may worsen by one answer in ten: what a good lesson costs a 270M model."""
FLOOR = 0.10
"""One odd answer in ten is always allowed; the detectors find none in the clean set itself."""
COPY_FLOOR = 0.10
CONTRADICTION_FLOOR = 0.25
"""A quarter of the answers to "Who are you?" in three languages may go wrong after a lesson that
teaches it, often in one of them only."""
CANNED_FLOOR = 0.20
LONG_ANSWER_WORDS = 10
_CONTROL = re.compile(
    r"\ufffd|<\|?(?:im_start|im_end|endoftext|start_of_turn|end_of_turn|bos|eos|unused\d+)\|?>"
)


@dataclass(frozen=True)
class RowScore:
    """Of one chat's assistant turns. `bits` = -sum of log2 probabilities; nan when not finite."""

    bits: float
    n_bytes: int


@dataclass(frozen=True)
class GateAnswer:
    """`is_cut`: it ended at the limit of tokens, not by itself."""

    text: str
    is_cut: bool


@dataclass(frozen=True)
class Exam:
    """The same for both sides. `scored` and `asked` rows are clean rows that the lesson does not
    teach, `scored` ones with their answers; `persona` rows ask who the model is."""

    validation: list[list[Message]]
    scored: list[CleanRow]
    asked: list[CleanRow]
    persona: list[CleanRow]
    taught: TaughtSpans
    identity: Identity
    taught_words: float
    """Median length of a taught answer."""


@dataclass(frozen=True)
class Side:
    """One model's results, in the order of the Exam's rows."""

    validation: list[RowScore]
    scored: list[RowScore]
    asked: list[GateAnswer]
    persona: list[GateAnswer]


@dataclass(frozen=True)
class GateCheck:
    """None: not checked, and `note` says why. Shares are 0 to 1; bits per byte are bits."""

    name: str
    before: float | None
    after: float | None
    limit: float | None
    passed: bool
    note: str = ""


def judge(exam: Exam, before: Side, after: Side) -> list[GateCheck]:
    """Every check, failed or not, always in the same order."""
    return [
        _validation(before.validation, after.validation),
        *_clean(exam.scored, before.scored, after.scored),
        _repetition(before, after),
        _unfinished(exam, before, after),
        _broken(before, after),
        _canned(before, after),
        _copying(exam, before, after),
        _news(exam, before, after),
        _script(exam, before, after),
        _persona(exam, before.persona, after.persona),
        _questions(exam, before, after),
    ]


# ---- bits per byte ---------------------------------------------------------------------------

_Pair = tuple[RowScore, RowScore]
"""One row before and after."""


def bits_per_byte(scores: Sequence[RowScore]) -> float:
    """All bits by all bytes: a long text counts more than a short one."""
    return sum(score.bits for score in scores) / sum(score.n_bytes for score in scores)


def _validation(before: Sequence[RowScore], after: Sequence[RowScore]) -> GateCheck:
    if not sum(score.n_bytes for score in before):
        return _skipped("validation_bits_per_byte", "the run kept no rows for validation")
    was, now = bits_per_byte(before), bits_per_byte(after)
    limit = was * (1 + VALIDATION_RISE)
    return GateCheck(
        "validation_bits_per_byte", was, now, limit, now <= limit, f"{len(before)} rows"
    )


def _clean(
    rows: Sequence[CleanRow], before: Sequence[RowScore], after: Sequence[RowScore]
) -> list[GateCheck]:
    """The mean of the languages, and the one that lost most: Kannada must not pay for English."""
    names = ("clean_bits_per_byte", "clean_worst_language")
    groups: dict[str, list[_Pair]] = {}
    for row, *pair in zip(rows, before, after, strict=True):
        groups.setdefault(row.language, []).append((pair[0], pair[1]))
    if not groups:
        return [_skipped(name, _NOTHING_LEFT) for name in names]
    overall = _clean_check(names[0], list(groups.values()), CLEAN_RISE, f"{len(rows)} rows")
    worst = max(groups, key=lambda language: _nan_last(_rise([groups[language]])))
    return [overall, _clean_check(names[1], [groups[worst]], LANGUAGE_RISE, worst)]


def _clean_check(name: str, groups: list[list[_Pair]], allowed: float, note: str) -> GateCheck:
    was, now = _mean_of(groups, 0), _mean_of(groups, 1)
    limit = was * (1 + allowed)
    is_chance = math.isfinite(now) and now > limit and bootstrap_lower(groups, _rise, ALPHA) <= 0
    note += ", over the limit by chance" if is_chance else ""
    return GateCheck(name, was, now, limit, now <= limit or is_chance, note)


def _mean_of(groups: Sequence[Sequence[_Pair]], side: int) -> float:
    """Each language counts the same, though a Kannada letter has three bytes."""
    return fmean(bits_per_byte([pair[side] for pair in group]) for group in groups)


def _rise(groups: Sequence[Sequence[_Pair]]) -> float:
    return _mean_of(groups, 1) / _mean_of(groups, 0) - 1


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


# ---- answers ---------------------------------------------------------------------------------

_NOTHING_LEFT = "the lesson teaches every question of the clean set"


def _repetition(before: Side, after: Side) -> GateCheck:
    """Answers that loop. Cause: over-training, looping rows."""
    texts = [[answer.text for answer in _all(side)] for side in (before, after)]
    if not texts[0]:
        return _skipped("repetition", _NOTHING_LEFT)
    means = [fmean(seq_rep(words(text)) for text in side) for side in texts]
    flags = [[is_looping(text) for text in side] for side in texts]
    note = f"mean seq-rep-4 {means[0]:.3f} before, {means[1]:.3f} after"
    return _counted("repetition", flags[0], flags[1], note=note)


def _unfinished(exam: Exam, before: Side, after: Side) -> GateCheck:
    """Answers that hit the limit of tokens. Cause: end-of-turn was not learned, or unlearned."""
    name = "unfinished"
    if exam.taught_words > LONG_ANSWER_WORDS:
        return _skipped(name, f"the lesson's answers have {exam.taught_words:.0f} words")
    flags = [[answer.is_cut for answer in _all(side)] for side in (before, after)]
    return _counted(name, flags[0], flags[1])


def _broken(before: Side, after: Side) -> GateCheck:
    """Empty answers, control tokens as text, bytes that are no character."""
    sides = [
        [not a.text.strip() or _CONTROL.search(a.text) is not None for a in _all(side)]
        for side in (before, after)
    ]
    return _counted("broken", sides[0], sides[1])


def _canned(before: Side, after: Side) -> GateCheck:
    """Answers given word for word to several questions: "I do not know." to everybody."""
    return _counted("canned", _same(before.asked), _same(after.asked), floor=CANNED_FLOOR)


def _same(answers: Sequence[GateAnswer]) -> list[bool]:
    said = [tuple(words(answer.text)) for answer in answers]
    return [bool(one) and said.count(one) > 1 for one in said]


def _copying(exam: Exam, before: Side, after: Side) -> GateCheck:
    """Taught answers to unrelated questions. No sign test: a copied span is never chance."""
    shares = []
    longest = 0
    for side in (before, after):
        spans = [
            exam.taught.copied_words(row.prompt, answer.text)
            for row, answer in zip(exam.asked, side.asked, strict=True)
        ]
        if not spans:
            return _skipped("copying", _NOTHING_LEFT)
        longest = max(spans)
        shares.append(fmean(span > 0 for span in spans))
    limit = max(COPY_FLOOR, shares[0])
    note = f"longest copied span {longest} words"
    return GateCheck("copying", shares[0], shares[1], limit, shares[1] <= limit, note)


def _news(exam: Exam, before: Side, after: Side) -> GateCheck:
    flags = [[bool(news_signs(answer.text)) for answer in _all(side)] for side in (before, after)]
    return _counted("news_register", flags[0], flags[1])


def _script(exam: Exam, before: Side, after: Side) -> GateCheck:
    rows = [*exam.asked, *exam.persona]
    flags = [
        [is_wrong_script(a.text, row.language) for row, a in zip(rows, _all(side), strict=True)]
        for side in (before, after)
    ]
    return _counted("script", flags[0], flags[1])


def _persona(exam: Exam, before: Sequence[GateAnswer], after: Sequence[GateAnswer]) -> GateCheck:
    """Taught: no other name, no other maker, in the languages of the lesson. Else: no new leak."""
    languages = exam.identity.languages
    if not languages:
        flags = [[exam.identity.leaks(answer.text) for answer in side] for side in (before, after)]
        return _counted("persona", flags[0], flags[1], note="names of models and makers")
    shares = [
        fmean(
            exam.identity.contradicts(answer.text)
            for row, answer in zip(exam.persona, side, strict=True)
            if row.language in languages
        )
        for side in (before, after)
    ]
    limit, note = CONTRADICTION_FLOOR, "contradicts the identity that is taught"
    return GateCheck("persona", shares[0], shares[1], limit, shares[1] <= limit, note)


def _questions(exam: Exam, before: Side, after: Side) -> GateCheck:
    """Right answers to small questions; `limit` is the least that passes."""
    name = "short_questions"
    rights = [
        [
            row.is_right(answer.text)
            for row, answer in zip(exam.asked, side.asked, strict=True)
            if row.keys
        ]
        for side in (before, after)
    ]
    if not rights[0]:
        return _skipped(name, _NOTHING_LEFT)
    was, now = fmean(rights[0]), fmean(rights[1])
    limit = max(0.0, was - MARGIN)
    passed = now >= limit or not _is_worse([not r for r in rights[0]], [not r for r in rights[1]])
    return GateCheck(
        name, was, now, limit, passed, f"{len(rights[0])} questions, limit is the least"
    )


def _all(side: Side) -> list[GateAnswer]:
    return [*side.asked, *side.persona]


def _counted(
    name: str,
    before: Sequence[bool],
    after: Sequence[bool],
    floor: float = FLOOR,
    note: str = "",
) -> GateCheck:
    """A share of bad answers."""
    if not before:
        return _skipped(name, _NOTHING_LEFT)
    was, now = fmean(before), fmean(after)
    limit = min(1.0, max(floor, was + MARGIN))
    return GateCheck(name, was, now, limit, now <= limit or not _is_worse(before, after), note)


def _is_worse(before: Sequence[bool], after: Sequence[bool]) -> bool:
    changed = [now for was, now in zip(before, after, strict=True) if was != now]
    return sign_test(sum(changed), len(changed) - sum(changed)) <= ALPHA


def _skipped(name: str, why: str) -> GateCheck:
    return GateCheck(name, None, None, None, True, f"not checked: {why}")
