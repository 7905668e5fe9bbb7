"""llama-server's /completion over real sockets: its documents, events and forms of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from http_front import Front, serving

from edge_agent.records import Tokenize
from edge_agent.server.completion import NativeAnswer, NativePiece

BODY = {"prompt": "Once", "n_predict": 3}


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with serving(tmp_path) as front:
        yield front


def conforms(model: Any, document: Any) -> bool:
    return set(document) <= set(model.model_fields) and bool(model.model_validate(document))


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_the_answer_has_llama_servers_members(front: Front, path: str) -> None:
    answer = front.post(path, {**BODY, "seed": 42, "stop": ["x"]}).json()
    assert conforms(NativeAnswer, answer)
    assert (answer["content"], answer["tokens"], answer["prompt"]) == ("Hello wörld", [], "Once")
    assert (answer["stop"], answer["stop_type"], answer["stopping_word"]) == (True, "eos", "")
    counts = ("tokens_predicted", "tokens_evaluated", "tokens_cached")
    assert [answer[name] for name in counts] == [3, 10, 12]
    settings = answer["generation_settings"]
    assert (settings["n_predict"], settings["seed"], settings["stop"]) == (3, 42, ["x"])
    assert (settings["mirostat"], settings["adaptive_target"]) == (0, -1.0)
    assert answer["timings"]["predicted_n"] == 3
    (request,) = front.supervisor.requests
    assert (request.text, request.parse_special, request.max_tokens) == ("Once", True, 3)


def test_a_stream_ends_with_the_document_and_not_with_done(front: Front) -> None:
    *pieces, last = front.post("/completion", {**BODY, "stream": True, "n_probs": 1}).events()
    assert all(conforms(NativePiece, one) and not one["stop"] for one in pieces)
    assert "".join(one["content"] for one in pieces) == "Hello wörld"
    assert [one["tokens"] for one in pieces[:3]] == [[7], [8], [9]]
    assert pieces[0]["completion_probabilities"][0]["top_logprobs"][0]["id"] == 7
    assert conforms(NativeAnswer, last)
    assert (last["content"], last["stop"], last["tokens_predicted"]) == ("", True, 3)


def test_why_an_answer_ended_is_told(front: Front) -> None:
    front.supervisor.stop_text = "END"
    answer = front.post("/completion", BODY).json()
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", "END")
    front.supervisor.stop_text, front.supervisor.finish_reason = None, "length"
    front.supervisor.pieces = ["a\n", "b"]
    answer = front.post("/completion", {**BODY, "return_tokens": True}).json()
    assert (answer["stop_type"], answer["truncated"]) == ("limit", False)
    assert (answer["has_new_line"], answer["tokens"]) == (True, [7, 8, 9])


def test_chosen_members_are_sent_alone(front: Front) -> None:
    names = ["content", "generation_settings/n_predict", "prompt", "nothing/here"]
    answer = front.post("/completion", {**BODY, "response_fields": names}).json()
    assert answer == {
        "content": "Hello wörld",
        "generation_settings/n_predict": 3,
        "prompt": "Once",
    }


@pytest.mark.parametrize(
    ("prompt", "given"),
    [
        ("a", [("a", None)]),
        ({"prompt_string": "a"}, [("a", None)]),
        ([65, 66], [(None, [65, 66])]),
        (["a", 66, "b"], [(None, [97, 66, 98])]),
        (["a"], [("a", None)]),
        (["a", "b"], [("a", None), ("b", None)]),
        ([[65], "a", {"prompt_string": "b"}], [(None, [65]), ("a", None), ("b", None)]),
    ],
)
def test_a_prompt_has_llama_servers_forms(front: Front, prompt: Any, given: Any) -> None:
    answer = front.post("/completion", {**BODY, "prompt": prompt})
    assert answer.status == 200
    requests = front.supervisor.requests
    assert [(one.text, one.tokens) for one in requests] == given
    if len(given) > 1:
        assert [one["index"] for one in answer.json()] == [*range(len(given))]


def test_only_the_first_text_of_a_mixed_prompt_gets_a_bos(front: Front) -> None:
    front.post("/completion", {**BODY, "prompt": ["a", 66, "b"]})
    asked = [one for one in front.supervisor.asked if isinstance(one, Tokenize)]
    assert [(one.add_special, one.parse_special) for one in asked] == [(True, True), (False, True)]


@pytest.mark.parametrize(
    ("members", "named"),
    [
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["aGk="]}}, "multimodal_data"),
        ({"prompt": ["a", "b"], "stream": True}, "stream"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [99_999]}, "prompt"),
        ({"mirostat": 2}, "mirostat"),
        ({"id_slot": 1}, "id_slot"),
        ({"n_predict": -2}, "n_predict"),
        ({"response_fields": "content"}, "response_fields"),
    ],
)
def test_what_cannot_be_is_refused_by_name_in_llama_servers_form(
    front: Front, members: dict[str, Any], named: str
) -> None:
    answer = front.post("/completion", {**BODY, **members})
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["type"]) == (400, 400, "invalid_request_error")
    assert named in error["message"]


def test_openais_routes_answer_without_their_prefix(front: Front) -> None:
    turns = [{"role": "user", "content": "hi"}]
    assert front.get("/models").json() == front.get("/v1/models").json()
    assert front.get("/models/tiny").json()["id"] == "tiny"
    answer = front.post("/chat/completions", {"messages": turns}).json()
    assert answer["object"] == "chat.completion"
    assert front.post("/embeddings", {"input": "x"}).json()["error"]["code"] == "not_served"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_answer_names_the_builds_that_made_it(front: Front, path: str) -> None:
    prompt = {"messages": [{"role": "user", "content": "x"}], "prompt": "x"}
    whole = front.post(path, prompt).json()["system_fingerprint"]
    *events, _ = front.post(path, {**prompt, "stream": True}).events()
    assert whole.startswith("b") and whole.endswith("-fake")
    assert {event["system_fingerprint"] for event in events} == {whole}
