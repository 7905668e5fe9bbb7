"""Two schemas that must hold at once, as one.

Why it exists: .NET writes what all variants of a class share beside anyOf, zod writes several
patterns into allOf. Flows in: two subschemas. Flows out: one whose valid values satisfy both; or
SchemaError where that would take more than laying their keywords side by side. Not here: which
subschemas are merged (json_schema.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_agent.prompt.schema_place import is_annotation, refuse, shown

_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")


def merged(one: Mapping[str, Any], other: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The keywords of both. Raises SchemaError for `path` where they contradict each other."""
    _check_closed(one, other, path)
    _check_closed(other, one, path)
    result = dict(one)
    for keyword, value in other.items():
        if keyword not in result or is_annotation(keyword):
            result[keyword] = value
        elif result[keyword] != value or type(result[keyword]) is not type(value):
            result[keyword] = _both(keyword, result[keyword], value, path)
    return result


def _both(keyword: str, one: Any, other: Any, path: str) -> Any:
    if keyword == "pattern":
        return (*(one if isinstance(one, tuple) else (one,)), other)
    if keyword == "required" and isinstance(one, list) and isinstance(other, list):
        return [*one, *other]
    if keyword == "properties" and isinstance(one, Mapping) and isinstance(other, Mapping):
        twice = next((name for name in one if name in other and one[name] != other[name]), None)
        if twice is None:
            return {**one, **other}
        refuse(path, f"property {shown(twice)} stands in two schemas that differ", "merge them")
    if keyword in (*_LEAST, *_MOST) and {type(one), type(other)} <= {int, float}:
        return max(one, other) if keyword in _LEAST else min(one, other)
    refuse(path, f"{shown(keyword)} stands in two schemas that differ", "merge them")


def _check_closed(closed: Mapping[str, Any], other: Mapping[str, Any], path: str) -> None:
    """Refuse properties of `other` that the additionalProperties of `closed` would rule over."""
    if closed.get("additionalProperties", True) in (True, {}):
        return
    names, known = other.get("properties", {}), closed.get("properties", {})
    if isinstance(names, Mapping) and isinstance(known, Mapping):
        for name in names:
            if name not in known:
                refuse(
                    path,
                    f"property {shown(name)} is an additional one of the schema beside it",
                    "merge them",
                )
