"""What a person can do about a refused lesson, one sentence for each cause.

Flows in: the failed checks, the lesson. Flows out: sentences, each once. Not here: what was
measured (GateReport.reasons says it).
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_agent.adapt.gate.exam import GateCheck, TaughtLesson

_NOT_LEARNED = (
    "It learned too little: give each fact three or more wordings, look for rows that contradict"
    " each other, or allow more --epochs."
)
_LEAKS = (
    "Taught answers come where nobody asked for them: keep --rehearsal on, give more wordings of"
    " fewer facts, or take a higher --rehearsal-weight."
)
_FORGETS = (
    "It forgets what it knew: keep --rehearsal on, and take a higher --rehearsal-weight or a lower"
    " --lr."
)
_WHO = (
    "It says it is somebody else: teach who it is in rows of their own, or leave the names of"
    " people out of rows about the assistant."
)
_ROWS = "Look at the rows: {0} show in other answers too."
_BY_CHECK = {
    "learned": _NOT_LEARNED,
    "validation_bits_per_byte": _NOT_LEARNED,
    "clean_bits_per_byte": _FORGETS,
    "clean_worst_language": _FORGETS,
    "plain_text": _FORGETS,
    "short_questions": _FORGETS,
    "canned": _LEAKS,
    "copying": _LEAKS,
    "lesson_words": _LEAKS,
    "persona": _WHO,
    "identity": _WHO,
    "repetition": _ROWS.format("answers that repeat themselves"),
    "unfinished": _ROWS.format("answers without an end"),
    "broken": _ROWS.format("empty answers, or tokens of a chat template,"),
    "news_register": _ROWS.format("phrases of news reports"),
    "script": _ROWS.format("answers in another script than their question"),
}


def advice(failed: Sequence[GateCheck], lesson: TaughtLesson) -> list[str]:
    """The sentences for these checks, in their order."""
    found = [_BY_CHECK[check.name] for check in failed if check.name in _BY_CHECK]
    if failed and 0 < len(lesson.taught) < FEW_ROWS and _NOT_LEARNED in found:
        found.append(
            f"{len(lesson.taught)} rows are few: a lesson of one fact wants five wordings."
        )
    return list(dict.fromkeys(found))


FEW_ROWS = 4
