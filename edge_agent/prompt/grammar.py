"""A JSON schema as a GBNF grammar for llama.cpp.

Why it exists: the worker constrains an answer token by token with llama.cpp's grammar engine, which
ends the process when a rule is undefined or a repetition is huge. This module defines every rule
that it names, and every repetition `{m,n}` has bounds. Flows in: a schema, which json_schema.py
parses. Flows out: GBNF text with the start symbol `root`. Not here: running the grammar
(llama/sampling.py).

White space is at most one blank, or one line break with up to 16 blanks; without a limit, small
models emit blanks until max_tokens. An answer that reaches max_tokens is cut off, as any answer is,
and may be incomplete JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.prompt.automaton import EVERY, Ranges, State, difference, intersection
from edge_agent.prompt.json_schema import parse_schema
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
from edge_agent.prompt.schema_numbers import MAX_WHOLE

ANY_DEPTH = 8
"""Levels of nesting in 'any JSON value'. The bound limits the stack of llama.cpp's grammar."""
_WHOLE_DIGITS = 15
"""Most digits of a number without a bound on that side: a double represents 10**15 exactly."""
_FRACTION = f'("." [0-9]{{1,{_WHOLE_DIGITS}}})?'

_CHAR = (
    r"""[^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] hex{3} | [dD] [0-7] hex{2}))"""
)
"""One code point, raw or escaped. The escapes \\uD800 to \\uDFFF are left out: one half of a
surrogate pair is not text."""
_NUMBER = r'"-"? (%s) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?'
_NATURAL = '"0" | [1-9] [0-9]{0,%d}'

PRIMITIVES: dict[str, str] = {
    "ws": r'" "? | "\n" [ \t]{0,16}',
    "hex": "[0-9a-fA-F]",
    "char": _CHAR,
    "string": r'"\"" char* "\""',
    "number": _NUMBER % (_NATURAL % 15),
    "integer": f'"-"? ({_NATURAL % 17})',
    "colon": '":" " "?',
    "comma": '"," ws',
}
"""Rules by name; each uses only rules of this table."""


def schema_to_gbnf(schema: Mapping[str, Any]) -> str:
    """GBNF of a schema; `{}` allows any JSON object. Raises SchemaError as parse_schema does.

    >>> print(schema_to_gbnf({"enum": ["yes", "no"]}), end="")
    root ::= r0
    r0 ::= "\\"yes\\"" | "\\"no\\""
    """
    writer = _Writer()
    writer.define("root", writer.reference(parse_schema(schema)))
    return writer.text()


def literal(text: str) -> str:
    """A GBNF string that matches exactly `text`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def repeat(item: str, low: int, high: int) -> str:
    """GBNF for `item` (one symbol) repeated `low` to `high` times."""
    if high == 0:
        return '""'
    return item if low == high == 1 else f"{item}{{{low},{high}}}"


class _Writer:
    """Collects rules; equal nodes share one rule."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}
        self._names: dict[Node, str] = {}

    def text(self) -> str:
        """All rules that are used, with the primitives they name; root comes first."""
        used = dict(self._rules)
        pending = list(self._rules.values())
        while pending:
            words = pending.pop().replace("(", " ").replace(")", " ").replace("{", " ").split()
            for word in words:
                name = word.rstrip("*?")
                if name in PRIMITIVES and name not in used:
                    used[name] = PRIMITIVES[name]
                    pending.append(PRIMITIVES[name])
        names = ["root", *(name for name in used if name != "root")]
        return "".join(f"{name} ::= {used[name]}\n" for name in names)

    def define(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name

    def new(self, body: str) -> str:
        return self.define(f"r{len(self._rules)}", body)

    def reference(self, node: Node) -> str:
        """Name of the rule that matches a node; writes the rule when it is new."""
        if node not in self._names:
            self._names[node] = self._rule(node)
        return self._names[node]

    def _rule(self, node: Node) -> str:
        if isinstance(node, AnyValue):
            return self._any(ANY_DEPTH, "object" if node.only_object else "value")
        if isinstance(node, Literals):
            return self.new(" | ".join(map(literal, node.texts)))
        if isinstance(node, String):
            return self._string(node)
        if isinstance(node, Number):
            return self._number(node)
        if isinstance(node, Union):
            return self.new(" | ".join(dict.fromkeys(map(self.reference, node.options))))
        return self._array(node) if isinstance(node, Array) else self._object(node)

    def _string(self, node: String) -> str:
        if node.automaton is not None:
            return self.new(rf'"\"" {self._automaton(node.automaton.states, chr(34))}')
        if node.max_chars is None:
            least = f"{repeat('char', node.min_chars, node.min_chars)} " if node.min_chars else ""
            return self.new(rf'"\"" {least}char* "\""') if least else "string"
        return self.new(rf'"\"" {repeat("char", node.min_chars, node.max_chars)} "\""')

    def _automaton(self, states: Sequence[State], ending: str) -> str:
        """One rule for each state: a character and the rule of the next state, or the ending. The
        name of the first one."""
        first = len(self._rules)
        for state in states:
            ways = [f"{_chars(ranges)} r{first + to}" for ranges, to in state.moves]
            self.new(" | ".join([*ways, *([literal(ending)] if state.accepts else [])]))
        return f"r{first}"

    def _number(self, node: Number) -> str:
        if node.automaton is not None:
            return self._automaton(node.automaton.states, "")
        if node.low is None and node.high is None:
            return "integer" if node.whole else "number"
        return self.new(" | ".join(_bounded(node)))

    def _array(self, node: Array) -> str:
        first = [self.reference(item) for item in node.first]
        low, high = node.min_items - len(first), node.max_items - len(first)
        if node.rest is None or high == 0:
            inside = " comma ".join(first)
            return self.new(f'"[" ws {inside} ws "]"' if inside else '"[" ws "]"')
        item = self.reference(node.rest)
        more = self.new(f"comma {item}")
        if first:
            inside = f"{' comma '.join(first)} {repeat(more, low, high)}"
            return self.new(f'"[" ws {inside} ws "]"')
        inside = f"{item} {repeat(more, max(low - 1, 0), high - 1)}"
        filled = f'"[" ws {inside} ws "]"'
        return self.new(filled if low else f'{filled} | "[" ws "]"')

    def _object(self, node: Object) -> str:
        if node.properties:
            return self._known_object(node.properties)
        if node.others is None:
            return self.new('"{" ws "}"')
        return self._map(self.reference(node.names), self.reference(node.others))

    def _map(self, name: str, value: str) -> str:
        member = self.new(f"{name} colon {value}")
        more = self.new(f"comma {member}")
        return self.new(f'"{{" ws {member} {more}* ws "}}" | "{{" ws "}}"')

    def _known_object(self, properties: Sequence[Property]) -> str:
        """An object with these members, in this order.

        `after` is what may follow a member: each later one, with a comma before it, and with `?`
        when it is optional. `starts` has one alternative for each member that can come first, so
        that no answer begins or ends with a comma.
        """
        members = [
            self.new(
                f"{literal(json.dumps(p.name, ensure_ascii=False))} colon {self.reference(p.value)}"
            )
            for p in properties
        ]
        after = ""
        starts: list[str] = []
        for member, prop in zip(reversed(members), reversed(properties), strict=True):
            starts = [f"{member} {after}".rstrip(), *([] if prop.required else starts)]
            step = f"comma {member}" if prop.required else f"(comma {member})?"
            after = self.new(f"{step} {after}".rstrip())
        inside = starts[0] if len(starts) == 1 else f"({' | '.join(starts)})"
        body = f'"{{" ws {inside} ws "}}"'
        if not any(p.required for p in properties):
            body += ' | "{" ws "}"'
        return self.new(body)

    def _any(self, depth: int, kind: str) -> str:
        """Name of the rule any-value-N, any-object-N or any-array-N, N being the levels of nesting
        that may still follow; writes the rule when it is new."""
        name = f"any-{kind}-{depth}"
        if name in self._rules:
            return name
        if kind == "value":
            nested = [self._any(depth - 1, k) for k in ("object", "array")] if depth else []
            scalars = ["string", "number", '"true"', '"false"', '"null"']
            return self.define(name, " | ".join([*nested, *scalars]))
        value = self._any(depth, "value")
        if kind == "object":
            value = f"string colon {value}"
        left, right = ('"{"', '"}"') if kind == "object" else ('"["', '"]"')
        body = f"{left} ws {value} (comma {value})* ws {right} | {left} ws {right}"
        return self.define(name, body)


# ---- characters of a string ----------------------------------------------------------------------

_RAW: Ranges = difference(EVERY, ((0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)))
_ESCAPES = {0x22: r"\"", 0x5C: r"\\", 8: r"\b", 9: r"\t", 10: r"\n", 12: r"\f", 13: r"\r"}
"""How JSON writes what may not stand raw in a string."""


def _chars(ranges: Ranges) -> str:
    """GBNF of one character of `ranges`, as it stands in a JSON string."""
    raw = "".join(
        _code(low) if low == high else f"{_code(low)}-{_code(high)}"
        for low, high in intersection(ranges, _RAW)
    )
    ways = [f"[{raw}]"] if raw else []
    for code, written in _ESCAPES.items():
        if intersection(ranges, ((code, code),)):
            ways.append(literal(written))
    return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})"


def _code(code: int) -> str:
    char = chr(code)
    if char.isascii() and char.isalnum():
        return char
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


# ---- numbers between bounds ----------------------------------------------------------------------


def _bounded(node: Number) -> list[str]:
    """Alternatives that match the numbers from low to high: those of each sign apart, as a range
    of magnitudes."""
    low = -MAX_WHOLE if node.low is None else node.low
    high = MAX_WHOLE if node.high is None else node.high
    ends = (low, high, node.low_open, node.high_open)
    alternatives: list[str] = []
    if high > 0 or (high == 0 and not node.high_open):
        bottom = (low, node.low_open) if low >= 0 else (0, False)
        alternatives += _magnitudes(node.whole, *bottom, high, node.high_open)
    if low < 0:
        bottom = (-high, node.high_open) if high <= 0 else (0, False)
        negative = _magnitudes(node.whole, *bottom, -low, node.low_open)
        alternatives += [f'"-" {body}' for body in negative]
    assert alternatives, ends
    return alternatives


def _magnitudes(whole: bool, low: int, low_open: bool, high: int, high_open: bool) -> list[str]:
    """Alternatives that match the numbers between two whole magnitudes; decimals unless `whole`."""
    if whole:
        return whole_between(low, high)
    if low == high:
        return [f'{literal(str(low))} ("." "0"{{1,{_WHOLE_DIGITS}}})?']
    inner = whole_between(low + low_open, high - 1) if low + low_open < high else []
    alternatives = [f"{body} {_FRACTION}" for body in inner]
    if low_open:
        fraction = f'"." "0"{{0,{_WHOLE_DIGITS}}} [1-9] [0-9]{{0,{_WHOLE_DIGITS}}}'
        alternatives.append(f"{literal(str(low))} {fraction}")
    if not high_open:
        alternatives.append(f'{literal(str(high))} ("." "0"{{1,{_WHOLE_DIGITS}}})?')
    return alternatives


def whole_between(low: int, high: int) -> list[str]:
    """Alternatives that match exactly the decimal texts of low..high (0 <= low <= high).

    >>> whole_between(8, 12)
    ['[8-9]', '"1" [0-2]']
    """
    alternatives: list[str] = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        bottom = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        alternatives += _same_length(str(bottom), str(min(high, 10**digits - 1)))
    return alternatives


def _same_length(low: str, high: str) -> list[str]:
    n = len(low)
    if n == 0:
        return [""]
    if low[1:] == "0" * (n - 1) and high[1:] == "9" * (n - 1):
        tail = f" [0-9]{{{n - 1}}}" if n > 1 else ""
        return [f"[{low[0]}-{high[0]}]{tail}"]
    if low[0] == high[0]:
        return [f'"{low[0]}" {rest}' for rest in _same_length(low[1:], high[1:])]
    bottom, top = low[0] + "9" * (n - 1), high[0] + "0" * (n - 1)
    alternatives = _same_length(low, bottom)
    if int(low[0]) + 1 < int(high[0]):
        middle = (str(int(low[0]) + 1) + "0" * (n - 1), str(int(high[0]) - 1) + "9" * (n - 1))
        alternatives += _same_length(*middle)
    return alternatives + _same_length(top, high)
