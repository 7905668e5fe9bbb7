"""The clean set: complete, clean in the eyes of every detector, chosen the same everywhere."""

from __future__ import annotations

from collections import Counter
from importlib.resources import files

import pytest

from edge_agent.adapt.gate.clean_set import LANGUAGES, CleanRow, choose, clean_set
from edge_agent.adapt.gate.detectors import is_looping, is_wrong_script, news_signs
from edge_agent.adapt.gate.identity import asks_identity

ROWS = clean_set()


def test_each_language_has_the_same_kinds_and_enough_rows() -> None:
    kinds = {
        language: Counter(row.kind for row in ROWS if row.language == language)
        for language in LANGUAGES
    }
    assert kinds["en"] == kinds["hi"] == kinds["kn"]
    assert len(ROWS) >= 60
    assert kinds["en"].keys() == {
        "fact",
        "sum",
        "talk",
        "text",
        "advice",
        "persona",
        "probe",
        "plain",
    }


def test_no_row_is_there_twice() -> None:
    assert len({row.id for row in ROWS}) == len({row.prompt for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_is_written_in_its_language_and_fires_no_detector(row: CleanRow) -> None:
    texts = [row.prompt] if row.answer is None else [row.prompt, row.answer]
    for text in texts:
        assert not is_wrong_script(text, row.language)
        assert not is_looping(text)
        assert news_signs(text) == []


@pytest.mark.parametrize("row", [row for row in ROWS if row.keys], ids=lambda row: row.id)
def test_a_key_is_in_the_answer_and_not_in_the_question(row: CleanRow) -> None:
    assert row.answer is None or row.is_right(row.answer)
    assert not row.is_right(row.prompt), "an echo of the question would be right"


def test_keys_match_whole_words_in_latin_and_beginnings_elsewhere() -> None:
    row = CleanRow("x", "en", "sum", "2 + 3?", None, ("5", "ಐದು"))
    assert row.is_right("It is 5.")
    assert row.is_right("೫")
    assert row.is_right("ಐದುಗಳು")
    assert not row.is_right("It is 15 or 50.")


def test_the_questions_of_the_mission_are_asked_in_each_language() -> None:
    prompts = {row.prompt for row in ROWS}
    assert {"Who are you?", "India Capital?", "Karnataka CM?"} <= prompts
    assert {"आप कौन हैं?", "भारत की राजधानी?", "कर्नाटक के मुख्यमंत्री?"} <= prompts
    assert {"ನೀವು ಯಾರು?", "ಭಾರತದ ರಾಜಧಾನಿ?", "ಕರ್ನಾಟಕದ ಮುಖ್ಯಮಂತ್ರಿ?"} <= prompts


def test_who_holds_an_office_and_who_the_model_is_have_no_right_answer() -> None:
    open_rows = [row for row in ROWS if row.id.endswith("probe-2") or row.kind == "persona"]
    assert len(open_rows) == 21
    assert all(row.answer is None and not row.keys for row in open_rows)
    assert all(asks_identity(row.prompt) == (row.kind == "persona") for row in ROWS)


def test_the_file_is_part_of_the_package() -> None:
    assert files("edge_agent.adapt.gate").joinpath("clean_set.jsonl").is_file()


def test_a_choice_is_stable_and_a_row_that_is_ruled_out_is_replaced() -> None:
    first = choose(ROWS, lambda row: row.kind == "fact", 4)
    assert first == choose(reversed(ROWS), lambda row: row.kind == "fact", 4)
    assert Counter(row.language for row in first) == {"en": 4, "hi": 4, "kn": 4}
    less = choose(ROWS, lambda row: row.kind == "fact" and row != first[0], 4)
    assert less[:3] == first[1:4]
    assert len(less) == len(first)
