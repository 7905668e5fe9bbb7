"""The subset of JSON Schema that can be turned into a grammar, checked and parsed into nodes.

Why it exists: llama.cpp's own converter recurses without a limit, and unrolls `maxLength: 10000000`
until the process dies. So the front checks a schema before a worker sees it. Flows in: a decoded
JSON document from a client. Flows out: nodes for grammar.py, or SchemaError with the place
(`/properties/x/pattern`), the reason and what to do.

Every answer that the grammar allows is valid under the schema, but not the other way round: an
object with `properties` has only these, in their order; oneOf is treated as anyOf; an array without
maxItems has at most 128 items; whole numbers stay within what a double states exactly. Not here:
strings and numbers (schema_strings.py, schema_numbers.py), the grammar, and validating documents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge_agent.prompt.schema_merge import merged
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
from edge_agent.prompt.schema_numbers import number_node
from edge_agent.prompt.schema_place import (
    COMBINERS,
    KEYWORDS,
    Place,
    check_text,
    is_annotation,
    refuse,
    shown,
)
from edge_agent.prompt.schema_strings import MAX_STRING_CHARS, string_node

MAX_DEPTH = 16
MAX_NODES = 200
MAX_SIZE = 40_000
"""Ranges of characters in all automata of one schema: a bound on the length of the grammar."""
MAX_STEPS = 300_000
"""Of all automata of one schema (automaton.MAX_STEPS): a bound on the time."""
MAX_ITEMS = 128
MAX_ENUM_VALUES = 128
MAX_NAME_CHARS = 128


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises SchemaError unless parse_schema would succeed."""
    parse_schema(schema)


def parse_schema(schema: Mapping[str, Any]) -> Node:
    """Nodes of a schema; `{}` is any JSON object. Raises SchemaError.

    Time is bounded: at most MAX_NODES subschemas are parsed, and each use of a $ref counts again.
    """
    if not isinstance(schema, Mapping):
        refuse("", f"the schema is a {type(schema).__name__}, not an object")
    if all(map(is_annotation, schema)):
        return AnyValue(only_object=True)
    return _Parser(schema).node(schema, "", ())


class _Parser:
    """Parses one document and counts its nodes."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._nodes = 0
        self._size = self._steps = 0

    def node(self, schema: Any, path: str, refs: tuple[str, ...], depth: int = 1) -> Node:
        """The node of `schema`. `refs` are the $refs that lead here, by which cycles are found."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            refuse(path, f"more than {MAX_NODES} subschemas ($refs counted at each use)", _SPLIT)
        if depth > MAX_DEPTH:
            refuse(path, f"nested deeper than {MAX_DEPTH}", _SPLIT)
        if schema is True:
            return AnyValue()
        if not isinstance(schema, Mapping):
            refuse(path, "a subschema must be an object or true")
        keywords = {key for key in schema if not is_annotation(key)}
        if depth > 1 and ("$defs" in schema or "definitions" in schema):
            refuse(path, "$defs are read at the root only", "move them to the root")
        if not keywords:
            return AnyValue()
        combiner = next((one for one in COMBINERS if one in keywords), "")
        parse = _COMBINER_PARSERS.get(combiner, _Parser._typed)
        node = parse(self, Place(schema, keywords, path, refs, depth))
        return Union((node, Literals(("null",)))) if schema.get("nullable") is True else node

    def child(self, place: Place, schema: Any, *steps: str | int) -> Node:
        path = place.at(*steps)
        return self.node(schema, path, place.refs, place.depth + 1)

    def reference(self, place: Place) -> Node:
        beside = place.keywords - {"$ref"}
        if "properties" in beside:  # as schemars 1 writes the variants of a tagged enum
            rest = {key: place.schema[key] for key in beside}
            one = self._merged(place, place.at("$ref"), rest, {"$ref": place.schema["$ref"]})
            refs = (*place.refs, place.schema["$ref"])
            return self.node(one, place.path, refs, place.depth + 1)
        place.alone("$ref")
        target, schema = self._target(place)
        return self.node(schema, target[1:], (*place.refs, target), place.depth + 1)

    def _target(self, place: Place) -> tuple[str, Any]:
        """The JSON pointer of a $ref and what it points to in this document."""
        target = place.schema["$ref"]
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            why = f"{shown(target)} does not point into this document"
            refuse(place.at("$ref"), why, "put the schema into $defs and write #/$defs/NAME")
        if target in place.refs:
            refuse(
                place.at("$ref"),
                f"{shown(target)} contains itself",
                "write out as many levels as you need: the answer must have an end",
            )
        found: Any = self._root
        for step in target.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name[:9]) < len(found):
                found = found[int(name)]
            elif isinstance(found, Mapping) and name in found:
                found = found[name]
            else:
                refuse(place.at("$ref"), f"{shown(target)} is not defined", "define it in $defs")
        return target, found

    def union(self, place: Place) -> Node:
        """anyOf and oneOf; what stands beside them holds in each option too."""
        keyword = "anyOf" if "anyOf" in place.keywords else "oneOf"
        options = _options(place, keyword)
        beside = {key: place.schema[key] for key in place.keywords - {keyword}}
        nodes = []
        for i, option in enumerate(options):
            if beside:
                option = self._merged(place, place.at(keyword, i), beside, option)
            nodes.append(self.child(place, option, keyword, i))
        return nodes[0] if len(nodes) == 1 else Union(tuple(nodes))

    def all_of(self, place: Place) -> Node:
        """allOf and what stands beside it. A single schema alone is what older versions of pydantic
        write around a $ref."""
        options = _options(place, "allOf")
        beside: Any = {key: place.schema[key] for key in place.keywords - {"allOf"}}
        if len(options) == 1 and not beside:
            return self.child(place, options[0], "allOf", 0)
        for i, option in enumerate(options):
            beside = self._merged(place, place.at("allOf", i), beside, option)
        return self.node(beside, place.path, place.refs, place.depth + 1)

    def _merged(self, place: Place, path: str, beside: Mapping[str, Any], option: Any) -> Any:
        """`option` and what stands beside it, as one schema; a $ref in it is followed once."""
        self._nodes += 1
        if isinstance(option, Mapping) and "$ref" in option:
            _, option = self._target(Place(option, set(option), path, place.refs, place.depth))
        if not isinstance(option, Mapping) or {"$ref", "anyOf", "oneOf", "allOf"} & set(option):
            why = "it cannot be merged with what stands beside it"
            refuse(path, why, "write it out in one schema")
        return merged(beside, option, path)

    def _typed(self, place: Place) -> Node:
        types = _types(place)
        allowed = frozenset({"type"}).union(*(KEYWORDS[name] for name in types))
        for keyword in sorted(place.keywords - allowed, key=str):
            refuse(
                place.at(keyword),
                f"{shown(keyword)} is not supported for type {', '.join(types)}",
                f"supported there: {', '.join(sorted(allowed))}",
            )
        nodes = [_TYPE_PARSERS[name](self, place, name) for name in types]
        return nodes[0] if len(nodes) == 1 else Union(tuple(nodes))

    def object(self, place: Place, _: str) -> Node:
        properties = place.schema.get("properties", {})
        if not isinstance(properties, Mapping):
            refuse(place.at("properties"), "it must be an object of schemas")
        required = place.schema.get("required", [])
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            refuse(place.at("required"), "it must be a list of property names")
        names = self._names(place)
        if isinstance(names, Literals):
            others = place.schema.get("additionalProperties", True)
            properties = {
                name: properties.get(name, others) for name in map(json.loads, names.texts)
            }
        for name in required:
            if name not in properties:
                refuse(
                    place.at("required"), f"{shown(name)} is not in properties", "define it there"
                )
        parsed = []
        for name, value in properties.items():
            check_text(name, place.at("properties", name), MAX_NAME_CHARS)
            node = self.child(place, value, "properties", name)
            parsed.append(Property(name, node, name in required))
        if parsed and not isinstance(names, Literals) and names != String():
            refuse(place.at("propertyNames"), "it cannot stand beside properties", "leave one out")
        return Object(tuple(parsed), None if parsed else self._others(place), names)

    def _names(self, place: Place) -> Node:
        """The names that an object's members may have: String() for any."""
        if place.schema.get("propertyNames", True) in (True, {}):
            return String()
        names = self.child(place, place.schema["propertyNames"], "propertyNames")
        if isinstance(names, AnyValue):
            return String()
        is_text = isinstance(names, Literals) and all(t.startswith('"') for t in names.texts)
        if not (isinstance(names, String) or is_text):
            refuse(place.at("propertyNames"), "names are strings", "give it the type string")
        return names

    def _others(self, place: Place) -> Node | None:
        others = place.schema.get("additionalProperties", True)
        if others is False:
            return None
        return self.child(place, others, "additionalProperties")

    def array(self, place: Place, _: str) -> Node:
        first, items = _items(place)
        if not isinstance(first, list):
            refuse(place.at("prefixItems"), "it must be a list of schemas")
        nodes = tuple(self.child(place, item, "prefixItems", i) for i, item in enumerate(first))
        rest = None if items is False else self.child(place, items, "items")
        low = place.count("minItems", MAX_ITEMS) or 0
        high = place.count("maxItems", MAX_ITEMS)
        high = MAX_ITEMS if high is None else high
        if rest is None:
            high = min(high, len(nodes))
        if max(low, len(nodes)) > high:
            refuse(place.at("maxItems"), f"{max(low, len(nodes))} items are needed, {high} allowed")
        return Array(nodes, rest, max(low, len(nodes)), high)

    def string(self, place: Place, _: str) -> Node:
        return self._counted(place, string_node(place))

    def number(self, place: Place, name: str) -> Node:
        return self._counted(place, number_node(place, name))

    def _counted(self, place: Place, node: String | Number) -> Node:
        if node.automaton is not None:
            self._size += node.automaton.size
            self._steps += node.automaton.steps
        if self._size > MAX_SIZE or self._steps > MAX_STEPS:
            why = f"patterns, formats and bounds need more than {MAX_SIZE} ranges of characters"
            refuse(place.path, f"{why} or {MAX_STEPS} steps", _SPLIT)
        return node

    def fixed(self, place: Place, name: str) -> Node:
        return Literals(("true", "false") if name == "boolean" else ("null",))


_SPLIT = "simplify the schema, or ask in several requests"


def _types(place: Place) -> list[str]:
    """The type names of a place, guessed from its keywords when `type` is missing."""
    named = place.schema.get("type")
    if named is None and "type" not in place.schema:
        guesses = [t for t in ("object", "array", "string") if KEYWORDS[t] & place.keywords]
        if len(guesses) != 1:
            unknown = sorted(map(str, place.keywords))
            refuse(place.at(unknown[0]), f"{shown(unknown[0])} is not supported without a type")
        return guesses
    names = named if isinstance(named, list) else [named]
    for name in names:
        if not isinstance(name, str) or name not in KEYWORDS:
            refuse(place.at("type"), f"{shown(name)} is not one of {', '.join(KEYWORDS)}")
    if not names:
        refuse(place.at("type"), "the list of types is empty")
    return list(dict.fromkeys(names))


def _literals(parser: _Parser, place: Place) -> Node:
    """The values of enum or const, which must be scalars of `type` where it is given too."""
    keyword = "const" if "const" in place.keywords else "enum"
    place.alone(keyword, "type")
    values = [place.schema["const"]] if keyword == "const" else place.schema["enum"]
    if not isinstance(values, list) or not 0 < len(values) <= MAX_ENUM_VALUES:
        refuse(place.at(keyword), f"it must be a list of 1 to {MAX_ENUM_VALUES} values")
    types = _types(place) if "type" in place.keywords else list(KEYWORDS)
    for value in values:
        if isinstance(value, str):
            check_text(value, place.at(keyword), MAX_STRING_CHARS)
        if not any(_fits(value, name) for name in types):
            refuse(
                place.at(keyword),
                f"{shown(value)} is not a scalar of type {', '.join(types)}",
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


def _options(place: Place, keyword: str) -> Sequence[Any]:
    options = place.schema[keyword]
    if not isinstance(options, list) or not options:
        refuse(place.at(keyword), "it must be a non-empty list of schemas")
    return options


def _items(place: Place) -> tuple[Any, Any]:
    """The schemas of the first items and that of the others, in the words of draft 2020-12 or of
    draft 7 (a list of `items` and `additionalItems`)."""
    items = place.schema.get("items")
    if isinstance(items, list):
        return items, place.schema.get("additionalItems", True)
    first = place.schema.get("prefixItems", [])
    return first, place.schema.get("items", not first)


_COMBINER_PARSERS: dict[str, Callable[[_Parser, Place], Node]] = {
    "$ref": _Parser.reference,
    "anyOf": _Parser.union,
    "oneOf": _Parser.union,
    "allOf": _Parser.all_of,
    "const": _literals,
    "enum": _literals,
}
_TYPE_PARSERS: dict[str, Callable[[_Parser, Place, str], Node]] = {
    "object": _Parser.object,
    "array": _Parser.array,
    "string": _Parser.string,
    "integer": _Parser.number,
    "number": _Parser.number,
    "boolean": _Parser.fixed,
    "null": _Parser.fixed,
}
