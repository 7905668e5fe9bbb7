"""What a schema of the type integer or number allows: its bounds.

Flows in: a place of one of these types. Flows out: a Number node, or SchemaError. Bounds outside of
the whole numbers that a double states exactly are drawn in to these. The formats int8 to uint32 are
bounds; any other format of a number is ignored, as JSON Schema has it. Not here: the grammar
(grammar.py).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import cast

from edge_agent.prompt.schema_nodes import Number
from edge_agent.prompt.schema_place import Place, refuse, shown

MAX_WHOLE = 2**53 - 1
"""JavaScript's Number.MAX_SAFE_INTEGER: a double states every whole number up to it exactly."""
_BITS = {"8": 8, "16": 16, "32": 32}
FORMAT_BOUNDS = {
    **{f"int{name}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for name, bits in _BITS.items()},
    **{f"uint{name}": (0, 2**bits - 1) for name, bits in _BITS.items()},
    **dict.fromkeys(("uint", "uint64", "uint128"), (0, MAX_WHOLE)),
}


def number_node(place: Place, type_name: str) -> Number:
    """The node of a place of the type integer or number. Raises SchemaError."""
    layout = place.schema.get("format")
    bounds = FORMAT_BOUNDS.get(layout) if isinstance(layout, str) else None
    whole = type_name == "integer" or bounds is not None
    low, low_open = _bound(place, ("minimum", "exclusiveMinimum"), whole, math.ceil, -MAX_WHOLE)
    high, high_open = _bound(place, ("maximum", "exclusiveMaximum"), whole, math.floor, MAX_WHOLE)
    if whole:
        low = low + 1 if low is not None and low_open else low
        high = high - 1 if high is not None and high_open else high
        low_open = high_open = False
    if bounds is not None:
        low = bounds[0] if low is None else max(low, bounds[0])
        high = bounds[1] if high is None else min(high, bounds[1])
    bottom, top = (-MAX_WHOLE if low is None else low), (MAX_WHOLE if high is None else high)
    if bottom > top or (bottom == top and (low_open or high_open)):
        refuse(place.path, f"no value lies between {bottom} and {top}", "widen the bounds")
    return Number(whole, low, high, low_open, high_open)


def _bound(
    place: Place,
    keywords: tuple[str, str],
    whole: bool,
    inward: Callable[[float], int],
    furthest: int,
) -> tuple[int | None, bool]:
    """(bound, whether it is excluded) of one side, at most `furthest` from 0; with both keywords,
    the tighter bound."""
    tighter = min if furthest > 0 else max
    bounds: list[tuple[int, bool]] = []
    for keyword, exclusive in zip(keywords, (False, True), strict=True):
        if keyword not in place.keywords:
            continue
        value = _finite(place, keyword)
        rounded = inward(value)
        if rounded != value and not whole:
            refuse(
                place.at(keyword),
                f"bounds of a number must be whole here, {shown(value)} is not",
                f"use {math.floor(value)} or {math.ceil(value)}, and check the answer yourself",
            )
        bounds.append((rounded, exclusive and rounded == value))
    if not bounds:
        return None, False
    best = tighter(bound for bound, _ in bounds)
    if tighter(best, furthest) == furthest:
        return furthest, False
    return best, (best, True) in bounds


def _finite(place: Place, keyword: str) -> float:
    value = place.schema[keyword]
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        refuse(place.at(keyword), f"{shown(value)} is not a finite number", "use a number")
    return cast(float, value)
