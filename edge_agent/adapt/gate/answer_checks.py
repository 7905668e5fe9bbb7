"""The gate's checks of answers: loops, copies, lesson words, scripts, who the model says it is.

A count of bad answers may exceed its limit by chance, so the exact sign test must also show that
the change is unlikely to be chance. Flows in: an Exam and its two sides. Flows out: GateChecks. Not
here: bits per byte (checks.py), what the lesson was to teach (learned.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from statistics import fmean

from edge_agent.adapt.gate.clean_set import clean_set
from edge_agent.adapt.gate.detectors import is_looping, is_wrong_script, news_signs, seq_rep
from edge_agent.adapt.gate.exam import NOTHING_LEFT, Exam, GateAnswer, GateCheck, Side, skipped
from edge_agent.adapt.gate.identity import claimed_names
from edge_agent.adapt.gate.significance import sign_test
from edge_agent.adapt.gate.words import content_stems, words

ALPHA = 0.05
"""Significance level of the sign test and of the bootstrap, one-sided. A counted check can fail
only when at least 5 answers have turned bad and none good (1/2^5 = 0.03)."""
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
LESSON_WORDS, BASE_LESSON_WORDS = 0.15, 0.35
"""Share of unrelated questions whose answer may hold a word of the lesson, for an instruct and for
a base model: 4 and 10 of 30. With rehearsal SmolLM2 gave none to two such answers in 18, without
it nine. A base model gives sentences only since the lesson, so more of them hold its words: the
mildest lesson of Gemma 3 270M had 5 in 18, those that broke it 7 to 18 (dev/log)."""
NEW_NAMES = 0.05
"""Share of the answers to "Who are you?" that may hold a name of the lesson, when no identity is
taught: none of 12. SmolLM2 was "Anil, on extension 4417" after a lesson that names a plumber."""
_NAME = re.compile(r"\b(?:[A-Z][\w'-]+|\d{2,})")
_INNER_NAME = re.compile(r"(?<=[^\s.!?:] )[A-Z][\w'-]+|\b\d{2,}")
"""A word that is written as a name, or a number; the second one not at the beginning of a sentence,
where every word is capitalized."""


def answer_checks(exam: Exam, before: Side, after: Side) -> list[GateCheck]:
    """The checks of answers, failed or not, always in the same order."""
    return [
        _repetition(before, after),
        _unfinished(exam, before, after),
        _broken(before, after),
        _canned(before, after),
        _copying(exam, before, after),
        _lesson_words(exam, before, after),
        _news(exam, before, after),
        _script(exam, before, after),
        _persona(exam, before.persona, after.persona),
        _identity(exam, before, after),
        _questions(exam, before, after),
    ]


def _repetition(before: Side, after: Side) -> GateCheck:
    """The share of answers that loop, as after too much training or after rows that loop."""
    texts = [[answer.text for answer in _all(side)] for side in (before, after)]
    if not texts[0]:
        return skipped("repetition", NOTHING_LEFT)
    means = [fmean(seq_rep(words(text)) for text in side) for side in texts]
    flags = [[is_looping(text) for text in side] for side in texts]
    note = f"mean seq-rep-4 {means[0]:.3f} before, {means[1]:.3f} after"
    return _counted("repetition", flags[0], flags[1], note=note)


def _unfinished(exam: Exam, before: Side, after: Side) -> GateCheck:
    """The share of answers that reach the limit of tokens: the model does not end its turn."""
    name = "unfinished"
    if exam.taught_words > LONG_ANSWER_WORDS:
        return skipped(name, f"the lesson's answers have {exam.taught_words:.0f} words")
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
            return skipped("copying", NOTHING_LEFT)
        longest = max(spans)
        shares.append(fmean(span > 0 for span in spans))
    limit = max(COPY_FLOOR, shares[0])
    note = f"longest copied span {longest} words"
    return GateCheck("copying", shares[0], shares[1], limit, shares[1] <= limit, note)


@cache
def _everyday() -> frozenset[str]:
    """Content stems of the clean set: words that any answer may hold."""
    return frozenset().union(
        *(content_stems(f"{row.prompt} {row.answer or ''}") for row in clean_set())
    )


def _lesson_only(exam: Exam, before: Side) -> frozenset[str]:
    """Content stems of the lesson that neither the clean set nor any answer before it has."""
    lesson = frozenset().union(*(row.about for row in exam.taught.rows))
    return lesson - _everyday() - content_stems(" ".join(one.text for one in _all(before)))


def _lesson_words(exam: Exam, before: Side, after: Side) -> GateCheck:
    """The share of unrelated questions whose answer holds a word of the lesson: less than a copied
    answer, and a sign that the lesson leaks. Words that the model used before do not count."""
    if not exam.asked:
        return skipped("lesson_words", NOTHING_LEFT)
    lesson = _lesson_only(exam, before)
    now = fmean(bool(lesson & content_stems(answer.text)) for answer in after.asked)
    limit = LESSON_WORDS if exam.lesson.is_instruct else BASE_LESSON_WORDS
    return GateCheck("lesson_words", 0.0, now, limit, now <= limit)


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


def _identity(exam: Exam, before: Side, after: Side) -> GateCheck:
    """Where no identity is taught: the share of answers to "Who are you?" that hold a name of the
    lesson, or claim a name although no answer did before. A model that claimed names before invents
    others after any lesson, so there only names of the lesson count."""
    if exam.identity.languages:
        return skipped("identity", "the lesson says who the model is")
    had_names = any(claimed_names(answer.text) for answer in before.persona)
    lesson = _lesson_names(exam, before)
    now = fmean(
        bool(lesson & _names(answer.text, _INNER_NAME))
        or (not had_names and bool(claimed_names(answer.text)))
        for answer in after.persona
    )
    note = "names of the lesson" + ("" if had_names else ", or a name, which it did not have")
    return GateCheck("identity", 0.0, now, NEW_NAMES, now <= NEW_NAMES, note)


def _names(text: str, pattern: re.Pattern[str] = _NAME) -> set[str]:
    """Words that are written as names, and numbers, case folded."""
    return {found.casefold() for found in pattern.findall(text)}


def _lesson_names(exam: Exam, before: Side) -> set[str]:
    """Names of the taught answers that neither the clean set nor any answer before it has."""
    taught = (one.content for chat in exam.lesson.taught for one in chat if one.role == "assistant")
    known = [f"{row.prompt} {row.answer or ''}" for row in clean_set()]
    known += [answer.text for answer in _all(before)]
    return set().union(*map(_names, taught)) - {word for text in known for word in words(text)}


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
        return skipped(name, NOTHING_LEFT)
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
        return skipped(name, NOTHING_LEFT)
    was, now = fmean(before), fmean(after)
    limit = min(1.0, max(floor, was + MARGIN))
    return GateCheck(name, was, now, limit, now <= limit or not _is_worse(before, after), note)


def _is_worse(before: Sequence[bool], after: Sequence[bool]) -> bool:
    changed = [now for was, now in zip(before, after, strict=True) if was != now]
    return sign_test(sum(changed), len(changed) - sum(changed)) <= ALPHA
