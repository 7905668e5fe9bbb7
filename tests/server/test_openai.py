"""OpenAI's API over real sockets: bodies, streams, errors, the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_engine import N_VOCAB, FakeSupervisor, model_info
from http_front import TOKEN, Front, serving
from pydantic import BaseModel
from waiting import until

from edge_agent.errors import Overloaded, SchemaError, WorkerFailed
from edge_agent.server.openai_answers import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ModelList,
    OpenAIError,
)
from edge_agent.supervisor.engine_status import EngineStatus

TURNS = [{"role": "user", "content": "hi"}]


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    with serving(tmp_path) as front:
        yield front


def conforms(model: type[BaseModel], document: Any) -> bool:
    """The document is what /openapi.json promises, with no member it does not mention."""
    return set(document) <= set(model.model_fields) and bool(model.model_validate(document))


def test_answer_carries_usage_and_timings(front: Front) -> None:
    answer = front.post("/v1/chat/completions", {"messages": TURNS}).json()
    assert conforms(ChatCompletion, answer)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello wörld"}
    assert answer["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "total_tokens": 13,
        "prompt_tokens_details": {"cached_tokens": 4},
    }
    assert answer["timings"]["cache_n"] == 4
    assert answer["timings"]["prompt_n"] == 6
    assert answer["timings"]["prompt_per_second"] == pytest.approx(1000)
    assert answer["timings"]["predicted_per_token_ms"] == pytest.approx(10)


def test_stream_is_role_pieces_reason_done(front: Front) -> None:
    body = {"messages": TURNS, "stream": True}
    answer = front.post("/v1/chat/completions", body)
    *events, end = answer.events()
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert end == "[DONE]"
    assert all(conforms(ChatCompletionChunk, event) for event in events)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas == [
        {"role": "assistant", "content": None},
        {"content": "Hel"},
        {"content": "lo "},
        {"content": "wörld"},
        {},
    ]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["timings"]["predicted_n"] == 3
    assert len({event["id"] for event in events}) == 1


def test_usage_comes_last_and_only_when_asked(front: Front) -> None:
    body = {"messages": TURNS, "stream": True, "stream_options": {"include_usage": True}}
    *events, end = front.post("/v1/chat/completions", body).events()
    assert [event["usage"] is None for event in events] == [True] * 5 + [False]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["total_tokens"] == 13
    assert events[-1]["timings"]["cache_n"] == 4


def test_text_that_looks_like_json_survives_the_stream(front: Front) -> None:
    front.supervisor.pieces = ['"@"', '\n\ndata: [DONE]\n\n"', "\u2028नमस्ते\x7f\\"]
    events = front.post("/v1/completions", {"prompt": "x", "stream": True}).events()
    text = "".join(event["choices"][0]["text"] for event in events[:-1])
    assert text == "".join(front.supervisor.pieces)


def test_completion_stream_and_whole_agree(front: Front) -> None:
    whole = front.post("/v1/completions", {"prompt": "x", "max_tokens": 9}).json()
    *events, _ = front.post("/v1/completions", {"prompt": "x", "stream": True}).events()
    assert conforms(Completion, whole) and all(conforms(Completion, event) for event in events)
    assert "".join(event["choices"][0]["text"] for event in events) == whole["choices"][0]["text"]
    assert front.supervisor.requests[0].max_tokens == 9
    assert front.supervisor.requests[1].max_tokens == 256


def test_every_parameter_reaches_the_engine(front: Front) -> None:
    body = {
        "model": "other",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
        ],
        "max_completion_tokens": 7,
        "max_tokens": 9,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1.5,
        "repetition_penalty": 1.2,
        "seed": 2**32,
        "stop": ["a", "b"],
        "logit_bias": {"5": -100},
        "logprobs": True,
        "top_logprobs": 2,
        "cache_prompt": False,
        "n": 1,
        "user": "ignored",
        "response_format": {"type": "json_object"},
    }
    assert front.post("/v1/chat/completions", body).status == 200
    (request,) = front.supervisor.requests
    assert request.messages is not None
    roles = [(turn.role, turn.content) for turn in request.messages]
    assert roles == [("system", "be brief"), ("user", "a\nb"), ("assistant", "c"), ("user", "d")]
    assert (request.max_tokens, request.stop, request.logprobs) == (7, ["a", "b"], 2)
    assert (request.cache_prompt, request.stream, request.json_schema) == (False, False, {})
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 0)
    assert (sampling.min_p, sampling.presence_penalty) == (0.1, 1)
    assert (sampling.frequency_penalty, sampling.repeat_penalty) == (-1.5, 1.2)
    assert (sampling.seed, sampling.logit_bias) == (1, {5: -100.0})
    assert front.supervisor.models == ["other"]


@pytest.mark.parametrize("name", [None, "default"])
def test_no_model_named_means_the_default(front: Front, name: str | None) -> None:
    body = {"messages": TURNS} if name is None else {"messages": TURNS, "model": name}
    assert front.post("/v1/chat/completions", body).json()["model"] == "tiny"
    assert front.supervisor.models == [None]


def test_the_model_that_answered_is_named_although_another_is_being_loaded(front: Front) -> None:
    """Another request has the model changed as soon as this answer is done."""
    front.supervisor.status_now = EngineStatus("loading", model="other")
    for path, body in (
        ("/v1/chat/completions", {"messages": TURNS}),
        ("/v1/completions", {"prompt": "hi"}),
    ):
        assert front.post(path, body).json()["model"] == "tiny"
        *events, _ = front.post(path, {**body, "stream": True}).events()
        assert {event["model"] for event in events} == {"tiny"}
    for path, body in (("/api/chat", {"messages": TURNS}), ("/api/generate", {"prompt": "hi"})):
        lines = front.post(path, {**body, "model": "default"}).lines()
        assert {line["model"] for line in lines} == {"tiny"}
    until(lambda: len(front.store.recent_generations(9)) == 6)
    assert {row.model for row in front.store.recent_generations(9)} == {"tiny"}


def test_latest_tag_is_dropped(front: Front) -> None:
    body = {"messages": TURNS, "model": "tiny:latest"}
    assert front.post("/v1/chat/completions", body).status == 200
    assert front.supervisor.models == ["tiny"]


@pytest.mark.parametrize("name", ["gpt-4o", "../../etc/passwd", "Qwen/Qwen2", "a" * 65, "tiny\n"])
def test_unknown_model_is_404(front: Front, name: str) -> None:
    answer = front.post("/v1/chat/completions", {"messages": TURNS, "model": name})
    assert answer.status == 404
    assert answer.json()["error"]["code"] == "model_not_found"


BEGUN = [*TURNS, {"role": "assistant", "content": "The"}]


def test_a_begun_answer_reaches_the_engine_on_every_chat_route(front: Front) -> None:
    front.post("/v1/chat/completions", {"messages": BEGUN})
    front.post("/v1/chat/completions", {"messages": TURNS})
    front.post("/api/chat", {"model": "tiny", "messages": BEGUN, "stream": False})
    front.post("/api/generate", {"model": "tiny", "prompt": "x", "stream": False})
    assert [request.continues for request in front.supervisor.requests] == [True, False] * 2
    front.post("/apply-template", {"messages": BEGUN})
    assert front.supervisor.asked[-1].continues  # type: ignore[attr-defined]


def test_only_raw_prompts_have_their_control_tokens_read(front: Front, tmp_path: Path) -> None:
    ollama = {"model": "tiny", "prompt": "x", "stream": False}
    for path, body in (
        ("/v1/completions", {"prompt": "x"}),
        ("/api/generate", {**ollama, "raw": True}),
        ("/api/generate", ollama),
        ("/v1/chat/completions", {"messages": TURNS}),
    ):
        assert front.post(path, body).status == 200
    front.supervisor.info = model_info("tiny", "none")
    front.post("/api/generate", ollama)
    requests = front.supervisor.requests
    assert [one.parse_special for one in requests] == [True, True, False, False, False]


def test_schema_is_checked_before_the_engine_sees_it(front: Front) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^+"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = front.post("/v1/completions", {"prompt": "x", "response_format": wanted})
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, SchemaError.code)
    assert "response_format.json_schema.schema" in error["message"]
    assert front.supervisor.requests == []


def test_schema_reaches_the_engine(front: Front) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert front.post("/v1/completions", {"prompt": "x", "response_format": wanted}).status == 200
    assert front.supervisor.requests[0].json_schema == schema


@pytest.mark.parametrize(
    ("members", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1001}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"grammar": "root ::= foo"}, "grammar"),
        ({"stop": ["x"] * 257}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {str(N_VOCAB): 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"seed": -2}, "seed"),
        ({"repeat_last_n": 10**6}, "repeat_last_n"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
    ],
)
def test_wrong_field_is_named(front: Front, members: dict[str, Any], param: str) -> None:
    answer = front.post("/v1/chat/completions", {"messages": TURNS, **members})
    assert answer.status == 400
    assert conforms(OpenAIError, answer.json())
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "members",
    [{"prompt": ["a", "b"]}, {"prompt": [-1]}, {"prompt": [N_VOCAB]}, {"prompt": None}, {}]
    + [{"prompt": "x", field: value} for field, value in [("echo", True), ("best_of", 2)]]
    + [{"prompt": "x", "suffix": "y"}, {"prompt": "x", "logprobs": True}],
)
def test_completion_that_cannot_be_is_400(front: Front, members: dict[str, Any]) -> None:
    assert front.post("/v1/completions", members).status == 400
    assert front.supervisor.requests == []


@pytest.mark.parametrize("prompt", ["x", ["x"], [1, 2, 3]])
def test_prompt_is_text_or_ids(front: Front, prompt: Any) -> None:
    assert front.post("/v1/completions", {"prompt": prompt}).status == 200
    (request,) = front.supervisor.requests
    assert (request.text, request.tokens) in [("x", None), (None, [1, 2, 3])]


def test_chat_logprobs_carry_bytes_and_alternatives(front: Front) -> None:
    body = {"messages": TURNS, "logprobs": True, "top_logprobs": 2}
    answer = front.post("/v1/chat/completions", body).json()
    (token,) = answer["choices"][0]["logprobs"]["content"]
    assert token["bytes"] == [72, 101, 108]
    assert [top["bytes"] for top in token["top_logprobs"]] == [[72, 101, 108], [195]]


def test_completion_logprobs_count_offsets_across_chunks(front: Front) -> None:
    body = {"prompt": "x", "logprobs": 1, "stream": True}
    events = front.post("/v1/completions", body).events()[:-2]
    offsets = [event["choices"][0]["logprobs"]["text_offset"] for event in events]
    assert offsets == [[0], [3], [6], [9]]


def test_full_queue_is_429_with_retry_after(front: Front) -> None:
    front.supervisor.error = Overloaded("no room", "16 wait", "try later", retry_after_s=7)
    answer = front.post("/v1/chat/completions", {"messages": TURNS, "stream": True})
    assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    error = answer.json()["error"]
    assert (error["type"], error["message"]) == ("rate_limit_error", "no room: 16 wait. try later")


def test_worker_failing_in_the_stream_is_an_error_event(front: Front) -> None:
    front.supervisor.error = WorkerFailed("the worker died", "signal 11", "ask again")
    front.supervisor.fail_after = 2
    answer = front.post("/v1/chat/completions", {"messages": TURNS, "stream": True})
    *_, piece, error = answer.events()
    assert answer.status == 200
    assert piece["choices"][0]["delta"] == {"content": "lo "}
    assert conforms(OpenAIError, error) and error["error"]["code"] == "worker_failed"


def test_worker_failing_before_the_first_token_is_503(front: Front) -> None:
    front.supervisor.error = WorkerFailed("the worker died")
    for stream in (True, False):
        answer = front.post("/v1/completions", {"prompt": "x", "stream": stream})
        assert (answer.status, answer.json()["error"]["code"]) == (503, "worker_failed")


def test_generation_the_daemon_cancelled_is_an_error_not_an_answer(front: Front) -> None:
    front.supervisor.finish_reason = "cancelled"
    answer = front.post("/v1/completions", {"prompt": "x"})
    assert (answer.status, answer.json()["error"]["code"]) == (503, "cancelled")


def test_models_are_listed_and_shown(front: Front) -> None:
    listing = front.get("/v1/models").json()
    assert conforms(ModelList, listing)
    assert [card["id"] for card in listing["data"]] == ["other", "tiny"]
    assert front.get("/v1/models/tiny").json()["created"] == 1_700_000_000
    assert front.get("/v1/models/none").status == 404
    assert front.get("/v1/models/..%2f..%2fetc%2fpasswd").status == 404


def test_a_models_context_is_what_a_slot_has(tmp_path: Path) -> None:
    def contexts(front: Front) -> dict[str, int]:
        data = front.get("/v1/models").json()["data"]
        return {card["id"]: card["meta"]["n_ctx"] for card in data}

    with serving(tmp_path, ctx=512) as front:
        assert contexts(front) == {"other": 512, "tiny": 4096}  # as set, and as it was loaded
        assert front.get("/v1/models/tiny:latest").json()["meta"]["n_ctx_train"] == 8192
        front.supervisor.loaded = False
        assert contexts(front) == {"other": 512, "tiny": 512}


def test_embeddings_are_refused_in_words(front: Front) -> None:
    answer = front.post("/v1/embeddings", {"model": "tiny", "input": "x"})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "not_served")


def test_official_client_chats_streams_and_reads_errors(front: Front) -> None:
    base_url = f"http://127.0.0.1:{front.port}/v1"
    with openai.OpenAI(base_url=base_url, api_key=TOKEN, max_retries=0) as client:
        messages: Any = TURNS
        answer = client.chat.completions.create(model="tiny", messages=messages)
        assert answer.choices[0].message.content == "Hello wörld"
        with client.chat.completions.create(model="tiny", messages=messages, stream=True) as stream:
            assert "".join(c.choices[0].delta.content or "" for c in stream) == "Hello wörld"
        assert [model.id for model in client.models.list()] == ["other", "tiny"]
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="none", prompt="x")
        front.supervisor.error = WorkerFailed("the worker died")
        front.supervisor.fail_after = 1
        failing = client.completions.create(model="tiny", prompt="x", stream=True)
        with failing, pytest.raises(openai.APIError, match="the worker died"):
            list(failing)


def test_base_model_without_template_answers_completions(tmp_path: Path) -> None:
    supervisor = FakeSupervisor(info=model_info(chat_template="none"))
    with serving(tmp_path, supervisor) as front:
        assert front.post("/v1/completions", {"prompt": "नमस्ते"}).status == 200
    assert supervisor.requests[0].text == "नमस्ते"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_ends_a_line_elsewhere_does_not_break_an_event(tmp_path: Path, path: str) -> None:
    pieces = ["one\u2028", "two\x85three", "\u2029\v\f\r\x1c\x1d\x1e four\n"]
    with serving(tmp_path, FakeSupervisor(pieces=pieces)) as front:
        for members in ({}, {"logprobs": True} if "chat" in path else {"logprobs": 1}):
            body = {"messages": TURNS} if "chat" in path else {"prompt": "x"}
            text = front.post(path, {**body, **members, "stream": True}).text()
            lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
            assert lines.pop() == "[DONE]"
            choices = [json.loads(line)["choices"][0] for line in lines]
            said = [(one.get("delta") or {}).get("content") or one.get("text") for one in choices]
            assert "".join(one or "" for one in said) == "".join(pieces)
