"""Members that other servers obey: refused by name where they ask for something, else let pass."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.errors import EdgeAgentError
from edge_agent.server.body import validate
from edge_agent.server.error_body import FieldError
from edge_agent.server.ollama_schema import OllamaChatRequest
from edge_agent.server.openai_schema import ChatRequest, CompletionRequest

TURNS = [{"role": "user", "content": "hi"}]
ORDER = [
    "penalties",
    "dry",
    "top_n_sigma",
    "top_k",
    "typ_p",
    "top_p",
    "min_p",
    "xtc",
    "temperature",
]
NEUTRAL: dict[str, list[Any]] = {
    "mirostat": [0],
    "mirostat_tau": [5.0],
    "dry_multiplier": [0, 0.0],
    "dry_base": [1.75],
    "dry_sequence_breakers": [["\n"]],
    "xtc_probability": [0],
    "xtc_threshold": [0.1],
    "top_n_sigma": [-1, 0],
    "dynatemp_range": [0.0],
    "adaptive_target": [-1.0],
    "min_keep": [0, 1],
    "t_max_predict_ms": [0, -1],
    "n_indent": [0],
    "n_cmpl": [1],
    "n_keep": [0, -1, 5],
    "id_slot": [-1],
    "post_sampling_probs": [False],
    "timings_per_token": [False],
    "return_progress": [False],
    "return_tokens": [False],
    "response_fields": [[]],
    "verbose": [False],
    "grammar": [""],
    "grammar_triggers": [[]],
    "samplers": [ORDER, ORDER[1:], "edskypmxt", [], "", ["top_k", "top_p", "temp"]],
    "store": [False],
    "user": ["me"],
    "metadata": [{"a": "b"}],
    "cat_pictures": [True, {"many": 1}],
}
ASKING: dict[str, list[Any]] = {
    "mirostat": [1, 2, 2.0],
    "dry_multiplier": [0.8],
    "xtc_probability": [0.5],
    "top_n_sigma": [1.0],
    "dynatemp_range": [0.5],
    "adaptive_target": [0.0, 0.5],
    "min_keep": [2],
    "t_max_predict_ms": [50],
    "n_indent": [4],
    "n_cmpl": [2],
    "id_slot": [0],
    "post_sampling_probs": [True],
    "timings_per_token": [True],
    "return_progress": [True],
    "return_tokens": [True],
    "response_fields": [["content"]],
    "verbose": [True],
    "grammar": ['root ::= "a"'],
    "samplers": [["top_p", "top_k", "temperature"], ["top_k"], ["none", *ORDER], "pkt"],
    "store": [True],
}
CHAT_NEUTRAL: dict[str, list[Any]] = {
    "chat_template_kwargs": [{}, {"enable_thinking": False}],
    "reasoning_effort": ["none"],
    "reasoning_format": ["auto", "none"],
    "parallel_tool_calls": [True, False],
    "modalities": [["text"]],
    "verbosity": ["medium"],
    "function_call": ["none", "auto"],
}
CHAT_ASKING: dict[str, list[Any]] = {
    "chat_template_kwargs": [{"enable_thinking": True}, {"tone": "dry"}],
    "reasoning_effort": ["low", "high"],
    "modalities": [["text", "audio"]],
    "audio": [{"voice": "alloy"}],
    "verbosity": ["low"],
    "web_search_options": [{}],
    "function_call": [{"name": "f"}],
}


def chat(**members: Any) -> ChatRequest:
    return validate(ChatRequest, {"messages": TURNS, **members})


def text(**members: Any) -> CompletionRequest:
    return validate(CompletionRequest, {"prompt": "x", **members})


def ollama(**options: Any) -> OllamaChatRequest:
    return validate(OllamaChatRequest, {"model": "m", "messages": TURNS, "options": options})


def refusal(request_of: Any, name: str, value: Any) -> FieldError:
    with pytest.raises(FieldError) as caught:
        request_of(**{name: value})
    return caught.value


@pytest.mark.parametrize("name", [*NEUTRAL, *CHAT_NEUTRAL])
def test_what_asks_for_nothing_passes(name: str) -> None:
    for value in [None, *NEUTRAL.get(name, []), *CHAT_NEUTRAL.get(name, [])]:
        assert chat(**{name: value}).sampling() == chat().sampling()
        if name in NEUTRAL:
            assert text(**{name: value}).sampling() == text().sampling()


@pytest.mark.parametrize("name", ASKING)
def test_what_asks_is_refused_by_its_name_on_both_routes(name: str) -> None:
    for value in ASKING[name]:
        for request_of in (chat, text):
            error = refusal(request_of, name, value)
            assert (error.param, error.status) == (name, 400) and error.why and error.hint


@pytest.mark.parametrize("name", CHAT_ASKING)
def test_what_asks_of_a_chat_is_refused_by_its_name(name: str) -> None:
    for value in CHAT_ASKING[name]:
        assert refusal(chat, name, value).param == name


def test_samplers_at_work_must_stand_in_our_order() -> None:
    chat(samplers=["top_k", "typ_p", "top_p", "temperature"], typical_p=0.9)
    with pytest.raises(FieldError, match="samplers"):
        chat(samplers=["top_k", "top_p", "temperature"], typical_p=0.9)
    chat(samplers=["temperature", "top_p"], temperature=1, top_k=0, top_p=0.5)
    chat(samplers=["temperature"], temperature=0)


@pytest.mark.parametrize(
    "options",
    [{"mirostat": 0}, {"tfs_z": 1.0}, {"penalize_newline": True}, {"num_keep": 5}, {"numa": False}]
    + [{"num_ctx": 99_999}, {"num_thread": 3, "num_gpu": 0, "use_mmap": True}, {"typical_p": 0.7}],
)
def test_ollamas_options_pass_where_they_change_nothing(options: dict[str, Any]) -> None:
    assert ollama(**options).sampling_options().sampling().typical_p == options.get("typical_p", 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("mirostat", 2), ("tfs_z", 0.5), ("penalize_newline", False), ("xtc_probability", 0.5)],
)
def test_ollamas_options_that_ask_are_refused_by_name(name: str, value: Any) -> None:
    assert refusal(ollama, name, value).param == f"options.{name}"


def test_a_json_schema_may_come_as_a_member_of_its_own() -> None:
    schema = {"type": "string"}
    for request_of in (chat, text):
        assert request_of(json_schema=schema).answer_schema() == schema
        assert request_of(json_schema={}).answer_schema() == {}
        assert request_of(json_schema=None).answer_schema() is None
        objects = {"type": "json_object"}
        assert request_of(json_schema=schema, response_format=objects).answer_schema() == schema
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    with pytest.raises(FieldError, match="json_schema"):
        chat(json_schema=schema, response_format=named).answer_schema()
    with pytest.raises(EdgeAgentError, match="'json_schema'"):
        chat(json_schema={"type": "wizard"}).answer_schema()
    assert refusal(chat, "json_schema", 3).param == "json_schema"


def test_llama_servers_spellings_of_logprobs_and_biases_are_obeyed() -> None:
    assert (chat(n_probs=3).logprob_count(), text(n_probs=3).logprob_count()) == (3, 3)
    assert (chat(n_probs=0).logprob_count(), text(logprobs=0).logprob_count()) == (None, 0)
    assert chat(logit_bias=[[5, -1.5], [6, False]]).biases() == {5: -1.5, 6: float("-inf")}
    assert text(logit_bias={"5": False}).biases() == {5: float("-inf")}
    for pairs in ([[5]], [5], [["a word", 1]], [[-1, 1]], [[5, True]]):
        assert refusal(chat, "logit_bias", pairs).param.startswith("logit_bias")
