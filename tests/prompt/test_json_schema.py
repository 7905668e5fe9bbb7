from __future__ import annotations

import enum
import json
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from edge_agent.errors import SchemaError
from edge_agent.prompt.json_schema import check_schema, parse_schema
from edge_agent.prompt.schema_nodes import AnyValue, Number, Object, String, Union
from edge_agent.prompt.schema_place import ANNOTATIONS, COMBINERS, KEYWORDS
from edge_agent.prompt.schema_strings import FORMATS, MAX_STRING_CHARS, automaton


class Shade(enum.Enum):
    DARK = "dark"
    LIGHT = "light"


class Part(BaseModel):
    kind: Literal["part"] = "part"
    weight: float | None = None


class Whole(BaseModel):
    kind: Literal["whole"] = "whole"
    parts: list[Part] = Field(default_factory=list, max_length=9)


class Everything(BaseModel):
    """A docstring becomes a description."""

    name: str = Field(min_length=1, max_length=64, examples=["x"])
    shade: Shade = Shade.DARK
    born: date
    seen: datetime | None = None
    id: UUID
    choice: Part | Whole = Field(discriminator="kind")
    pair: tuple[int, str]
    scores: dict[str, float]
    extra: dict[str, Any]
    anything: Any
    grade: int = Field(ge=1, lt=7)
    done: bool = False


def openai_strict_schema() -> dict[str, Any]:
    from openai.lib._pydantic import to_strict_json_schema

    class Step(BaseModel):
        explanation: str
        output: str

    class Answer(BaseModel):
        steps: list[Step]
        final: str | None

    return to_strict_json_schema(Answer)


ACCEPTED: dict[str, dict[str, Any]] = {
    "empty": {},
    "only annotations": {"title": "T", "$schema": "https://json-schema.org/draft/2020-12/schema"},
    "pydantic": Everything.model_json_schema(),
    "openai client": openai_strict_schema(),
    "types": {"type": ["string", "null"], "maxLength": 512},
    "no type": {"properties": {"a": {"enum": [1, "a", None, False, 1.5]}}},
    "old pydantic": {"allOf": [{"$ref": "#/definitions/A"}], "definitions": {"A": {"const": 1}}},
    "zod": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "whole": {"type": "integer", "minimum": 1 - 2**53, "maximum": 2**53 - 1},
            "f32": {"type": "number", "minimum": -3.4028234663852886e38, "maximum": 3.4e38},
            "pair": {"type": "array", "items": [{}, {}], "additionalItems": False},
            "map": {
                "type": "object",
                "propertyNames": {"type": "string"},
                "additionalProperties": {},
            },
            "two": {
                "type": "string",
                "format": "includes",
                "allOf": [{"pattern": "^a"}, {"type": "string", "pattern": "b$"}],
            },
            "encoded": {"type": "string", "format": "base64", "contentEncoding": "base64"},
        },
    },
    "schemars": {
        "properties": {
            "u8": {"type": "integer", "format": "uint8", "minimum": 0, "maximum": 255},
            "f64": {"type": ["number", "null"], "format": "double"},
            "u64": {"type": "integer", "format": "uint64", "minimum": 0.0},
        },
        "title": "T",
        "type": "object",
        "x-kind": "extension",
    },
    ".NET": {
        "type": ["object", "null"],
        "required": ["$type"],
        "anyOf": [
            {
                "properties": {
                    "$type": {"const": "a"},
                    "n": {"type": ["string", "integer"], "pattern": r"^-?(?:0|[1-9]\d*)$"},
                }
            },
            {
                "properties": {
                    "$type": {"const": "b"},
                    "span": {
                        "type": "string",
                        "pattern": r"^-?(\d+\.)?\d{2}:\d{2}:\d{2}(\.\d{1,7})?$",
                    },
                }
            },
        ],
    },
    "OpenAPI 3.0": {"type": "string", "nullable": True, "example": "x", "format": "password"},
    "pydantic's URL": {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},
    "protobuf": {"type": "string", "format": "int64"},
    "pointer": {"type": "array", "prefixItems": [{"type": "null"}, {"$ref": "#/prefixItems/0"}]},
    "escaped ref": {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "null"}}},
    "one ref twice": {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/S"}, "b": {"$ref": "#/$defs/S", "title": "B"}},
        "$defs": {"S": {"type": "string"}},
    },
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_schemas_of_common_clients_are_accepted(name: str) -> None:
    check_schema(ACCEPTED[name])
    check_schema(json.loads(json.dumps(ACCEPTED[name])))


def wrapped(inner: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": inner}}


REFUSED: dict[str, tuple[Any, str, str]] = {
    "pattern": (wrapped({"type": "string", "pattern": "^+[a-z]$"}), "/x/pattern", "at char"),
    "backreference": ({"type": "string", "pattern": r"(a)\1"}, "/pattern", "character 4"),
    "huge pattern": ({"type": "string", "pattern": "(a|b)*a(a|b){20}$"}, "/pattern", "1000 states"),
    "slow patterns": (
        {"anyOf": [{"type": "string", "pattern": "(?:a?b?)" * i} for i in range(110, 124)]},
        "/anyOf/", "300000 steps",
    ),
    "wide pattern": ({"type": "string", "pattern": r"^[\s\w]{900}$"}, "/pattern", "512"),
    "large pattern": ({"type": "string", "pattern": r"^[\s\w]{510}\s{400}$"}, "/pattern", "10000"),
    "pattern list": ({"type": "string", "pattern": ["a"]}, "/pattern", "not a string"),
    "pattern and format": (
        {"type": "string", "pattern": "^x", "format": "date"}, "/pattern", "no string",
    ),
    "pattern and length": (
        {"type": "string", "pattern": "^a{9}$", "maxLength": 8}, "/pattern", "no string",
    ),
    "pattern too large for its format": (
        {"type": "string", "pattern": "(?=.{1,253}$)", "format": "uri"}, "/pattern", "without it",
    ),
    "many automata": (
        {"anyOf": [{"type": "string", "pattern": rf"^[\s\w]{{{i}}}$"} for i in range(490, 500)]},
        "/anyOf/5", "40000 ranges",
    ),
    "long string": (wrapped({"type": "string", "maxLength": 10**7}), "/properties/x/max", "512"),
    "513": (wrapped({"type": "string", "maxLength": 513}), "/properties/x/maxLength", "512"),
    "many items": ({"type": "array", "maxItems": 129}, "/maxItems", "128"),
    "negative": ({"type": "array", "minItems": -1}, "/minItems", "-1"),
    "true as a number": ({"type": "array", "minItems": True}, "/minItems", "True"),
    "null as a number": ({"type": "string", "maxLength": None}, "/maxLength", "None"),
    "crossed lengths": ({"type": "string", "minLength": 3, "maxLength": 2}, "/minLength", "3"),
    "crossed items": ({"type": "array", "minItems": 3, "maxItems": 2}, "/maxItems", "3"),
    "empty range": ({"type": "integer", "minimum": 3, "maximum": 2}, "/", "between"),
    "empty open range": ({"type": "number", "exclusiveMinimum": 2, "maximum": 2}, "/", "between"),
    "fine bound": ({"type": "number", "minimum": 1e-16}, "/minimum", "15 decimals"),
    "empty fraction": ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 0.5}, "/", "between"),
    "huge bound": ({"type": "integer", "maximum": 10**400}, "/maximum", "finite"),
    "bound above every number": ({"type": "integer", "minimum": 2**53}, "/", "between"),
    "format's bounds": ({"type": "integer", "format": "int8", "minimum": 128}, "/", "between"),
    "two names": ({"type": "object", "propertyNames": {"type": "null"}}, "/propert", "string"),
    "names and properties": (
        wrapped({}) | {"propertyNames": {"type": "string", "pattern": "^x$"}}, "/prop", "beside",
    ),
    "merged types": ({"type": "object", "anyOf": [{"type": "string"}]}, "/anyOf/0", "'type'"),
    "merged union": ({"anyOf": [{"anyOf": [{}]}], "type": "object"}, "/anyOf/0", "merged"),
    "merged property": (
        wrapped({"type": "null"}) | {"anyOf": [wrapped({"type": "string"})]}, "/anyOf/0", "'x'",
    ),
    "closed beside more": (
        {"allOf": [{**wrapped({}), "additionalProperties": False}, {"properties": {"y": {}}}]},
        "/allOf/1", "'y'",
    ),
    "nan bound": ({"type": "integer", "maximum": float("nan")}, "/maximum", "nan"),
    "draft 4 bound": ({"type": "integer", "exclusiveMinimum": True}, "/exclusiveMinimum", "True"),
    "multipleOf": ({"type": "integer", "multipleOf": 2}, "/multipleOf", "multipleOf"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "/uniqueItems", "uniqueItems"),
    "not": ({"not": {"type": "null"}}, "/not", "not"),
    "if": ({"type": "object", "if": {}}, "/if", "if"),
    "format": ({"type": "string", "format": "host-name"}, "/format", "host-name"),
    "format list": ({"type": "string", "format": ["date"]}, "/format", "date"),
    "unknown type": ({"type": "str"}, "/type", "'str'"),
    "dict type": ({"type": {"a": 1}}, "/type", "a"),
    "no types": ({"type": []}, "/type", "empty"),
    "wrong home": ({"type": "integer", "maxLength": 3}, "/maxLength", "integer"),
    "required": (wrapped({}) | {"required": ["y"]}, "/required", "'y'"),
    "required text": (wrapped({}) | {"required": "x"}, "/required", "list"),
    "properties list": ({"type": "object", "properties": ["x"]}, "/properties", "object"),
    "false": (wrapped(False), "/properties/x", "true"),
    "list schema": (wrapped([]), "/properties/x", "object"),
    "empty anyOf": ({"anyOf": []}, "/anyOf", "non-empty"),
    "anyOf text": ({"anyOf": "ab"}, "/anyOf", "list"),
    "allOf": ({"allOf": [{"type": "null"}, {"type": "string"}]}, "/allOf/1", "'type'"),
    "object const": ({"const": {"a": 1}}, "/const", "scalar"),
    "nan const": ({"const": float("nan")}, "/const", "finite"),
    "enum type": ({"type": "string", "enum": ["a", 1]}, "/enum", "1"),
    "true is no integer": ({"type": "integer", "enum": [True]}, "/enum", "True"),
    "empty enum": ({"enum": []}, "/enum", "1 to 128"),
    "big enum": ({"enum": list(range(129))}, "/enum", "128"),
    "surrogate enum": ({"enum": ["\ud800"]}, "/enum", "surrogate"),
    "surrogate name": ({"type": "object", "properties": {"\ud800": {}}}, "/prop", "surrogate"),
    "long name": ({"type": "object", "properties": {"n" * 999: {}}}, "/properties/n", "128"),
    "remote ref": ({"$ref": "https://example.org/x"}, "/$ref", "$defs"),
    "root ref": (wrapped({"$ref": "#"}), "/properties/x/$ref", "itself"),
    "missing ref": ({"$ref": "#/$defs/A", "$defs": {}}, "/$ref", "not defined"),
    "ref into a list": ({"$ref": "#/$defs/A", "$defs": []}, "/$ref", "not defined"),
    "ref and more": ({"$ref": "#/$defs/A", "$defs": {"A": {}}, "type": "null"}, "/type", "$ref"),
    "inner defs": (wrapped({"type": "null", "$defs": {}}), "/properties/x", "root"),
    "self": ({"$ref": "#/$defs/A", "$defs": {"A": {"$ref": "#/$defs/A"}}}, "/$defs/A/", "itself"),
    "not a schema": ([1], "/", "list"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_place_the_reason_and_a_way_out(name: str) -> None:
    schema, path, word = REFUSED[name]
    with pytest.raises(SchemaError) as caught:
        check_schema(schema)
    error = caught.value
    assert path in error.what and error.hint
    assert word in error.why + error.hint


def test_a_tree_that_contains_itself_is_refused() -> None:
    class Tree(BaseModel):
        children: list[Tree]

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    with pytest.raises(SchemaError, match="contains itself"):
        check_schema(Tree.model_json_schema())


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels - 1):
        schema = {"type": "array", "items": schema}
    return schema


def test_depth_is_counted() -> None:
    check_schema(nested(16))
    for levels in (17, 900):
        with pytest.raises(SchemaError, match="deeper than 16"):
            check_schema(nested(levels))


def test_nodes_are_counted() -> None:
    def wide(n: int) -> dict[str, Any]:
        properties = {f"p{i}": {"type": "null"} for i in range(n)}
        return {"type": "object", "properties": properties, "additionalProperties": False}

    check_schema(wide(199))
    with pytest.raises(SchemaError, match="more than 200"):
        check_schema(wide(200))


def test_a_bomb_of_references_is_refused_without_being_expanded() -> None:
    """Expanded, it has 10^13 nodes: the test would never end."""
    defs: dict[str, Any] = {"d0": {"type": "null"}}
    for i in range(1, 14):
        defs[f"d{i}"] = {"anyOf": [{"$ref": f"#/$defs/d{i - 1}"}] * 10}
    with pytest.raises(SchemaError):
        check_schema({"$ref": "#/$defs/d13", "$defs": defs})


def test_a_long_hostile_value_does_not_flood_the_message() -> None:
    with pytest.raises(SchemaError) as caught:
        check_schema({"type": "x" * 100_000})
    assert len(caught.value.what + caught.value.why + caught.value.hint) < 2000


ODD_VALUES = (10**5000, "\ud800", float("inf"), {"a": [1] * 99999}, b"x")


@pytest.mark.parametrize("value", ODD_VALUES, ids=["digits", "surrogate", "inf", "big", "bytes"])
@pytest.mark.parametrize("keyword", ["type", "enum", "maxLength", "maximum", "const", "$ref"])
def test_odd_values_are_shown_safely(keyword: str, value: Any) -> None:
    schema = {keyword: value} if keyword != "maxLength" else {"type": "string", keyword: value}
    with pytest.raises(SchemaError) as caught:
        check_schema({"type": "integer", keyword: value} if keyword == "maximum" else schema)
    str(caught.value).encode()


def test_what_the_nodes_say() -> None:
    node = parse_schema(
        {
            "type": "object",
            "properties": {
                "b": {"type": ["integer", "null"], "exclusiveMinimum": 0},
                "a": {"type": "string", "maxLength": 3},
            },
            "required": ["a"],
        }
    )
    assert isinstance(node, Object)
    first, second = node.properties
    assert (first.name, first.required, second.name, second.required) == ("b", False, "a", True)
    assert isinstance(first.value, Union) and first.value.options[0] == Number(True, 1)
    assert second.value == String(0, 3)
    assert parse_schema({}) == AnyValue(only_object=True)


def test_the_front_can_import_it_without_native_code() -> None:
    import subprocess
    import sys

    code = (
        "import sys, edge_agent.prompt.json_schema;"
        "print(sorted({'llama_cpp', 'numpy', 'gguf', 'jinja2', 'msgspec'} & set(sys.modules)))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"


_WORDS = sorted({*ANNOTATIONS, *COMBINERS, "type"}.union(*KEYWORDS.values()))
_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from([*_WORDS, "x"]),
            st.one_of(inner, st.sampled_from(["object", "array", "string", "integer", "number"])),
            max_size=4,
        ),
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["type", "properties", "items", "anyOf", "$defs"]), _JSON))
@settings(max_examples=120, deadline=None)
def test_any_json_is_a_schema_or_a_typed_error(document: dict[str, Any]) -> None:
    try:
        check_schema(document)
    except SchemaError as error:
        assert error.why and error.hint


@pytest.mark.parametrize("name", FORMATS)
def test_the_strings_of_a_format_are_short(name: str) -> None:
    """A maxLength of MAX_STRING_CHARS and more is left out beside a format."""
    states = automaton((f"^(?:{FORMATS[name]})$",), 0, None).states

    reached, length = {0}, -1
    while reached:
        reached = {to for at in reached for _, to in states[at].moves}
        length += 1
        assert length <= MAX_STRING_CHARS
    assert length > 0


def test_the_variants_of_a_tagged_enum_of_schemars_stand_beside_their_ref() -> None:
    tag = {"properties": {"kind": {"const": "fan"}}, "required": ["kind"], "type": "object"}
    fan = {"id": "Fan", "type": "object", "properties": {"rpm": {"type": "integer"}}}
    document = {"oneOf": [{**tag, "$ref": "#/$defs/Fan"}], "$defs": {"Fan": fan}}
    node = parse_schema(document)
    assert isinstance(node, Object)
    assert [(one.name, one.required) for one in node.properties] == [("kind", True), ("rpm", False)]
    with pytest.raises(SchemaError, match="cannot be merged"):
        parse_schema({**tag, "$ref": "#"})
