"""What the gate compares, and where it draws the line. A pure function of two sides.

Why it exists: a small model loops, mixes scripts and knows little before any lesson, so an absolute
limit would fail every lesson. A check is relative: its limit is the value before the lesson plus a
margin, but at least a floor that a good model keeps. Where bad answers are counted, exceeding the
limit is not enough to fail: the exact sign test must also show that the change is unlikely to be
chance. Flows in: an Exam (what was scored and asked) and the Side of the model before and after the
lesson. Flows out: a GateCheck for each property. Not here: asking the engine (gate.py).
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
"""Significance level of the sign test and of the bootstrap, one-sided. A counted check can fail
only when at least 5 answers have turned bad and none good (1/2^5 = 0.03)."""
VALIDATION_RISE = 0.005
"""Allowed relative rise of the validation bits per byte. Training kept the weights that were best
on these rows, so a larger rise is a fault (another template, a broken file) and needs no
statistics. Half a percent covers batching and rounding."""
CLEAN_RISE = 0.10
LANGUAGE_RISE = 0.25
"""Allowed relative rise of the clean set's bits per byte: mean of the languages, and worst one."""
MARGIN = 0.10
"""Allowed rise of the share of bad answers; a good lesson costs a 270M model about as much."""
FLOOR = 0.10
"""Share of bad answers that is always allowed. The detectors find none in the clean set itself."""
COPY_FLOOR = 0.10
CONTRADICTION_FLOOR = 0.25
"""Share of answers to "Who are you?" that may contradict the taught identity: a good lesson often
leaves one of the three languages behind."""
CANNED_FLOOR = 0.20
LONG_ANSWER_WORDS = 10
"""When the median taught answer is longer than this, reaching the limit of tokens is no fault."""
_CONTROL = re.compile(
    r"\ufffd|<\|?(?:im_start|im_end|endoftext|start_of_turn|end_of_turn|bos|eos|unused\d+)\|?>"
)


@dataclass(frozen=True)
class RowScore:
    """The score of one chat's assistant turns. `bits` is -sum(log2 probability), nan when a
    probability is not finite; `n_bytes` are the answers' UTF-8 bytes."""

    bits: float
    n_bytes: int


@dataclass(frozen=True)
class GateAnswer:
    """An answer of the engine. `is_cut`: it reached the limit of tokens before its end."""

    text: str
    is_cut: bool


@dataclass(frozen=True)
class Exam:
    """The questions and texts, the same for both sides. `scored` and `asked` are clean rows that
    the lesson does not teach; `scored` ones have an answer. `persona` rows ask who the model is."""

    validation: list[list[Message]]
    scored: list[CleanRow]
    asked: list[CleanRow]
    persona: list[CleanRow]
    taught: TaughtSpans
    identity: Identity
    taught_words: float
    """Median length of a taught answer, in words."""


@dataclass(frozen=True)
class Side:
    """One model's results, in the order of the Exam's rows."""

    validation: list[RowScore]
    scored: list[RowScore]
    asked: list[GateAnswer]
    persona: list[GateAnswer]


@dataclass(frozen=True)
class GateCheck:
    """One compared property. The numbers are shares (0 to 1) or bits per byte; None means that the
    property was not checked, and `note` says why."""

    name: str
    before: float | None
    after: float | None
    limit: float | None
    passed: bool
    note: str = ""


def judge(exam: Exam, before: Side, after: Side) -> list[GateCheck]:
    """All checks, failed or not, always in the same order."""
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
    """Sum of bits / sum of bytes, so that a long text counts more than a short one.

    >>> bits_per_byte([RowScore(8.0, 4), RowScore(1.0, 2)])
    1.5
    """
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
    """Two checks: the mean of the languages, and the language that became worst, so that a gain in
    English cannot hide a loss in Kannada."""
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
    """Mean of the languages' bits per byte. Each language counts the same, although a Kannada
    letter has three bytes. `side`: 0 before the lesson, 1 after it."""
    return fmean(bits_per_byte([pair[side] for pair in group]) for group in groups)


def _rise(groups: Sequence[Sequence[_Pair]]) -> float:
    return _mean_of(groups, 1) / _mean_of(groups, 0) - 1


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


# ---- answers ---------------------------------------------------------------------------------

_NOTHING_LEFT = "the lesson teaches every question of the clean set"


def _repetition(before: Side, after: Side) -> GateCheck:
    """The share of answers that loop, as after too much training or after rows that loop."""
    texts = [[answer.text for answer in _all(side)] for side in (before, after)]
    if not texts[0]:
        return _skipped("repetition", _NOTHING_LEFT)
    means = [fmean(seq_rep(words(text)) for text in side) for side in texts]
    flags = [[is_looping(text) for text in side] for side in texts]
    note = f"mean seq-rep-4 {means[0]:.3f} before, {means[1]:.3f} after"
    return _counted("repetition", flags[0], flags[1], note=note)


def _unfinished(exam: Exam, before: Side, after: Side) -> GateCheck:
    """The share of answers that reach the limit of tokens: the model does not end its turn."""
    name = "unfinished"
    if exam.taught_words > LONG_ANSWER_WORDS:
        return _skipped(name, f"the lesson's answers have {exam.taught_words:.0f} words")
    flags = [[answer.is_cut for answer in _all(side)] for side in (before, after)]
    return _counted(name, flags[0], flags[1])


def _broken(before: Side, after: Side) -> GateCheck:
    """The share of answers that are empty, spell a control token or hold U+FFFD (invalid UTF-8)."""
    sides = [
        [not a.text.strip() or _CONTROL.search(a.text) is not None for a in _all(side)]
        for side in (before, after)
    ]
    return _counted("broken", sides[0], sides[1])


def _canned(before: Side, after: Side) -> GateCheck:
    """The share of answers that several questions got word for word, such as "I do not know."."""
    return _counted("canned", _same(before.asked), _same(after.asked), floor=CANNED_FLOOR)


def _same(answers: Sequence[GateAnswer]) -> list[bool]:
    said = [tuple(words(answer.text)) for answer in answers]
    return [bool(one) and said.count(one) > 1 for one in said]


def _copying(exam: Exam, before: Side, after: Side) -> GateCheck:
    """The share of unrelated questions that got a taught answer. There is no sign test, because a
    copied span is never chance."""
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
    """When the lesson teaches an identity: the share of answers, in the lesson's languages, that
    contradict it. Otherwise: the share that names another model or maker."""
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
    """The share of right answers to small questions. Here `limit` is the smallest share that
    passes."""
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
    """A check of a share of bad answers: True in `before` and `after` marks a bad answer."""
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
