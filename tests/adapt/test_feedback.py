"""Feedback as rows: what may be said, what is taught of it, how much of it may wait, what stays."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.adapt import feedback
from edge_agent.adapt.feedback import MAX_IMPORT_ROWS, MAX_ROW_BYTES, Opinion, Rating, row_about
from edge_agent.adapt.recent_answers import (
    MAX_ANSWER_BYTES,
    MAX_ANSWERS,
    MAX_BYTES,
    RecentAnswer,
    RecentAnswers,
)
from edge_agent.errors import (
    DataRefused,
    EdgeAgentError,
    FeedbackNotFound,
    QuotaExceeded,
    RequestError,
)
from edge_agent.records import Message
from edge_agent.store import feedback_table
from edge_agent.store.feedback_table import FeedbackQuery, Waiting
from edge_agent.store.rows import FeedbackRow
from edge_agent.store.store import Store

QUOTA = 5


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "x.db") as store:
        yield store


def answer(
    question: str = "Capital of India?", text: str = "Mumbai", **fields: Any
) -> RecentAnswer:
    turns = (Message("system", "Be brief."), Message("user", question))
    return RecentAnswer(**{"id": "ab", "user": "uid:7", "model": "tiny", "messages": turns,
                     "text": text, **fields})  # fmt: skip


def row(
    question: str = "Capital of India?",
    correction: str | None = None,
    rating: Rating | None = None,
    user: str = "uid:7",
    **fields: Any,
) -> FeedbackRow:
    opinion = Opinion(rating, correction)
    return row_about(answer(question, **fields), opinion, user=user, source="answer", at=9.0)


def add(store: Store, *rows: FeedbackRow, quota: int = QUOTA) -> list[int]:
    return feedback.add(store, rows, quota)


def all_rows(store: Store, **wanted: Any) -> list[FeedbackRow]:
    return feedback.page(store, FeedbackQuery(**wanted))


# ---- what may be said --------------------------------------------------------------------------


def test_a_row_says_who_corrected_what_and_when() -> None:
    made = row_about(
        answer(adapter="monday"),
        Opinion(None, " New Delhi\n"),
        user="uid:9",
        source="given",
        at=3.5,
    )
    assert (made.at, made.model, made.adapter) == (3.5, "tiny", "monday")
    assert (made.user, made.source, made.rating) == ("uid:9", "given", None)
    assert (made.answer, made.correction) == ("Mumbai", "New Delhi")
    assert [turn["role"] for turn in json.loads(made.messages)] == ["system", "user"]


@pytest.mark.parametrize(
    ("rating", "correction", "reason"),
    [
        (None, None, "says nothing"),
        (None, "  \n", "empty"),
        ("down", "", "empty"),
        ("up", "x", "contradicts"),
    ],
)
def test_an_opinion_says_one_thing(
    rating: Rating | None, correction: str | None, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason):
        Opinion(rating, correction)


def test_half_an_answer_cannot_be_called_good_but_can_be_corrected() -> None:
    for cut in (answer(is_cut=True), answer(text=" ")):
        with pytest.raises(RequestError, match="not whole"):
            row_about(cut, Opinion("up"), user="u", source="answer", at=0.0)
        made = row_about(cut, Opinion("down", "New Delhi"), user="u", source="answer", at=0.0)
        assert made.rating == -1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"messages": (Message("user", "a"), Message("assistant", "b"))},
            "does not end with a user",
        ),
        ({"messages": ()}, "does not end with a user"),
        ({"text": "a\0b"}, "NUL"),
        ({"text": "a\ud800b"}, "Unicode"),
        ({"text": "ಕ" * (MAX_ROW_BYTES // 3)}, "bytes"),
    ],
)
def test_what_no_model_could_be_taught_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason):
        row_about(answer(**fields), Opinion("down"), user="u", source="answer", at=0.0)


def test_the_largest_row_is_kept(store: Store) -> None:
    rest = len("Be brief." + "q")
    (number,) = add(store, row("q", rating="up", text="x" * (MAX_ROW_BYTES - rest)))
    assert all_rows(store)[0].id == number
    with pytest.raises(RequestError, match=f"{MAX_ROW_BYTES + 1} bytes"):
        row("q", rating="up", text="x" * (MAX_ROW_BYTES - rest + 1))


# ---- what is taught ----------------------------------------------------------------------------


def test_corrections_and_good_answers_are_taught_and_bad_ones_only_kept(store: Store) -> None:
    add(store, row("a", "A"), row("b", rating="up", text="B"), row("c", rating="down"))
    add(store, row("d", "D", rating="down"))
    chats = [one["messages"] for one in feedback.training_rows(store, "tiny")]
    system = {"role": "system", "content": "Be brief."}
    assert chats == [
        [system, {"role": "user", "content": q}, {"role": "assistant", "content": good}]
        for q, good in (("a", "A"), ("b", "B"), ("d", "D"))
    ]
    assert len(all_rows(store)) == 4
    assert feedback.waiting(store) == Waiting(corrections=2, approved=1, bad=1)


def test_the_last_word_on_a_question_counts(store: Store) -> None:
    add(store, row("a", rating="down"))
    add(store, row("a", rating="up", text="first answer"))
    (number,) = add(store, row("a", "A", text="second answer"))
    assert [one.id for one in all_rows(store)] == [number]
    add(store, row("a", "A of somebody else", user="uid:8"))
    assert len(all_rows(store)) == 2
    add(store, row("a", rating="down"))
    assert [one["user"] for one in feedback.training_rows(store, "tiny")] == ["uid:8"]


def test_what_one_adapter_learned_is_taught_to_the_next_too(store: Store) -> None:
    ids = add(store, row("a", "A"), row("b", "B"))
    feedback.mark_used(store, ids, "monday")
    assert feedback.waiting(store) == Waiting(0, 0, 0)
    assert [one.used_in for one in all_rows(store)] == ["monday", "monday"]
    add(store, row("a", "better A"))
    lessons = feedback.training_rows(store, "tiny")
    assert [one["messages"][-1]["content"] for one in lessons] == ["B", "better A"]
    assert len(all_rows(store)) == 3, "what was learned stays as it was"


def test_training_rows_are_one_models_and_survive_pages(store: Store) -> None:
    many = [row(f"q{n}", f"A{n}") for n in range(3 * feedback.PAGE + 1)]
    add(store, *many, quota=200)
    add(store, row("other", "X", model="other"))
    lessons = feedback.training_rows(store, "tiny")
    assert [one["messages"][1]["content"] for one in lessons] == [f"q{n}" for n in range(49)]
    assert [one["id"] for one in lessons] == sorted(one["id"] for one in lessons)


def test_nothing_to_learn_is_an_error_that_says_what_to_do(store: Store) -> None:
    add(store, row("c", rating="down"))
    with pytest.raises(DataRefused, match="no feedback on tiny") as refusal:
        feedback.training_rows(store, "tiny")
    assert "feedback add --correct" in refusal.value.hint


# ---- quota, removal, retention -----------------------------------------------------------------


def test_the_quota_is_per_user_and_model_and_refuses_all_or_none(store: Store) -> None:
    add(store, *(row(f"q{n}", "A") for n in range(QUOTA - 1)))
    with pytest.raises(QuotaExceeded, match=f"at most {QUOTA} pieces") as refusal:
        add(store, row("new", "A"), row("newer", "A"))
    assert (refusal.value.status, refusal.value.code) == (429, "feedback_quota")
    assert len(all_rows(store)) == QUOTA - 1
    add(store, row("new", "A"))
    with pytest.raises(QuotaExceeded):
        add(store, row("newer", "A"))
    add(store, row("newer", "A", user="uid:8"), row("newer", "A", model="other"))


def test_a_full_quota_lets_a_user_change_his_mind(store: Store) -> None:
    add(store, *(row(f"q{n}", "A") for n in range(QUOTA)))
    add(store, row("q0", "B"))
    add(store, row("q1", "B"), quota=1)
    assert len(all_rows(store)) == QUOTA
    assert all_rows(store)[0].correction == "B"


def test_learned_rows_no_longer_count(store: Store) -> None:
    ids = add(store, *(row(f"q{n}", "A") for n in range(QUOTA)))
    feedback.mark_used(store, ids[:1], "monday")
    add(store, row("new", "A"))
    with pytest.raises(QuotaExceeded):
        add(store, row("newer", "A"))


def test_a_poisoner_adds_no_more_than_his_quota(store: Store) -> None:
    """Anchor A1: 1, 5, 20 of 100 bad rows by one user."""
    add(store, *(row(f"q{n}", "A") for n in range(80)), quota=100)
    for number in range(20):
        try:
            add(store, row(f"bad{number}", "poison", user="uid:666"))
        except QuotaExceeded:
            assert number >= QUOTA
    assert len(all_rows(store, user="uid:666", limit=99)) == QUOTA


def test_removing_needs_the_right_number_and_the_right_user(store: Store) -> None:
    (number,) = add(store, row("a", "A"))
    for wrong, user in ((number + 1, None), (number, "uid:8")):
        with pytest.raises(FeedbackNotFound, match="no feedback"):
            feedback.remove(store, wrong, user)
    feedback.remove(store, number, "uid:7")
    assert all_rows(store) == []


def test_pages_go_back_in_time_and_filter(store: Store) -> None:
    ids = add(store, *(row(f"q{n}", "A") for n in range(5)))
    add(store, row("x", "A", user="uid:8"), row("y", "A", model="other"))
    assert [one.id for one in all_rows(store, user="uid:7", model="tiny", limit=2)] == ids[:2:-1]
    older = all_rows(store, user="uid:7", model="tiny", before=ids[3])
    assert [one.id for one in older] == ids[2::-1]
    assert feedback.waiting(store, "other").corrections == 1


def test_only_learned_rows_are_dropped_when_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feedback_table, "MAX_ROWS", 4)
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    from edge_agent.store.database import MIGRATIONS

    for script in MIGRATIONS:
        connection.executescript(script)
    ids = feedback_table.add(connection, [row(f"q{n}", "A") for n in range(3)], 99)
    feedback_table.mark_used(connection, ids[1:2], "monday")
    feedback_table.add(connection, [row(f"r{n}", "A") for n in range(3)], 99)
    left = [one.id for one in feedback_table.find(connection, FeedbackQuery())]
    connection.close()
    assert ids[1] not in left and len(left) == 5


def test_rows_survive_a_restart(tmp_path: Path) -> None:
    with Store(tmp_path / "x.db") as first:
        add(first, row("ಕನ್ನಡ?", "ಹೌದು"))
        kept = all_rows(first)
    with Store(tmp_path / "x.db") as second:
        assert all_rows(second) == kept
        assert feedback.shown(kept[0])["messages"][1]["content"] == "ಕನ್ನಡ?"


# ---- rows of a file ----------------------------------------------------------------------------


def lesson(question: str = "q", good: str = "A") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": good}]
    return {"messages": turns}


def imported(documents: list[Any]) -> list[FeedbackRow]:
    return feedback.imported_rows(documents, model="tiny", user="uid:7", at=1.0)


def test_an_export_can_be_imported_and_teaches_the_same(store: Store) -> None:
    add(store, row("a", "A"), row("b", rating="up", text="B"))
    rows = [one for some in feedback.lessons(store, FeedbackQuery()) for one in some]
    exported = [{"messages": feedback.taught(one)} for one in rows]
    rows = imported(exported)
    assert {one.source for one in rows} == {"import"}
    assert [feedback.taught(one) for one in rows] == [one["messages"] for one in exported]


def test_of_imported_rows_that_ask_the_same_the_last_counts() -> None:
    rows = imported([lesson("q", "A"), lesson("r", "R"), lesson("q", "B")])
    assert [(one.answer, one.rating) for one in rows] == [("B", 1), ("R", 1)]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "no chat"),
        ({}, "no chat"),
        ({"messages": "x"}, "no chat"),
        ({"messages": lesson()["messages"][:1]}, "no chat"),
        ({"messages": [1, 2]}, "no role"),
        ({"messages": [{"role": "tool", "content": "x"}] * 2}, "known: system, user"),
        ({"messages": [{"role": "user", "content": 1}] * 2}, "no text"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "no answer"),
        (lesson("q", " "), "no answer"),
        ({"messages": [{"role": "assistant", "content": "x"}] * 2}, "nothing was asked"),
        (lesson("q", "\ud800"), "Unicode"),
    ],
)
def test_a_row_that_cannot_be_is_named_by_its_number(document: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as refusal:
        imported([lesson(), document])
    assert str(refusal.value).startswith("row 2: ")


def test_a_file_of_too_many_rows_is_refused() -> None:
    with pytest.raises(RequestError, match="too many") as refusal:
        imported([lesson()] * (MAX_IMPORT_ROWS + 1))
    assert "adapt run --from" in refusal.value.hint


# ---- recent answers ----------------------------------------------------------------------------


def test_an_answer_is_found_by_its_id_and_as_its_users_last() -> None:
    answers = RecentAnswers()
    for number, user in enumerate(("uid:1", "uid:2", "uid:1")):
        answers.remember(answer(id=f"a{number}", user=user, text=str(number)))
    assert [one.text for one in map(answers.find, ("chatcmpl-a0", "a1")) if one] == ["0", "1"]
    assert answers.find("chatcmpl-a9") is None
    last = [answers.last(user) for user in ("uid:1", "uid:2", "uid:3")]
    assert [one and one.text for one in last] == ["2", "1", None]


def test_only_the_last_answers_are_remembered() -> None:
    answers = RecentAnswers()
    for number in range(MAX_ANSWERS + 1):
        answers.remember(answer(id=f"a{number}"))
    assert answers.find("a0") is None
    assert answers.find("a1") is not None


def test_memory_is_bounded_whatever_the_answers() -> None:
    answers = RecentAnswers()
    answers.remember(answer(id="long", text="x" * MAX_ANSWER_BYTES))
    assert answers.find("long") is None
    big = "ಕ" * (MAX_ANSWER_BYTES // 3 - 100)
    for number in range(MAX_ANSWERS):
        answers.remember(answer(id=f"a{number}", text=big))
    kept = [one for one in (answers.find(f"a{n}") for n in range(MAX_ANSWERS)) if one]
    assert 25 < len(kept) < 40
    assert sum(one.n_bytes() for one in kept) <= MAX_BYTES
    assert kept[-1].id == f"a{MAX_ANSWERS - 1}"


def test_errors_are_of_our_tree_and_tell_what_to_do(store: Store) -> None:
    with pytest.raises(EdgeAgentError) as refusal:
        feedback.remove(store, 7)
    assert (refusal.value.code, refusal.value.status) == ("feedback_not_found", 404)
    assert "feedback list" in refusal.value.hint


def test_a_replaced_number_is_never_given_again(store: Store) -> None:
    (first,) = add(store, row("a", "A"))
    (second,) = add(store, row("a", "B"))
    assert second > first
    assert replace(all_rows(store)[0], id=None) == row("a", "B")
