"""The subset of JSON Schema that can be turned into a grammar, checked and parsed into nodes.

Why it exists: llama.cpp's own converter recurses without a limit, unrolls `maxLength: 10000000`
until the process dies, and reads patterns with a hand-written parser. So the front checks a schema
before a worker sees it. Flows in: a decoded JSON document from a client. Flows out: nodes for
grammar.py, or SchemaError with the place (`/properties/x/pattern`), the reason and what to do.

Every answer that the grammar allows is valid under the schema, but not the other way round: an
object with `properties` has only these, in their order; oneOf is treated as anyOf; an array without
maxItems has at most 128 items. Not here: the grammar (grammar.py), and validating documents.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from edge_agent.errors import SchemaError
from edge_agent.prompt.schema_nodes import (
    AnyValue,
    Array,
    Literals,
    Node,
    Number,
    Object,
    Property,
    String,
    Union,
)

MAX_DEPTH = 16
MAX_NODES = 200
MAX_STRING_CHARS = 512
MAX_ITEMS = 128
MAX_ENUM_VALUES = 128
MAX_NAME_CHARS = 128
MAX_BOUND = 10**15
"""Limit on minimum and maximum: a client's double represents whole numbers of this size exactly."""
FORMATS = ("date", "time", "date-time", "uuid", "email")

_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"discriminator", "$schema", "$id", "$comment", "$defs", "definitions"}
)
_RANGE = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
_KEYWORDS: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "format"}),
    "integer": _RANGE,
    "number": _RANGE,
    "boolean": frozenset(),
    "null": frozenset(),
}
_COMBINERS = ("$ref", "anyOf", "oneOf", "allOf", "const", "enum")


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises SchemaError unless parse_schema would succeed."""
    parse_schema(schema)


def parse_schema(schema: Mapping[str, Any]) -> Node:
    """Nodes of a schema; `{}` is any JSON object. Raises SchemaError.

    Time is bounded: at most MAX_NODES subschemas are parsed, and each use of a $ref counts again.
    """
    if not isinstance(schema, Mapping):
        _refuse("", f"the schema is a {type(schema).__name__}, not an object")
    if not set(schema) - _ANNOTATIONS:
        return AnyValue(only_object=True)
    return _Parser(schema).node(schema, "", ())


def _refuse(path: str, why: str, hint: str = "") -> NoReturn:
    supported = ", ".join(sorted(set().union(*_KEYWORDS.values()) | {"type", *_COMBINERS}))
    raise SchemaError(
        f"JSON schema refused at {path[:200] or '/'}",
        why[:500],
        hint or f"supported keywords: {supported}",
    )


def _shown(value: Any) -> str:
    """A client's value for an error message: short and printable. A huge integer is not printed,
    because Python raises ValueError for one with 5,000 digits."""
    if type(value) is int and abs(value) > 10**30:
        return "a number above 1e30"
    return (
        ascii(value)[:80]
        if isinstance(value, str) and not value.isprintable()
        else repr(value)[:80]
    )


class _Parser:
    """Parses one document and counts its nodes."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._nodes = 0

    def node(self, schema: Any, path: str, refs: tuple[str, ...], depth: int = 1) -> Node:
        """The node of `schema`. `refs` are the $refs that lead here, by which cycles are found."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            _refuse(path, f"more than {MAX_NODES} subschemas ($refs counted at each use)", _SPLIT)
        if depth > MAX_DEPTH:
            _refuse(path, f"nested deeper than {MAX_DEPTH}", _SPLIT)
        if schema is True:
            return AnyValue()
        if not isinstance(schema, Mapping):
            _refuse(path, "a subschema must be an object or true")
        keywords = {key for key in schema if key not in _ANNOTATIONS}
        if depth > 1 and ("$defs" in schema or "definitions" in schema):
            _refuse(path, "$defs are read at the root only", "move them to the root")
        for combiner in _COMBINERS:
            if combiner in keywords:
                inside = _Place(schema, keywords, path, refs, depth)
                return _COMBINER_PARSERS[combiner](self, inside)
        if not keywords:
            return AnyValue()
        return self._typed(_Place(schema, keywords, path, refs, depth))

    def child(self, place: _Place, schema: Any, *steps: str | int) -> Node:
        path = place.at(*steps)
        return self.node(schema, path, place.refs, place.depth + 1)

    def reference(self, place: _Place) -> Node:
        place.alone("$ref")
        target = place.schema["$ref"]
        if not isinstance(target, str) or not target.startswith(("#/$defs/", "#/definitions/")):
            _refuse(
                place.at("$ref"), f"{_shown(target)} is not #/$defs/NAME", "put the schema in $defs"
            )
        if target in place.refs:
            _refuse(
                place.at("$ref"),
                f"{target} contains itself",
                "write out as many levels as you need: the answer must have an end",
            )
        _, section, name = target.split("/", 2)
        table = self._root.get(section)
        name = name.replace("~1", "/").replace("~0", "~")
        if not isinstance(table, Mapping) or name not in table:
            _refuse(place.at("$ref"), f"{target} is not defined", f"add it to {section}")
        return self.node(table[name], target[1:], (*place.refs, target), place.depth + 1)

    def union(self, place: _Place) -> Node:
        """anyOf, oneOf, and allOf with a single schema, which older versions of pydantic write."""
        keyword = next(key for key in ("anyOf", "oneOf", "allOf") if key in place.keywords)
        place.alone(keyword)
        options = place.schema[keyword]
        if not isinstance(options, Sequence) or isinstance(options, str) or not options:
            _refuse(place.at(keyword), "it must be a non-empty list of schemas")
        if keyword == "allOf" and len(options) > 1:
            _refuse(place.at(keyword), "only one schema is supported in allOf", "merge them")
        nodes = [self.child(place, option, keyword, i) for i, option in enumerate(options)]
        return nodes[0] if len(nodes) == 1 else Union(tuple(nodes))

    def _typed(self, place: _Place) -> Node:
        types = _types(place)
        allowed = frozenset({"type"}).union(*(_KEYWORDS[name] for name in types))
        for keyword in sorted(place.keywords - allowed, key=str):
            _refuse(
                place.at(keyword),
                f"{_shown(keyword)} is not supported for type {', '.join(types)}",
                f"supported there: {', '.join(sorted(allowed))}",
            )
        nodes = [_TYPE_PARSERS[name](self, place, name) for name in types]
        return nodes[0] if len(nodes) == 1 else Union(tuple(nodes))

    def object(self, place: _Place, _: str) -> Node:
        properties = place.schema.get("properties", {})
        if not isinstance(properties, Mapping):
            _refuse(place.at("properties"), "it must be an object of schemas")
        required = place.schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            _refuse(place.at("required"), "it must be a list of property names")
        for name in required:
            if name not in properties:
                _refuse(
                    place.at("required"), f"{_shown(name)} is not in properties", "define it there"
                )
        parsed = []
        for name, value in properties.items():
            _check_text(name, place.at("properties", name), MAX_NAME_CHARS)
            node = self.child(place, value, "properties", name)
            parsed.append(Property(name, node, name in required))
        return Object(tuple(parsed), self._others(place))

    def _others(self, place: _Place) -> Node | None:
        others = place.schema.get("additionalProperties", True)
        if others is False:
            return None
        return self.child(place, others, "additionalProperties")

    def array(self, place: _Place, _: str) -> Node:
        first = place.schema.get("prefixItems", [])
        if not isinstance(first, list):
            _refuse(place.at("prefixItems"), "it must be a list of schemas")
        nodes = tuple(self.child(place, item, "prefixItems", i) for i, item in enumerate(first))
        items = place.schema.get("items", not first)
        rest = None if items is False else self.child(place, items, "items")
        low = place.count("minItems", MAX_ITEMS) or 0
        high = place.count("maxItems", MAX_ITEMS)
        high = MAX_ITEMS if high is None else high
        if rest is None:
            high = min(high, len(nodes))
        if max(low, len(nodes)) > high:
            _refuse(
                place.at("maxItems"), f"{max(low, len(nodes))} items are needed, {high} allowed"
            )
        return Array(nodes, rest, max(low, len(nodes)), high)

    def string(self, place: _Place, _: str) -> Node:
        low = place.count("minLength", MAX_STRING_CHARS) or 0
        high = place.count("maxLength", MAX_STRING_CHARS)
        layout = place.schema.get("format")
        if high is not None and low > high:
            _refuse(place.at("minLength"), f"{low} is more than maxLength {high}")
        if layout is None:
            return String(low, high)
        if layout not in FORMATS:
            _refuse(
                place.at("format"),
                f"format {_shown(layout)} is not supported",
                f"supported formats: {', '.join(FORMATS)}; or leave it out",
            )
        if low or high is not None:
            _refuse(place.at("format"), "it fixes the length", "leave minLength and maxLength out")
        return String(format=layout)

    def number(self, place: _Place, name: str) -> Node:
        return _number(place, whole=name == "integer")

    def fixed(self, place: _Place, name: str) -> Node:
        return Literals(("true", "false") if name == "boolean" else ("null",))


_SPLIT = "simplify the schema, or ask in several requests"


@dataclass(frozen=True)
class _Place:
    """A subschema and its place in the document."""

    schema: Mapping[str, Any]
    keywords: set[str]
    path: str
    refs: tuple[str, ...]
    depth: int

    def at(self, *steps: str | int) -> str:
        """JSON pointer (RFC 6901) of what lies `steps` below this place."""
        escaped = (str(step).replace("~", "~0").replace("/", "~1") for step in steps)
        return "/".join([self.path, *escaped])

    def alone(self, keyword: str, *friends: str) -> None:
        for other in sorted(self.keywords - {keyword, *friends}, key=str):
            _refuse(
                self.at(other),
                f"{_shown(other)} cannot stand beside {_shown(keyword)} here",
                f"move it into the schema that {_shown(keyword)} leads to",
            )

    def count(self, keyword: str, limit: int) -> int | None:
        value = self.schema.get(keyword)
        if value is None and keyword not in self.schema:
            return None
        if type(value) is not int or not 0 <= value <= limit:
            _refuse(
                self.at(keyword),
                f"{_shown(value)} is not a whole number from 0 to {limit}",
                f"use {limit} or less",
            )
        return value


def _types(place: _Place) -> list[str]:
    """The type names of a place, guessed from its keywords when `type` is missing."""
    named = place.schema.get("type")
    if named is None and "type" not in place.schema:
        guesses = [t for t in ("object", "array", "string") if _KEYWORDS[t] & place.keywords]
        if len(guesses) != 1:
            unknown = sorted(map(str, place.keywords))
            _refuse(place.at(unknown[0]), f"{_shown(unknown[0])} is not supported without a type")
        return guesses
    names = named if isinstance(named, list) else [named]
    for name in names:
        if not isinstance(name, str) or name not in _KEYWORDS:
            _refuse(place.at("type"), f"{_shown(name)} is not one of {', '.join(_KEYWORDS)}")
    if not names:
        _refuse(place.at("type"), "the list of types is empty")
    return list(dict.fromkeys(names))


def _literals(parser: _Parser, place: _Place) -> Node:
    """The values of enum or const, which must be scalars of `type` where it is given too."""
    keyword = "const" if "const" in place.keywords else "enum"
    place.alone(keyword, "type")
    values = [place.schema["const"]] if keyword == "const" else place.schema["enum"]
    if not isinstance(values, list) or not 0 < len(values) <= MAX_ENUM_VALUES:
        _refuse(place.at(keyword), f"it must be a list of 1 to {MAX_ENUM_VALUES} values")
    types = _types(place) if "type" in place.keywords else list(_KEYWORDS)
    for value in values:
        if isinstance(value, str):
            _check_text(value, place.at(keyword), MAX_STRING_CHARS)
        if not any(_fits(value, name) for name in types):
            _refuse(
                place.at(keyword),
                f"{_shown(value)} is not a scalar of type {', '.join(types)}",
                "use strings, finite numbers, true, false or null",
            )
    texts = (json.dumps(value, ensure_ascii=False) for value in values)
    return Literals(tuple(dict.fromkeys(texts)))


def _fits(value: Any, type_name: str) -> bool:
    if type_name in ("integer", "number") and type(value) in (int, float):
        # The limit keeps integers printable: Python refuses to print more than 4,300 digits.
        finite = abs(value) <= 10**30
        return finite and (type_name == "number" or float(value).is_integer())
    scalars: dict[str, type] = {"string": str, "boolean": bool, "null": type(None)}
    return type_name in scalars and type(value) is scalars[type_name]


def _check_text(text: Any, path: str, limit: int) -> None:
    if not isinstance(text, str):
        _refuse(path, f"{text!r} is not a string")
    if len(text) > limit:
        _refuse(path, f"{len(text)} characters, at most {limit} are supported", "shorten it")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        _refuse(path, "it has a lone surrogate", "send valid Unicode")


def _number(place: _Place, whole: bool) -> Number:
    low, low_open = _bound(place, ("minimum", "exclusiveMinimum"), whole, math.ceil, max)
    high, high_open = _bound(place, ("maximum", "exclusiveMaximum"), whole, math.floor, min)
    if whole:
        low = low + 1 if low is not None and low_open else low
        high = high - 1 if high is not None and high_open else high
        low_open = high_open = False
    if low is not None and high is not None:
        empty = low > high or (low == high and (low_open or high_open))
        if empty:
            _refuse(place.path, f"no value lies between {low} and {high}", "widen the bounds")
    return Number(whole, low, high, low_open, high_open)


def _bound(
    place: _Place,
    keywords: tuple[str, str],
    whole: bool,
    inward: Callable[[float], int],
    tighter: Callable[[list[tuple[int, bool]]], tuple[int, bool]],
) -> tuple[int | None, bool]:
    """(bound, whether it is excluded) of one side; with both keywords, the tighter bound."""
    bounds: list[tuple[int, bool]] = []
    for keyword, exclusive in zip(keywords, (False, True), strict=True):
        if keyword not in place.keywords:
            continue
        value = place.schema[keyword]
        if type(value) not in (int, float) or not abs(value) < MAX_BOUND:
            _refuse(place.at(keyword), f"{_shown(value)} is not a number within ±{MAX_BOUND:.0e}")
        rounded = inward(value)
        if rounded != value and not whole:
            _refuse(
                place.at(keyword),
                f"bounds of a number must be whole here, {_shown(value)} is not",
                f"use {math.floor(value)} or {math.ceil(value)}, and check the answer yourself",
            )
        bounds.append((rounded, exclusive and rounded == value))
    if not bounds:
        return None, False
    best = tighter(bounds)
    return best[0], (best[0], True) in bounds


_COMBINER_PARSERS: dict[str, Callable[[_Parser, _Place], Node]] = {
    "$ref": _Parser.reference,
    "anyOf": _Parser.union,
    "oneOf": _Parser.union,
    "allOf": _Parser.union,
    "const": _literals,
    "enum": _literals,
}
_TYPE_PARSERS: dict[str, Callable[[_Parser, _Place, str], Node]] = {
    "object": _Parser.object,
    "array": _Parser.array,
    "string": _Parser.string,
    "integer": _Parser.number,
    "number": _Parser.number,
    "boolean": _Parser.fixed,
    "null": _Parser.fixed,
}
