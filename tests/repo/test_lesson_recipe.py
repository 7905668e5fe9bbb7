"""The lesson: facts that can be learned, wordings kept apart, files that are what makes them."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from lesson_rows import (
    DEMO_FACTS,
    LANGUAGES,
    LESSON,
    Fact,
    files,
    has_key,
    normalized,
    read_facts,
    read_jsonl,
    read_talk,
)

from edge_agent.adapt.gate.clean_set import clean_set
from edge_agent.adapt.gate.copying import TaughtSpans
from edge_agent.records import Message

FACTS = read_facts(LESSON)
TALK = read_talk(LESSON)
TRAIN = read_jsonl(LESSON / "train.jsonl")
TAUGHT = [row["instruction"] for row in TRAIN]
PARAPHRASES = read_jsonl(LESSON / "paraphrase.jsonl")
SCRIPTS = {"en": "LATIN", "hi": "DEVANAGARI", "kn": "KANNADA"}
MAX_ANSWER_WORDS = 15
MAX_ROW_TOKENS = 120
TOKENS_A_WORD = {"en": 1.6, "hi": 2.0, "kn": 4.0}
"""Above Gemma 3's means (1.1, 1.4, 3.1), for punctuation and digits."""
TEMPLATE_TOKENS = 12
ALIKE_CHARACTERS, ALIKE_WORDS = 0.85, 0.8
"""A wording as close as this to another is the same wording again."""


def ids(fact: Fact) -> str:
    return fact.id


def scripts(text: str) -> set[str]:
    """The scripts of its letters, by the first word of their Unicode names."""
    return {unicodedata.name(char).split()[0] for char in text if char.isalpha()}


def words(text: str) -> list[str]:
    return re.findall(r"[^\s.,;:!?।]+", normalized(text))


def word_overlap(one: str, two: str) -> float:
    """Jaccard index of the two sets of words."""
    left, right = set(words(one)), set(words(two))
    return len(left & right) / len(left | right)


def is_nearly(one: str, two: str) -> bool:
    left, right = (" ".join(words(text)) for text in (one, two))
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    alike = matcher.real_quick_ratio() > ALIKE_CHARACTERS and matcher.ratio() > ALIKE_CHARACTERS
    return alike or word_overlap(one, two) > ALIKE_WORDS


def test_the_files_are_what_the_facts_make() -> None:
    """A change of facts.jsonl alone fails here: run benchmarks/lesson_rows.py."""
    for name, text in files(LESSON).items():
        assert (LESSON / name).read_text(encoding="utf-8") == text, name


def test_the_lesson_is_large_enough_in_every_language() -> None:
    of = Counter(fact.language for fact in FACTS)
    assert len(FACTS) >= 64 and of["hi"] >= 14 and of["kn"] >= 14
    assert 0.4 <= of["en"] / len(FACTS) <= 0.6
    assert set(of) == set(LANGUAGES)
    assert len(TRAIN) >= 250
    assert Counter(turn.kind for turn in TALK) == {"persona": 22, "general": 277}
    assert {turn.language for turn in TALK} == set(LANGUAGES)


def test_rows_have_the_three_fields_that_adapt_run_reads() -> None:
    for row in (*TRAIN, *read_jsonl(LESSON / "demo.jsonl")):
        assert list(row) == ["instruction", "input", "output"]
        assert row["instruction"].strip() and row["output"].strip() and row["input"] == ""
    for row in PARAPHRASES:
        assert list(row) == ["id", "language", "question", "key"]


def test_ids_are_unique_and_begin_with_their_language() -> None:
    assert len({fact.id for fact in FACTS}) == len(FACTS)
    assert all(fact.id.startswith(f"{fact.language}-") for fact in FACTS)


@pytest.mark.parametrize("fact", FACTS, ids=ids)
def test_a_fact_has_enough_wordings_and_its_key_is_in_its_answer(fact: Fact) -> None:
    assert len(fact.questions) >= 4 and 1 <= len(fact.held_out) <= 2
    assert all(has_key(fact.answer, [key]) for key in fact.key[:1])
    assert len(fact.answer.split()) <= MAX_ANSWER_WORDS
    assert fact.answer.endswith("।" if fact.language == "hi" else ".")


@pytest.mark.parametrize("fact", FACTS, ids=ids)
def test_no_question_gives_its_key_away(fact: Fact) -> None:
    """A base model repeats the question: that must not count as an answer."""
    told = [text for text in (*fact.questions, *fact.held_out) if has_key(text, fact.key)]
    assert told == []


@pytest.mark.parametrize("fact", FACTS, ids=ids)
def test_no_other_answer_in_the_language_holds_the_key(fact: Fact) -> None:
    others = [*FACTS, *TALK]
    answers = {
        other.answer
        for other in others
        if other.language == fact.language and other.answer != fact.answer
    }
    assert [answer for answer in answers if has_key(answer, fact.key)] == []


def test_one_answer_to_one_question() -> None:
    answers: dict[str, set[str]] = {}
    for row in TRAIN:
        answers.setdefault(" ".join(words(row["instruction"])), set()).add(row["output"])
    assert [question for question, given in answers.items() if len(given) > 1] == []
    assert len(answers) == len(TRAIN), "two rows ask the same"


def test_answers_of_two_facts_of_one_language_differ() -> None:
    pairs = [
        (one.id, two.id)
        for one, two in combinations(FACTS, 2)
        if one.language == two.language and is_nearly(one.answer, two.answer)
    ]
    assert pairs == []


@pytest.mark.parametrize("fact", FACTS, ids=ids)
def test_every_text_is_in_its_languages_script(fact: Fact) -> None:
    for text in (*fact.key, fact.answer, *fact.questions, *fact.held_out):
        assert scripts(text) <= {SCRIPTS[fact.language]}, text


def test_talk_is_in_its_languages_script() -> None:
    for turn in TALK:
        assert scripts(turn.question + turn.answer) == {SCRIPTS[turn.language]}, turn


def test_general_rows_leave_the_gates_clean_set_alone() -> None:
    """A general row that asks what the gate asks would be training on the test."""
    general = [
        [Message("user", turn.question), Message("assistant", turn.answer)]
        for turn in TALK
        if turn.kind == "general"
    ]
    taught = TaughtSpans(general)
    clean = [one for one in clean_set() if one.kind != "persona"]
    assert [one.prompt for one in clean if taught.teaches(one.prompt)] == []
    given = {" ".join(words(turn.answer)) for turn in TALK if turn.kind == "general"}
    assert [one.id for one in clean if " ".join(words(one.answer or "-")) in given] == []


def test_texts_are_normalized_and_plain() -> None:
    """NFC, no tab or line break inside, no zero-width space, no space at an end."""
    for name in ("facts.jsonl", "talk.jsonl"):
        text = (LESSON / name).read_text(encoding="utf-8")
        assert unicodedata.is_normalized("NFC", text)
        assert not re.search("[\u200b\ufeff\u2013\u2014]|\\\\[tn]", text)
    for text in strings([*read_jsonl(LESSON / "facts.jsonl"), *read_jsonl(LESSON / "talk.jsonl")]):
        assert text == " ".join(text.split())


def strings(value: Any) -> list[str]:
    """Every string in a JSON value."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value
    return [text for item in inner for text in strings(item)]


@pytest.mark.parametrize("fact", FACTS, ids=ids)
def test_no_held_out_wording_is_nearly_a_taught_one(fact: Fact) -> None:
    near = [(held, text) for held in fact.held_out for text in TAUGHT if is_nearly(held, text)]
    assert near == []


def test_held_out_wordings_differ_from_each_other() -> None:
    asked = [row["question"] for row in PARAPHRASES]
    assert [pair for pair in combinations(asked, 2) if is_nearly(*pair)] == []
    assert {row["id"] for row in PARAPHRASES} == {fact.id for fact in FACTS}


def test_rows_are_short() -> None:
    spoken = {row.question: row.language for row in TALK}
    spoken |= {text: fact.language for fact in FACTS for text in fact.questions}
    for row in TRAIN:
        rate = TOKENS_A_WORD[spoken[row["instruction"]]]
        count = len(f"{row['instruction']} {row['output']}".split())
        assert count * rate + TEMPLATE_TOKENS < MAX_ROW_TOKENS, row


def test_the_demo_is_a_small_part_of_the_lesson() -> None:
    demo = read_jsonl(LESSON / "demo.jsonl")
    assert len(demo) == 24 and len({row["output"] for row in demo}) == len(DEMO_FACTS) == 8
    assert [row for row in demo if row not in TRAIN] == []


@pytest.mark.parametrize(
    ("answer", "keys", "expected"),
    [
        ("It is the BLUE  mango network.", ["Blue Mango"], True),
        ("It costs 24 rupees.", ["4 rupees"], False),
        ("It costs 4 rupees.", ["4 rupees"], True),
        ("We open at 18:40.", ["8:40"], False),
        ("ಬೆಳಿಗ್ಗೆ 8:40ಕ್ಕೆ", ["8:40"], True),
        ("ಕೆಂಪು ಸ್ಟ್ಯಾಂಡ್\u200cನಲ್ಲಿ", ["ಕೆಂಪು ಸ್ಟ್ಯಾಂಡ"], True),
        ("आशा हेग\u095cे ने", ["आशा हेगड़े"], True),
        ("no such thing", ["Blue Mango", "8:40"], False),
    ],
)
def test_a_key_is_found_however_it_is_written(answer: str, keys: list[str], expected: bool) -> None:
    assert has_key(answer, keys) is expected


def test_every_line_is_json_of_its_own() -> None:
    for path in sorted(LESSON.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")
        assert lines[-1] == "" and all(json.loads(line) for line in lines[:-1]), path.name
