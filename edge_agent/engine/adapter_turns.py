"""Whose adapter the next decode call applies: turns, round-robin over those that have work.

Why it exists: one decode call applies one adapter to all its rows, and changing it costs a few
milliseconds. So requests of one adapter share calls, and the adapters take turns of TURN_TOKENS
tokens. A turn ends when its slots have decoded so many each, and what prompts it had have put in as
many: one chunk as a rule. Nobody starves, and who comes anew waits one turn of each of the others.
With a single adapter there are no turns. Pure. Not here: which tokens go in (batch.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key")

TURN_TOKENS = 8


@dataclass(frozen=True)
class Demand:
    """What the slots of one adapter wait for."""

    decodes: bool
    prefills: bool


class Turns(Generic[Key]):
    """Remembers the order, and how much of the turn is used up."""

    def __init__(self) -> None:
        self._order: list[Key] = []
        """The one whose turn it is comes first."""
        self._decoded = 0
        self._prefilled = 0

    def choose(self, demands: Mapping[Key, Demand]) -> Key:
        """The adapter of the next call, one of `demands`, which must not be empty."""
        before = self._order[:1]
        known = [key for key in self._order if key in demands]
        self._order = known + [key for key in demands if key not in known]
        if len(self._order) == 1 or self._order[:1] != before:
            self._begin()
        elif self._is_over(demands[self._order[0]]):
            self._order.append(self._order.pop(0))
            self._begin()
        return self._order[0]

    @property
    def may_prefill(self) -> bool:
        """Whether prompts may go on in this turn; always while there is one adapter only."""
        return len(self._order) <= 1 or self._prefilled < TURN_TOKENS

    def took(self, *, decoded: bool, prefilled: int) -> None:
        """A call was made: did slots decode a token each, and how many prompt tokens went in?"""
        self._decoded += decoded
        self._prefilled += prefilled

    def _begin(self) -> None:
        self._decoded = self._prefilled = 0

    def _is_over(self, demand: Demand) -> bool:
        decodes = demand.decodes and self._decoded < TURN_TOKENS
        return not decodes and not (demand.prefills and self.may_prefill)
