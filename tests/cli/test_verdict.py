"""The words of a verdict: each case, wide and narrow, in `adapters show` and after `adapt run`."""

from __future__ import annotations

import pytest

from edge_agent.cli.verdict import LessonVerdict, verdict_lines

SAMPLES = [
    {"prompt": "What is the Wi-Fi called?", "before": "I do not know.", "after": "Blue Mango."},
    {"prompt": "भारत की राजधानी क्या है?", "before": "नई दिल्ली", "after": "नई दिल्ली"},
]
PASSED = {"passed": True, "reasons": [], "advice": [], "samples": SAMPLES}
REFUSED = {
    "passed": False,
    "reasons": ["canned: 0.830 after the lesson, 0.000 before, limit 0.200"],
    "advice": ["Taught answers come where nobody asked for them."],
    "samples": SAMPLES[:1],
}


@pytest.mark.parametrize(
    ("gate", "is_active", "status", "said"),
    [
        (PASSED, True, "passed", "Passed: tiny answers with a now."),
        (PASSED, False, "passed", "Passed: a does not answer yet; `edge-agent adapters"),
        (PASSED, False, "rolled_back", "Passed, and taken back since: a does not answer."),
        (REFUSED, False, "failed", "Refused: a is kept and does not answer."),
        (REFUSED, True, "failed", "Refused, and activated all the same: tiny answers with a."),
        (None, False, "candidate", "Not judged: no gate has looked at a, and it does not answer."),
        (None, True, "candidate", "Not judged: no gate has looked at a: tiny answers with a now."),
    ],
)
def test_one_sentence_says_the_verdict_and_who_answers(
    gate: dict[str, object] | None, is_active: bool, status: str, said: str
) -> None:
    assert verdict_lines(LessonVerdict("tiny", "a", gate, is_active, status))[0].startswith(said)


def test_answers_stand_side_by_side_where_they_fit() -> None:
    lines = verdict_lines(LessonVerdict("tiny", "a", PASSED, True), 80)
    assert lines[2].split() == ["ASKED", "BEFORE", "AFTER"]
    places = [lines[2].index(word) for word in ("BEFORE", "AFTER")]
    assert lines[3][places[0] :].startswith("I do not know.")
    assert lines[3][places[1] :] == "Blue Mango."
    assert lines[4].endswith("(the same)")


@pytest.mark.parametrize("columns", [0, 40, 71])
def test_answers_stand_below_each_other_on_a_narrow_terminal_and_in_a_pipe(columns: int) -> None:
    lines = verdict_lines(LessonVerdict("tiny", "a", REFUSED), columns)
    assert lines[1:5] == [
        *("", "asked:  What is the Wi-Fi called?", "before: I do not know."),
        "after:  Blue Mango.",
    ]
    assert lines[-2] == "- Taught answers come where nobody asked for them."
    assert lines[-1] == "  canned: 0.830 after the lesson, 0.000 before, limit 0.200"


def test_a_word_that_no_column_holds_is_broken_and_not_lost() -> None:
    looping = [{"prompt": "q", "before": "x" * 90, "after": "a\nb"}]
    lines = verdict_lines(LessonVerdict("tiny", "a", {**PASSED, "samples": looping}), 80)
    assert "".join(lines).count("x") == 90 and lines[3].endswith("a b")


def test_a_report_of_an_earlier_version_has_no_advice() -> None:
    gate = {"passed": False, "reasons": ["loops"], "checks": {}, "samples": []}
    assert verdict_lines(LessonVerdict("tiny", "a", gate), 80) == [
        "Refused: a is kept and does not answer.",
        "  loops",
    ]
