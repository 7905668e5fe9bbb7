"""What a JSON schema means for an answer: the tree between json_schema.py and grammar.py.

Why it exists: the parser of schemas and the writer of grammars need to know only these nodes and
not each other. Nodes are frozen and hashable, so that equal nodes share one rule of the grammar.
Flows in: json_schema.py builds the tree from a client's schema. Flows out: grammar.py writes GBNF
from it. Not here: parsing and writing.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge_agent.prompt.automaton import Automaton


@dataclass(frozen=True)
class AnyValue:
    """Any JSON value, or, with `only_object`, any JSON object. The grammar limits the nesting."""

    only_object: bool = False


@dataclass(frozen=True)
class Literals:
    """One of these JSON texts, exactly."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class String:
    """A string of min_chars to max_chars (None: no limit) code points, or one that `automaton`
    accepts."""

    min_chars: int = 0
    max_chars: int | None = None
    automaton: Automaton | None = None


@dataclass(frozen=True)
class Number:
    """A number with low <= value <= high; None: no bound. With `low_open` or `high_open` the bound
    itself is excluded. `whole`: integers only. With `automaton`, the decimal texts that
    it accepts."""

    whole: bool
    low: int | None = None
    high: int | None = None
    low_open: bool = False
    high_open: bool = False
    automaton: Automaton | None = None


@dataclass(frozen=True)
class Array:
    """The items `first`, then further items of `rest`. `min_items` and `max_items` count all
    items, those of `first` included."""

    first: tuple[Node, ...]
    rest: Node | None
    min_items: int
    max_items: int


@dataclass(frozen=True)
class Property:
    """One property of an object."""

    name: str
    value: Node
    required: bool


@dataclass(frozen=True)
class Object:
    """These properties, in this order. Without properties: members with a name of `names` (any
    string) whose values are `others`, or the empty object when `others` is None."""

    properties: tuple[Property, ...]
    others: Node | None
    names: Node = String()


@dataclass(frozen=True)
class Union:
    """Any one of several nodes."""

    options: tuple[Node, ...]


Node = AnyValue | Literals | String | Number | Array | Object | Union
