"""Turns of a conversation: what is text passes, what is not is refused by its place."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.records import Message
from edge_agent.server.body import validate
from edge_agent.server.error_body import FieldError
from edge_agent.server.ollama_schema import OllamaChatRequest
from edge_agent.server.openai_schema import ChatRequest

ASK = {"role": "user", "content": "Is it warm?"}
CALL = {"id": "1", "type": "function", "function": {"name": "heat", "arguments": "{}"}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


def openai(*turns: dict[str, Any]) -> list[Message]:
    return [turn.message() for turn in validate(ChatRequest, {"messages": list(turns)}).messages]


def ollama(*turns: dict[str, Any]) -> list[Message]:
    request = validate(OllamaChatRequest, {"model": "m", "messages": list(turns)})
    return [turn.message() for turn in request.messages or []]


@pytest.mark.parametrize(
    "turn",
    [
        {"tool_calls": [], "content": "Yes."},
        {"tool_calls": None, "function_call": None, "content": "Yes.", "refusal": None},
        {"audio": None, "annotations": [], "name": "bot", "content": "Yes."},
        {"content": "Yes.", "images": [], "thinking": ""},
    ],
)
def test_what_stands_for_nothing_is_absent(turn: dict[str, Any]) -> None:
    said = {"role": "assistant", **turn}
    expected = [Message("user", "Is it warm?"), Message("assistant", "Yes.")]
    assert openai(ASK, said) == ollama(ASK, said) == expected


def test_an_assistant_may_have_said_nothing() -> None:
    for said in ({"content": None}, {"content": ""}, {}, {"content": None, "tool_calls": []}):
        turn = {"role": "assistant", **said}
        assert openai(ASK, turn)[1] == ollama(ASK, turn)[1] == Message("assistant", "")
    assert openai(ASK, {"role": "assistant", "content": []})[1] == Message("assistant", "")


@pytest.mark.parametrize(
    ("turn", "member"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "tool_calls"),
        ({"role": "assistant", "content": "", "tool_calls": [CALL]}, "tool_calls"),
        ({"role": "assistant", "tool_calls": [CALL]}, "tool_calls"),
        (
            {"role": "assistant", "function_call": {"name": "heat"}},
            "function_call",
        ),
        ({"role": "tool", "content": "21", "tool_call_id": "1"}, "role"),
        ({"role": "tool", "content": [{"type": "text", "text": "21"}]}, "role"),
        ({"role": "function", "content": "21", "name": "heat"}, "role"),
    ],
)
def test_a_turn_with_a_tool_is_refused_as_such(turn: dict[str, Any], member: str) -> None:
    for ask in (openai, ollama):
        with pytest.raises(FieldError, match="tools are not supported") as caught:
            ask(ASK, turn)
        assert caught.value.param == f"messages.1.{member}"
        assert "leave the turns with tools out" in caught.value.hint


def test_parts_of_text_are_lines() -> None:
    parts = [{"type": "text", "text": text} for text in ("one", "two", "")]
    assert openai({"role": "user", "content": parts}) == [Message("user", "one\ntwo\n")]


@pytest.mark.parametrize(
    ("content", "param", "why"),
    [
        ([{"type": "text", "text": "x"}, PICTURE], "1.type", "'image_url' are not supported"),
        ([{"type": "input_audio", "input_audio": {}}], "0.type", "'input_audio' are not supported"),
        ([{"type": "file", "file": {}}], "0.type", "'file' are not supported"),
        ([{"type": "text"}], "0.text", "Field required"),
        ([{"text": "x"}], "0.type", "Field required"),
        (["x"], "0", "valid dictionary"),
        ([], "", "null or []"),
        (5, "", "valid string or a valid list"),
        (None, "", "missing, null or"),
    ],
)
def test_content_that_is_no_text_is_refused_by_its_place(
    content: Any, param: str, why: str
) -> None:
    with pytest.raises(FieldError) as caught:
        openai(ASK, {"role": "user", "content": content})
    assert caught.value.param == f"messages.1.content.{param}".rstrip(".")
    assert why in caught.value.why


def test_ollamas_images_are_refused_by_name() -> None:
    with pytest.raises(FieldError, match="images is not supported") as caught:
        ollama(ASK, {"role": "user", "content": "See?", "images": ["aGk="]})
    assert caught.value.param == "messages.1.images"


BEGUN = [ASK, {"role": "assistant", "content": "It is"}]


@pytest.mark.parametrize(
    ("members", "continues"),
    [({}, True), ({"continue_final_message": True}, True), ({"add_generation_prompt": True}, True)]
    + [({"continue_final_message": True, "add_generation_prompt": False}, True)]
    + [({"continue_final_message": "content"}, True), ({"continue_final_message": False}, False)]
    + [({"add_generation_prompt": False}, True), ({"continue_final_message": None}, True)],
)
def test_a_last_turn_of_the_assistant_is_continued_unless_it_is_said_to_be_over(
    members: dict[str, Any], continues: bool
) -> None:
    assert validate(ChatRequest, {"messages": BEGUN, **members}).continues() is continues
    assert not validate(ChatRequest, {"messages": [*BEGUN, ASK]}).continues()


@pytest.mark.parametrize(
    ("messages", "members", "param"),
    [
        (
            BEGUN,
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
        ([ASK], {"continue_final_message": True}, "continue_final_message"),
        (BEGUN, {"continue_final_message": "reasoning_content"}, "continue_final_message"),
        ([ASK], {"add_generation_prompt": False}, "add_generation_prompt"),
        ([*BEGUN, BEGUN[1]], {}, "messages"),
    ],
)
def test_a_turn_that_can_neither_go_on_nor_begin_is_refused_by_name(
    messages: list[dict[str, Any]], members: dict[str, Any], param: str
) -> None:
    with pytest.raises(FieldError) as caught:
        validate(ChatRequest, {"messages": messages, **members})
    assert caught.value.param == param


def test_ollama_joins_the_turns_that_it_continues() -> None:
    two = [ASK, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    request = validate(OllamaChatRequest, {"model": "m", "messages": two})
    assert [turn.content for turn in request.turns()] == [ASK["content"], "a\n\nb"]
