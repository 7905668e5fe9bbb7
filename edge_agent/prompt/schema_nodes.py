"""What a JSON schema means for an answer: the tree between json_schema.py and grammar.py.

Pure data, frozen and hashable (equal nodes share one grammar rule). Flows in: json_schema.py builds
it from a client's schema. Flows out: grammar.py writes GBNF from it. Not here: either of them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnyValue:
    """Any JSON value, or with only_object any JSON object; nesting is bounded by the grammar."""

    only_object: bool = False


@dataclass(frozen=True)
class Literals:
    """One of these JSON texts."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class String:
    """A string of min_chars to max_chars (None = no limit) code points, or of a format."""

    min_chars: int = 0
    max_chars: int | None = None
    format: str | None = None


@dataclass(frozen=True)
class Number:
    """low <= value <= high (None = open). A *_open bound itself is excluded."""

    whole: bool
    low: int | None = None
    high: int | None = None
    low_open: bool = False
    high_open: bool = False


@dataclass(frozen=True)
class Array:
    """The `first` items, then between min_items and max_items (in all) of `rest`."""

    first: tuple[Node, ...]
    rest: Node | None
    min_items: int
    max_items: int


@dataclass(frozen=True)
class Property:
    name: str
    value: Node
    required: bool


@dataclass(frozen=True)
class Object:
    """These properties in this order; without any, names of any kind with `others` as values."""

    properties: tuple[Property, ...]
    others: Node | None


@dataclass(frozen=True)
class Union:
    options: tuple[Node, ...]


Node = AnyValue | Literals | String | Number | Array | Object | Union
