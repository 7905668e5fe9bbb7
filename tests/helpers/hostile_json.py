"""Hostile bodies: well-framed HTTP whose JSON, fields or names cannot be accepted."""

from __future__ import annotations

from typing import Any

from hostile_case import Case, post

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TURNS = [{"role": "user", "content": "hi"}]
BAD = frozenset({400})


def _raw(kind: str, bodies: list[bytes], path: str = TEXT) -> list[Case]:
    return [Case(kind, f"{n}", post(path, body), BAD) for n, body in enumerate(bodies)]


def _chat(kind: str, members: list[dict[str, Any]]) -> list[Case]:
    """Each row replaces members of a correct chat request."""
    bodies = [{"messages": TURNS, "max_tokens": 1, **row} for row in members]
    rows = zip(members, bodies, strict=True)
    return [Case(kind, str(row)[:60], post(CHAT, body), BAD) for row, body in rows]


def _text(kind: str, members: list[dict[str, Any]]) -> list[Case]:
    bodies = [{"prompt": "x", "max_tokens": 1, **row} for row in members]
    rows = zip(members, bodies, strict=True)
    return [Case(kind, str(row)[:60], post(TEXT, body), BAD) for row, body in rows]


def _each(kind: str, rows: list[tuple[str, Any]], allowed: frozenset[int] = BAD) -> list[Case]:
    return [
        Case(kind, f"{path} {str(body)[:40]}", post(path, body), allowed) for path, body in rows
    ]


def _prompt(inside: bytes) -> bytes:
    return b'{"max_tokens":1,"prompt":"' + inside + b'"}'


def _number(text: bytes) -> bytes:
    return b'{"max_tokens":1,"prompt":"x","temperature":' + text + b"}"


def _nested(opening: bytes, closing: bytes, depth: int, field: bytes = b"user") -> bytes:
    return b'{"prompt":"x","' + field + b'":' + opening * depth + b"1" + closing * depth + b"}"


UNICODE = [
    *_raw(
        "bad_utf8",
        [
            _prompt(inside)
            for inside in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x82", b"\x80", b"\xc3")
        ]
        + [
            _prompt(inside)
            for inside in (b"\xf8\x88\x80\x80\x80", b"\xc0\x80", b"\xf4\x90\x80\x80")
        ]
        + [_prompt("é".encode("latin-1"))],
    ),
    *_raw(
        "lone_surrogate",
        [_prompt(inside) for inside in (rb"\ud800", rb"\udfff", rb"\ud83dx", rb"\ude00\ud83d")]
        + [
            rb'{"prompt":"x","stop":"\ud800"}',
            rb'{"prompt":"x","model":"\ud800"}',
            rb'{"prompt":"x","\ud800":1}',
            rb'{"prompt":"x","user":["\ud800"]}',
            rb'{"prompt":["\udc00"]}',
            rb'{"prompt":"x","logit_bias":{"\udc00":1}}',
        ],
    ),
    *_raw(
        "nul",
        [_prompt(rb"\u0000"), _prompt(b"\x00"), b"\x00", _prompt(b"x") + b"\x00"]
        + [
            rb'{"prompt":"x","stop":["\u0000"]}',
            rb'{"prompt":"x","model":"tiny\u0000"}',
            rb'{"prompt":"x","a\u0000":1}',
            rb'{"prompt":["\u0000"]}',
            rb'{"prompt":"x","user":{"a":["\u0000"]}}',
            b"\x00" * 1000,
        ],
    ),
    *_raw(
        "encodings",
        [b"\xef\xbb\xbf" * 2 + b'{"prompt":"x"}', b"\xef\xbb\xbf"]
        + ['{"prompt":"x"}'.encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be")]
        + ['{"prompt":"x"}'.encode(name) for name in ("utf-32", "utf-32-le", "utf-32-be", "cp037")]
        + ['{"prompt":"naïve"}'.encode() + b"\xfe\xff"],
    ),
]

SYNTAX = [
    *_raw(
        "not_json",
        [b"", b"null", b"[]", b"1", b"true", b'"x"', b"{'prompt':'x'}", b'{"prompt":"x",}']
        + [b'{"prompt":"x"/**/}', b'{"prompt":"x"}{"prompt":"x"}'],
    ),
    *_raw(
        "special_numbers",
        [_number(text) for text in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999")]
        + [_number(text) for text in (b"nan", b"0x10", b"01", b"+1", b"1.")],
    ),
    *_raw(
        "huge_numbers",
        [_number(text) for text in (b"9" * 5000, b"-" + b"9" * 5000, b"9" * 21, b"1e308")]
        + [_number(b"1" + b"0" * 100_000), b'{"prompt":"x","seed":' + b"9" * 400 + b"}"]
        + [
            b'{"prompt":"x","max_tokens":99999999999999999999}',
            b'{"prompt":"x","top_k":1e300}',
            b'{"prompt":[99999999999999999999]}',
            b'{"prompt":"x","logit_bias":{"99999999999999999999":1}}',
        ],
    ),
    *_raw(
        "duplicate_keys",
        [
            b'{"prompt":"x","prompt":"y"}',
            b'{"prompt":"x","user":1,"user":1}',
            b'{"prompt":"x","user":{"a":1,"a":2}}',
            b'{"prompt":"x","logit_bias":{"1":1,"1":2}}',
            b'{"prompt":"x","stream":false,"stream":true}',
            b'{"prompt":"x","pr\\u006fmpt":"y"}',
            b'{"prompt":"x","":1,"":2}',
            b'{"prompt":"x","user":[{"a":1,"b":1,"a":1}]}',
            b'{"prompt":"x","max_tokens":1,"max_tokens":1}',
            b'{"prompt":"x","model":"a","model":"b"}',
        ],
    ),
    *_raw(
        "depth",
        [_nested(b"[", b"]", depth) for depth in (100, 1000, 10_000, 100_000)]
        + [_nested(b'{"a":', b"}", depth) for depth in (100, 1000, 10_000, 40_000)]
        + [_nested(b"[", b"]", 1000, b"prompt"), b"[" * 100_000],
    ),
]

CHAT_FIELDS = [
    *_chat(
        "wrong_types",
        [{"messages": "hi"}, {"messages": {}}, {"messages": 1}, {"logprobs": "yes"}, {"seed": 1.5}]
        + [{"stop": {}}, {"logit_bias": "x"}, {"response_format": "json"}, {"cache_prompt": 1}]
        + [{"stream_options": []}],
    ),
    *_each(
        "missing_members",
        [(CHAT, {}), (CHAT, {"messages": [{}]}), (CHAT, {"messages": [{"role": "user"}]})]
        + [(CHAT, {"messages": [{"content": "x"}]}), (TEXT, {}), ("/tokenize", {})]
        + [(CHAT, {"messages": [{"role": "user", "content": None}]}), ("/detokenize", {})]
        + [(CHAT, {"messages": [{"role": "user", "content": [{"type": "text"}]}]})]
        + [("/apply-template", {})],
    ),
    *_chat(
        "roles",
        [
            {"messages": [{"role": role, "content": "x"}]}
            for role in ("tool", "function", "SYSTEM", "", None, 1, [], {}, "user ", "<|im_start|>")
        ],
    ),
    *_chat(
        "messages_shape",
        [{"messages": value} for value in ([], None, [[]], ["x"], [None], TURNS * 1025)]
        + [{"messages": TURNS * 4500}, {"messages": [TURNS]}]
        + [{"messages": [{"role": "user", "content": content}]} for content in ([], [[]])],
    ),
    *_chat(
        "max_tokens",
        [{"max_tokens": value} for value in (-2, -(10**18), 10**10, 2**31, 1.5, "1", True, {})]
        + [{"max_completion_tokens": value} for value in (-2, [1])],
    ),
    *_text(
        "choices",
        [{"n": value} for value in (0, 2, -1, 10**9, 1.5, "1", True)]
        + [{"best_of": value} for value in (2, 0, "1")],
    ),
    *_text(
        "stop",
        [
            {"stop": value}
            for value in (["x"] * 257, "x" * 257, [""] * 257, [1], [None], {}, 1, [[]], [{}])
        ]
        + [{"stop": ["x" * 257]}],
    ),
    *_text(
        "logit_bias",
        [{"logit_bias": {key: 1}} for key in ("-1", "x", "", "1.0", "999999999")]
        + [{"logit_bias": {"1": value}} for value in (101, -101, "1", None)]
        + [{"logit_bias": {str(n): 1 for n in range(1025)}}],
    ),
    *_text(
        "sampling",
        [{"temperature": value} for value in (-1, 1001, "1", True)]
        + [{"top_p": 1.1}, {"top_p": -0.1}, {"top_k": -2}, {"min_p": 2}, {"repeat_penalty": 0}]
        + [{"frequency_penalty": 101}],
    ),
    *_text(
        "stream_flags",
        [{"stream": value} for value in ("yes", "true", 1, 0, [], {})]
        + [{"stream_options": value} for value in ("x", [1], 1, {"include_usage": "yes"})],
    ),
]


def _schema(schema: Any) -> dict[str, Any]:
    named = {"name": "x", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _deep_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


SERVED = [
    *_chat(
        "schemas",
        [_schema({"type": "string", "pattern": "^+[a-z]$"}), _schema(_deep_schema(25))]
        + [_schema({"type": "string", "maxLength": 10_000_000}), _schema({"type": "wizard"})]
        + [_schema({"type": "array", "items": {}, "maxItems": 10**9}), _schema([]), _schema("x")]
        + [_schema({"$ref": "file:///etc/passwd"}), {"response_format": {"type": "xml"}}]
        + [{"response_format": {"type": "json_schema"}}],
    ),
    *_each(
        "not_served",
        [(CHAT, {"messages": TURNS, "tools": [{"type": "function"}]})]
        + [(CHAT, {"messages": TURNS, "functions": [{}]})]
        + [(CHAT, {"messages": TURNS, "tool_choice": "required"})]
        + [(CHAT, {"messages": TURNS, "grammar": "root ::= foo"})]
        + [(CHAT, {"messages": TURNS, "top_logprobs": 5})]
        + [(CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})]
        + [(TEXT, {"prompt": "x", "echo": True}), (TEXT, {"prompt": "x", "suffix": "y"})]
        + [(TEXT, {"prompt": ["a", "b"]}), ("/v1/embeddings", {"input": "x"})],
    ),
    *_each(
        "token_ids",
        [(TEXT, {"prompt": ids, "max_tokens": 1}) for ids in ([-1], [2**31 - 1], [1.5], [True])]
        + [(TEXT, {"prompt": [[1]], "max_tokens": 1}), (TEXT, {"prompt": []})]
        + [("/detokenize", {"tokens": ids}) for ids in ([-1], [2**31 - 1], "x", [[1]])],
    ),
    *_each(
        "llama_server_fields",
        [("/tokenize", {"content": value}) for value in (1, None, ["x"])]
        + [("/tokenize", {"content": "x", "add_special": "yes"})]
        + [("/tokenize", {"content": "x", "with_pieces": 1})]
        + [("/apply-template", {"messages": value}) for value in ([], "x", [{"role": "x"}])]
        + [("/detokenize", {"tokens": None}), ("/detokenize", {"tokens": {"0": 1}})],
    ),
    *_each(
        "ollama_fields",
        [
            ("/api/chat", {"model": "default", "messages": TURNS, **row})
            for row in (
                {"keep_alive": "soon"},
                {"tools": [{}]},
                {"format": "xml"},
                {"stream": "no"},
                {"options": {"temperature": "hot"}},
                {"messages": [{"role": "tool", "content": "x"}]},
            )
        ]
        + [
            ("/api/generate", {"model": "default", "prompt": "x", **row})
            for row in (
                {"suffix": "x"},
                {"images": ["aGk="]},
                {"options": {"num_predict": -3}},
                {"model": ""},
            )
        ],
    ),
    *_each(
        "model_names",
        [
            (CHAT, {"messages": TURNS, "model": name})
            for name in (
                "../../etc/passwd",
                "/etc/passwd",
                "..%2f..%2fetc",
                "tiny/../tiny",
                "gpt-4o",
                "tiny:latest:latest",
                "a" * 300,
                "\u2024\u2024/etc",
            )
        ]
        + [("/api/show", {"model": "../../../root/.ssh/id_rsa"})]
        + [("/api/generate", {"model": "~/model.gguf", "prompt": "x"})],
        frozenset({404}),
    ),
]

CASES = [*UNICODE, *SYNTAX, *CHAT_FIELDS, *SERVED]
