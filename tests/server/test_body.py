"""What the strict JSON reader takes and refuses."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import N_CTX, FakeSupervisor, model_info, model_row
from http_front import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from edge_agent.errors import RequestError
from edge_agent.server.body import parse_json, validate
from edge_agent.server.error_body import FieldError
from edge_agent.server.limits import Limits
from edge_agent.server.llama_server import TokenizeRequest
from edge_agent.server.ollama_schema import OllamaChatRequest
from edge_agent.server.openai_schema import ChatRequest, CompletionRequest

DEPTH = 64


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b'{"a":1',
        b'{"a":1}x',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":' + b"9" * 21 + b"}",
        b'{"a":1,"a":2}',
        b'{"b":{"a":1,"a":2}}',
        b'{"a":"\\ud800"}',
        b'{"\\udfff":1}',
        b'{"a":"\\u0000"}',
        b'{"a":"\x00"}',
        b'{"a":01}',
        b"{'a':1}",
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b"[" * 100_000,
        '{"a":1}'.encode("utf-16"),
    ],
)
def test_what_is_not_exact_json_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        parse_json(body, DEPTH)


def test_pairs_of_surrogates_and_all_scripts_pass() -> None:
    assert parse_json(b'{"a":"\\ud83d\\ude00 \xe0\xa4\xa8"}', DEPTH) == {"a": "😀 न"}


def test_a_byte_order_mark_before_the_body_is_no_fault() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a":"\xef\xbb\xbf"}\r\n', DEPTH) == {"a": "\ufeff"}


@pytest.mark.parametrize("body", [b"", b" \r\n"])
def test_an_empty_body_is_called_empty(body: bytes) -> None:
    with pytest.raises(RequestError, match="it is empty"):
        parse_json(body, DEPTH)


def test_depth_is_counted_exactly() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)

    assert parse_json(nested(DEPTH), DEPTH)
    with pytest.raises(RequestError, match="nested too deeply"):
        parse_json(nested(DEPTH + 1), DEPTH)


json_values = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1,
        2**70,
        0.5,
        "",
        "x",
        "\u0928",
        [],
        [1],
        ["x"],
        [[]],
        {},
        {"type": "text"},
    ]
    + [[{"role": "user", "content": "x"}], [{"role": 1}], {"1": 1}, {"x": []}, {"schema": {}}]
)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_dict_or_a_request_error(body: bytes) -> None:
    with contextlib.suppress(RequestError):
        assert isinstance(parse_json(body, DEPTH), dict)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ChatRequest.model_fields)), json_values))
def test_any_members_are_a_request_or_a_named_field(members: dict[str, object]) -> None:
    try:
        assert isinstance(validate(ChatRequest, members), ChatRequest)
    except FieldError as error:
        assert error.param.split(".")[0] in ChatRequest.model_fields


def test_body_limit_grows_with_the_context_up_to_4_mib() -> None:
    limits = Limits()
    assert limits.body_bytes(0) == 256 * 1024
    assert limits.body_bytes(N_CTX) == 256 * 1024
    assert limits.body_bytes(32_768) == 1024 * 1024
    assert limits.body_bytes(10**9) == 4 * 1024 * 1024


def error_of(model: type[BaseModel], members: dict[str, Any]) -> FieldError:
    with pytest.raises(FieldError) as caught:
        validate(model, members)
    return caught.value


@pytest.mark.parametrize(
    ("model", "members", "param", "why"),
    [
        (TokenizeRequest, {}, "content", "Field required"),
        (CompletionRequest, {"prompt": "x", "stop": 5}, "stop", "string or a valid list"),
        (CompletionRequest, {"prompt": "x", "stop": ["a", 5]}, "stop.1", "a valid string"),
        (CompletionRequest, {"prompt": {}}, "prompt", "valid string or a valid list"),
        (CompletionRequest, {"prompt": [True]}, "prompt.0", "valid integer or a valid string"),
        (CompletionRequest, {"prompt": ["a", "b"]}, "prompt", "at most 1 item"),
        (OllamaChatRequest, {"model": "m", "format": "xml"}, "format", "'json' or a valid dict"),
        (OllamaChatRequest, {"model": "m", "keep_alive": []}, "keep_alive", "number or a valid st"),
        (OllamaChatRequest, {"model": "m", "options": {"top_k": "x"}}, "options.top_k", "integer"),
    ],
)
def test_the_error_of_a_union_names_what_is_wrong(
    model: type[BaseModel], members: dict[str, Any], param: str, why: str
) -> None:
    error = error_of(model, members)
    assert error.param == param and why in error.why


def test_the_body_limit_is_that_of_the_models_and_not_of_what_is_loaded(tmp_path: Path) -> None:
    supervisor = FakeSupervisor()
    with serving(tmp_path, supervisor, ctx=0) as front:
        large = {"model": "wide", "prompt": "a " * 138_500, "max_tokens": 1}
        assert front.post("/v1/completions", large).status == 413, "contexts of 8,192 tokens only"
        front.store.add_model(replace(model_row("wide"), n_ctx_train=32_768))
        for is_loaded, name in ((True, "wide"), (False, "wide"), (True, "tiny")):
            supervisor.loaded, supervisor.info = is_loaded, model_info(name)
            assert front.post("/v1/completions", large).status == 200, (is_loaded, name)
        huge = {**large, "prompt": "a " * 600_000}
        answer = front.post("/v1/completions", huge)
    assert answer.status == 413 and "largest context of a model" in answer.json()["error"]["hint"]
