"""What a schema of the type integer or number allows: its bounds.

Flows in: a place of one of these types. Flows out: a Number node, or SchemaError. Bounds outside of
the whole numbers that a double states exactly are drawn in to these. Fractional bounds become a
pattern of decimal texts, and its automaton. The formats int8 to uint32 are
bounds; any other format of a number is ignored, as JSON Schema has it. Not here: the grammar
(grammar.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from edge_agent.prompt.automaton import Automaton, TooLarge
from edge_agent.prompt.schema_nodes import Number
from edge_agent.prompt.schema_place import Place, refuse, shown
from edge_agent.prompt.schema_strings import automaton

MAX_WHOLE = 2**53 - 1
"""JavaScript's Number.MAX_SAFE_INTEGER: a double states every whole number up to it exactly."""
MAX_DECIMALS = 15
_LOW = {"minimum": False, "exclusiveMinimum": True}
_HIGH = {"maximum": False, "exclusiveMaximum": True}
"""Keyword -> whether the bound itself is excluded."""
_BITS = {"8": 8, "16": 16, "32": 32}
FORMAT_BOUNDS = {
    **{f"int{name}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for name, bits in _BITS.items()},
    **{f"uint{name}": (0, 2**bits - 1) for name, bits in _BITS.items()},
    **dict.fromkeys(("uint", "uint64", "uint128"), (0, MAX_WHOLE)),
}


@dataclass(frozen=True)
class _Bound:
    """One end of a range; `open`: the value itself is excluded."""

    value: Decimal
    open: bool = False


def number_node(place: Place, type_name: str) -> Number:
    """The node of a place of the type integer or number. Raises SchemaError."""
    layout = place.schema.get("format")
    known = FORMAT_BOUNDS.get(layout) if isinstance(layout, str) else None
    low, high = _bounds(place, _LOW), _bounds(place, _HIGH)
    whole = type_name == "integer" or known is not None
    if known is not None:
        low, high = [*low, _Bound(Decimal(known[0]))], [*high, _Bound(Decimal(known[1]))]
    if whole:
        low, high = [_inward(one, up=True) for one in low], [_inward(one, up=False) for one in high]
    bottom = max([_Bound(Decimal(-MAX_WHOLE)), *low], key=lambda one: (one.value, one.open))
    top = min([_Bound(Decimal(MAX_WHOLE)), *high], key=lambda one: (one.value, not one.open))
    if bottom.value > top.value or (bottom.value == top.value and (bottom.open or top.open)):
        why = f"no value lies between {bottom.value} and {top.value}"
        refuse(place.path, why, "widen the bounds")
    if any(one.value % 1 for one in (bottom, top)):
        return Number(False, automaton=_between(place, bottom, top))
    return Number(
        whole,
        int(bottom.value) if low else None,
        int(top.value) if high else None,
        bottom.open,
        top.open,
    )


def _bounds(place: Place, keywords: Mapping[str, bool]) -> list[_Bound]:
    return [
        _Bound(_decimal(place, keyword), is_open)
        for keyword, is_open in keywords.items()
        if keyword in place.keywords
    ]


def _decimal(place: Place, keyword: str) -> Decimal:
    value = place.schema[keyword]
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        refuse(place.at(keyword), f"{shown(value)} is not a finite number", "use a number")
    exact = Decimal(str(value)) if abs(value) < MAX_WHOLE else Decimal(int(value))
    if -int(exact.normalize().as_tuple().exponent) > MAX_DECIMALS:
        why = f"{shown(value)} has more than {MAX_DECIMALS} decimals"
        refuse(place.at(keyword), why, "round it")
    return exact


def _inward(bound: _Bound, up: bool) -> _Bound:
    """The bound as a whole number that is allowed itself."""
    whole = Decimal(math.ceil(bound.value) if up else math.floor(bound.value))
    if bound.open and whole == bound.value:
        whole += 1 if up else -1
    return _Bound(whole)


# ---- fractional bounds ---------------------------------------------------------------------------


def _between(place: Place, low: _Bound, high: _Bound) -> Automaton:
    """An automaton of the decimal texts from `low` to `high`. Raises SchemaError."""
    zero, signs = _Bound(Decimal(0)), []
    if high.value >= 0:
        signs.append(_magnitudes(max(low, zero, key=lambda one: one.value), high))
    if low.value < 0:
        least = _Bound(-high.value, high.open) if high.value < 0 else zero
        signs.append(f"-{_magnitudes(least, _Bound(-low.value, low.open))}")
    try:
        return automaton((f"^(?:{'|'.join(signs)})$",), 0, None)
    except TooLarge as error:
        refuse(place.path, f"the bounds are too fine: {error}", "round them")


def _magnitudes(low: _Bound, high: _Bound) -> str:
    """A pattern of the decimal texts between two magnitudes."""
    text = rf"(?:0|[1-9]\d{{0,15}})(?:\.\d{{1,{MAX_DECIMALS}}})?"
    return f"(?={_side(low, above=True)}$)(?={_side(high, above=False)}$){text}"


def _side(bound: _Bound, above: bool) -> str:
    """A pattern of the decimal texts above or below a magnitude, itself included unless open."""
    whole, _, part = f"{bound.value:f}".partition(".")
    part = part.rstrip("0")
    ways = [rf"(?:{_beyond(whole, above)})(?:\.\d+)?"]
    ways += [rf"{whole}\.{part[:i]}{_digit(digit, above)}\d*" for i, digit in enumerate(part)]
    if above:
        ways.append(rf"{whole}\.{part}\d*[1-9]\d*")
    elif part:
        ways += [whole, *(rf"{whole}\.{part[:i]}" for i in range(1, len(part)))]
    if not bound.open:
        ways.append(rf"{whole}\.{part}0*" if part else rf"{whole}(?:\.0+)?")
    return f"(?:{'|'.join(ways)})"


def _beyond(whole: str, above: bool) -> str:
    """A pattern of the whole numbers above or below `whole`."""
    more = len(whole) - 1
    ways = [rf"[1-9]\d{{{more + 1},16}}"] if above else []
    if not above and more:
        ways.append(rf"0|[1-9]\d{{0,{more - 1}}}")
    for i, digit in enumerate(whole):
        is_first = i == 0 and more > 0
        ways.append(rf"{whole[:i]}{_digit(digit, above, least=int(is_first))}\d{{{more - i}}}")
    return "|".join(ways)


def _digit(digit: str, above: bool, least: int = 0) -> str:
    """A class of the digits above or below `digit`; the empty class where there is none."""
    low, high = (int(digit) + 1, 9) if above else (least, int(digit) - 1)
    return f"[{low}-{high}]" if low <= high else "[]"
