"""What the strict JSON reader takes and refuses."""

from __future__ import annotations

import contextlib

import pytest
from fake_engine import N_CTX
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.errors import RequestError
from edge_agent.server.body import parse_json, validate
from edge_agent.server.error_body import FieldError
from edge_agent.server.limits import Limits
from edge_agent.server.llama_server import TokenizeRequest
from edge_agent.server.openai_schema import ChatRequest

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
        b'\xef\xbb\xbf{"a":1}',
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
    assert limits.body_bytes(None) == 256 * 1024
    assert limits.body_bytes(N_CTX) == 256 * 1024
    assert limits.body_bytes(32_768) == 1024 * 1024
    assert limits.body_bytes(10**9) == 4 * 1024 * 1024


def test_error_names_the_field_not_the_union_branch() -> None:
    with pytest.raises(FieldError) as caught:
        validate(ChatRequest, {"messages": [{"role": "user", "content": [{"type": "x"}]}]})
    assert caught.value.param == "messages.0.content"
    with pytest.raises(FieldError) as caught:
        validate(TokenizeRequest, {})
    assert caught.value.param == "content"
