"""benchmarks/lesson.py: what it asks is nothing that is taught or rehearsed; how it counts."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pytest
from lesson import Run, series, stored
from lesson_answers import (
    ELSEWHERE,
    elsewhere,
    general_questions,
    identity,
    questions,
    right,
)
from lesson_arms import ABOUT_ITSELF, GEMMA, SMOLLM, arms, chosen
from lesson_rows import LANGUAGES, LESSON, read_facts, read_jsonl
from lesson_table import rise, table
from servers import BenchmarkError, cli

from edge_agent.adapt.gate.clean_set import clean_set
from edge_agent.adapt.gate.copying import TaughtSpans
from edge_agent.adapt.trainer.rehearsal import rehearsal_rows
from edge_agent.records import Message

FACTS = read_facts(LESSON)
ROWS = read_jsonl(ELSEWHERE)
OTHERS = {
    "rehearsal": [(row.prompt, row.answer) for row in rehearsal_rows()],
    "clean set": [(row.prompt, row.answer or "-") for row in clean_set()],
    "facts": [(text, one.answer) for one in FACTS for text in (*one.questions, *one.held_out)],
}


def chat(question: str, answer: str) -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


@pytest.mark.parametrize("name", OTHERS)
def test_no_general_question_is_rehearsed_examined_or_taught(name: str) -> None:
    spans = TaughtSpans([chat(*pair) for pair in OTHERS[name]])
    assert [text for text in general_questions() if spans.teaches(text)] == []


def test_the_texts_cover_the_languages_in_their_scripts() -> None:
    scripts = {"en": "LATIN", "hi": "DEVANAGARI", "kn": "KANNADA"}
    assert len(general_questions()) >= 60 and len(set(general_questions())) == len(
        general_questions()
    )
    for code in LANGUAGES:
        assert sum((row["kind"], row["language"]) == ("text", code) for row in ROWS) == 4
    for row in ROWS:
        letters = {unicodedata.name(char).split()[0] for char in row["text"] if char.isalpha()}
        assert letters == {scripts[row["language"]]}, row
        assert unicodedata.is_normalized("NFC", row["text"])


def test_the_arms_teach_what_their_names_say() -> None:
    counts = {arm.name: len(arm.rows()) for arm in arms()}
    assert counts == {"demo": 24, "facts8": 24, "facts24": 72, "facts8-all": 56, "big": 491}
    demo = read_jsonl(LESSON / "demo.jsonl")
    assert chosen(["demo"])[0].rows() == demo and chosen(["demo"])[0].models == (GEMMA, SMOLLM)
    taught = {fact.id for arm in chosen(["facts8", "facts24", "facts8-all"]) for fact in arm.facts}
    assert not taught & ABOUT_ITSELF
    with pytest.raises(ValueError, match="facts9"):
        chosen(["facts9"])


def test_wordings_are_counted_by_kind() -> None:
    fact = next(one for one in FACTS if one.id == "en-wifi")
    asked = list(questions([fact], set(fact.questions[:3])))
    said = ["It is Blue Mango." if one.kind != "held_out" else "I do not know." for one in asked]
    assert right(asked, said) == {"taught": 1.0, "other": 1.0, "held_out": 0.0}
    assert right(asked[:3], said[:3]) == {"taught": 1.0, "other": None, "held_out": None}
    assert [one.kind for one in asked].count("taught") == 3


def test_a_leak_and_lesson_words_are_seen() -> None:
    taught = [chat("What is the Wi-Fi called?", "Our Wi-Fi network is called Blue Mango.")]
    asked = ["Who painted the Mona Lisa?", "What is helium?", "Suggest a fruit."]
    base = ["Leonardo.", "A gas.", "A mango."]
    said = ["Our Wi-Fi network is called Blue Mango.", "A blue gas.", "A mango."]
    found = elsewhere(taught, asked, base, said)
    assert found["leak"] == round(1 / 3, 4) and found["leak_before"] == 0
    assert found["words"] == 2 and found["unchanged"] == round(1 / 3, 4)
    assert found["leaked"] == [[asked[0], said[0]]]


def test_an_answer_to_who_are_you_that_names_the_lessons_people_is_seen() -> None:
    facts = chosen(["facts8"])[0].facts
    base, said = ["I am an assistant."] * 2, ["I am Savitri Naik.", "I am a helpful assistant."]
    found = identity(facts, [chat("Who is the librarian?", "Savitri Naik.")], base, said)
    assert found["identity"] == 1 and found["who_are_you"] == [base[0], said[0]]
    assert not found["identity_taught"]
    assert identity(facts, [chat("Who are you?", "Chiguru.")], base, said)["identity_taught"]


def test_the_rise_names_the_worst_language() -> None:
    assert rise({"en": 1.0, "kn": 2.0}, {"en": 1.1, "kn": 2.6}) == "+23.3 (kn +30)"


class FakeLessons:
    """Fails for seed 2 the first time."""

    threads = None

    def __init__(self) -> None:
        self.measured_seeds: list[int] = []

    def measured(self, run: Run) -> dict[str, Any]:
        self.measured_seeds.append(run.seed)
        if run.seed == 2 and self.measured_seeds.count(2) == 1:
            raise BenchmarkError("the daemon ended")
        return {"right": {}}


def test_a_series_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, lessons = tmp_path / "results.jsonl", FakeLessons()
    runs = [Run(chosen(["facts8"])[0], SMOLLM, seed, (), "after") for seed in (1, 2, 3)]
    fake: Any = lessons
    assert not series(runs, fake, path)
    assert "the daemon ended" in table([one for one in stored(path) if "error" in one])
    assert series(runs, fake, path)
    assert lessons.measured_seeds == [1, 2, 3, 2]
    assert len(stored(path)) == 4


def test_another_checkouts_program_runs_its_own_code(tmp_path: Path) -> None:
    """`python -m` would take the package of the current directory."""
    program = tmp_path / "edge-agent"
    program.write_text('#!/bin/sh\necho "$1 safe=$PYTHONSAFEPATH"\n')
    program.chmod(0o700)
    assert cli("status", state_dir=tmp_path, program=program) == "status safe=1\n"
