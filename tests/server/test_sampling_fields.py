"""Numbers and stop strings as clients of llama-server, OpenAI and Ollama send them."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.errors import RequestError
from edge_agent.server.body import validate
from edge_agent.server.ollama_schema import OllamaOptions
from edge_agent.server.openai_schema import ChatRequest, CompletionRequest
from edge_agent.server.sampling_fields import stop_list

TURNS = [{"role": "user", "content": "hi"}]


def chat(**members: Any) -> ChatRequest:
    return validate(ChatRequest, {"messages": TURNS, **members})


def text(**members: Any) -> CompletionRequest:
    return validate(CompletionRequest, {"prompt": "x", **members})


@pytest.mark.parametrize("request_of", [chat, text])
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict"])
@pytest.mark.parametrize("limit", [-1, 0, 4, 4.0, 10**6])
def test_a_token_limit_has_three_names(request_of: Any, name: str, limit: float) -> None:
    assert request_of(**{name: limit}).token_limit() == limit


def test_the_first_limit_that_is_given_counts() -> None:
    assert chat(n_predict=1, max_completion_tokens=2, max_tokens=3).token_limit() == 1
    assert chat(n_predict=None, max_completion_tokens=0, max_tokens=3).token_limit() == 0
    assert chat(max_tokens=None).token_limit() == 256


@pytest.mark.parametrize(
    ("options", "limit"),
    [({}, -1), ({"num_predict": None}, -1), ({"num_predict": -1}, -1), ({"num_predict": -2}, -1)]
    + [({"num_predict": 0}, -1), ({"num_predict": 7}, 7), ({"num_predict": 7.0}, 7)],
)
def test_ollamas_limit_is_the_slots_end_unless_it_is_positive(
    options: dict[str, Any], limit: int
) -> None:
    assert validate(OllamaOptions, options).token_limit() == limit


@pytest.mark.parametrize(
    ("stop", "stops"),
    [("", []), (None, []), ([], []), ([""], []), (["", "a", ""], ["a"]), ("a", ["a"])]
    + [([str(n) for n in range(12)], [str(n) for n in range(12)])],
)
def test_empty_stop_strings_stop_nothing_and_twelve_are_few(stop: Any, stops: list[str]) -> None:
    assert stop_list(chat(stop=stop).stop) == stops
    assert stop_list(text(stop=stop).stop) == stops
    assert stop_list(validate(OllamaOptions, {"stop": stop}).stop) == stops


def test_a_whole_float_is_an_int_and_a_broken_one_is_named() -> None:
    sampling = chat(top_k=3.0, seed=4.0, repeat_last_n=8.0, temperature=2.5).sampling()
    assert (sampling.top_k, sampling.seed, sampling.repeat_last_n) == (3, 4, 8)
    assert sampling.temperature == 2.5
    for name in ("top_k", "seed", "max_tokens", "n_predict"):
        with pytest.raises(RequestError, match=f"'{name}' is not valid"):
            chat(**{name: 4.5})


def test_penalties_and_temperature_may_leave_openais_ranges() -> None:
    sampling = chat(temperature=100, presence_penalty=3, frequency_penalty=-3).sampling()
    assert (sampling.temperature, sampling.presence_penalty) == (100, 3)
    assert sampling.frequency_penalty == -3
