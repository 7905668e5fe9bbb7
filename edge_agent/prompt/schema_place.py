"""A subschema with its place in the document, and the refusal that names the place.

Why it exists: every part of the parser of schemas needs both. Flows in: a schema's members. Flows
out: JSON pointers (RFC 6901), counts, SchemaError. Not here: what the keywords mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from edge_agent.errors import SchemaError

ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly"}
    | {"writeOnly", "discriminator", "externalDocs", "contentEncoding", "contentMediaType"}
    | {"contentSchema", "$schema", "$id", "id", "$anchor", "$comment"}
    | {"$defs", "definitions", "nullable"}
)
"""Members that say nothing about which values are valid; `nullable` (OpenAPI 3.0) is read apart."""
_RANGE = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "format"})
KEYWORDS: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties", "propertyNames"}),
    "array": frozenset({"items", "prefixItems", "additionalItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "format", "pattern"}),
    "integer": _RANGE,
    "number": _RANGE,
    "boolean": frozenset(),
    "null": frozenset(),
}
COMBINERS = ("$ref", "allOf", "anyOf", "oneOf", "const", "enum")


def refuse(path: str, why: str, hint: str = "") -> NoReturn:
    """Raises SchemaError for the subschema or keyword at `path`."""
    supported = ", ".join(sorted(set().union(*KEYWORDS.values()) | {"type", *COMBINERS}))
    raise SchemaError(
        f"JSON schema refused at {path[:200] or '/'}",
        why[:500],
        hint or f"supported keywords: {supported}",
    )


def shown(value: Any) -> str:
    """A client's value for an error message: short and printable. A huge integer is not printed,
    because Python raises ValueError for one with 5,000 digits."""
    if type(value) is int and abs(value) > 10**30:
        return "a number above 1e30"
    return (
        ascii(value)[:80]
        if isinstance(value, str) and not value.isprintable()
        else repr(value)[:80]
    )


def is_annotation(keyword: Any) -> bool:
    """Whether a member can be ignored: ANNOTATIONS and extensions (x-...)."""
    return keyword in ANNOTATIONS or (isinstance(keyword, str) and keyword.startswith("x-"))


@dataclass(frozen=True)
class Place:
    """A subschema and its place in the document."""

    schema: Mapping[str, Any]
    keywords: set[str]
    path: str
    refs: tuple[str, ...]
    depth: int

    def at(self, *steps: str | int) -> str:
        """JSON pointer of what lies `steps` below this place."""
        escaped = (str(step).replace("~", "~0").replace("/", "~1") for step in steps)
        return "/".join([self.path, *escaped])

    def alone(self, keyword: str, *friends: str) -> None:
        """Raises SchemaError when another keyword stands beside `keyword` and its friends."""
        for other in sorted(self.keywords - {keyword, *friends}, key=str):
            refuse(
                self.at(other),
                f"{shown(other)} cannot stand beside {shown(keyword)} here",
                f"move it into the schema that {shown(keyword)} leads to",
            )

    def count(self, keyword: str, limit: int) -> int | None:
        """The whole number of a keyword, None without it. Raises SchemaError above `limit`."""
        value = self.schema.get(keyword)
        if value is None and keyword not in self.schema:
            return None
        if type(value) is not int or not 0 <= value <= limit:
            refuse(
                self.at(keyword),
                f"{shown(value)} is not a whole number from 0 to {limit}",
                f"use {limit} or less",
            )
        return value


def check_text(text: Any, path: str, limit: int) -> None:
    """Raises SchemaError for a text that is too long or is not Unicode."""
    if not isinstance(text, str):
        refuse(path, f"{text!r} is not a string")
    if len(text) > limit:
        refuse(path, f"{len(text)} characters, at most {limit} are supported", "shorten it")
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        refuse(path, "it has a lone surrogate", "send valid Unicode")
