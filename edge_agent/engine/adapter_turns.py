"""Whose adapter the next decode call applies: turns, round-robin over those that have work.

Why it exists: one decode call applies one adapter to all its rows, and a change of adapter takes a
few milliseconds. So the requests of one adapter share calls, and the adapters that have work take
turns. A turn ends when each decoding slot has produced TURN_TOKENS tokens and the prompts have
consumed as many (in most turns, one chunk of a prompt). No adapter starves: a new one waits for at
most one turn of each other adapter. With a single adapter there are no turns. Flows in: what the
slots of each adapter wait for, and what each call did. Flows out: the adapter of the next call. The
module is pure. Not here: which tokens a call decodes (batch.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key")

TURN_TOKENS = 8
"""Tokens of each decoding slot, and of prompts, after which the next adapter has its turn."""


@dataclass(frozen=True)
class Demand:
    """What the slots of one adapter wait for: the next token, or the rest of a prompt."""

    decodes: bool
    prefills: bool


class Turns(Generic[Key]):
    """Keeps the order of the adapters and the tokens that the current turn has used.

    >>> turns, waits = Turns(), Demand(decodes=True, prefills=False)
    >>> order = ""
    >>> for _ in range(18):
    ...     order += turns.choose({"a": waits, "b": waits})
    ...     turns.took(decoded=True, prefilled=0)
    >>> order
    'aaaaaaaabbbbbbbbaa'
    """

    def __init__(self) -> None:
        self._order: list[Key] = []
        """The adapter that has its turn comes first."""
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
        """Whether this turn may still decode prompt tokens. Always true with a single adapter."""
        return len(self._order) <= 1 or self._prefilled < TURN_TOKENS

    def took(self, *, decoded: bool, prefilled: int) -> None:
        """Record a decode call: `decoded` says whether slots produced a token each, `prefilled` is
        the number of prompt tokens."""
        self._decoded += decoded
        self._prefilled += prefilled

    def _begin(self) -> None:
        self._decoded = self._prefilled = 0

    def _is_over(self, demand: Demand) -> bool:
        decodes = demand.decodes and self._decoded < TURN_TOKENS
        return not decodes and not (demand.prefills and self.may_prefill)
