"""What goes into one decode call: a token of each slot that decodes, and chunks of prompts.

Why it exists: everybody waits for the decode call that is running: a neighbour's next token, a
ping. So a call must not take longer than `call_s` seconds on any board, and `Pace` derives the
number of prompt tokens from the prefill rate measured in this process. Small chunks cost speed (16
tokens a call reach 0.8 of the rate of 512, measured), so a prompt that has the engine for itself
may take ALONE_CALL_S; the scheduler aborts such a call as soon as another request arrives. The size
of the batch and the rows of logits of a call are limits too. Flows in: the slots whose adapter has
its turn, and the duration of each call. Flows out: the context's filled batch, and each slot's
share of it. Not here: which adapter has its turn (adapter_turns.py), decoding and sampling
(scheduler.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.engine.scoring import Reading
from edge_agent.engine.slots import Slot
from edge_agent.llama.context import Context

_MARGIN = 0.9
"""Share of the allowed time that a chunk is planned to take."""
_SMOOTHING = 0.4
"""Weight of the newest measurement in the prefill rate, when the rate rises."""
_GRAIN = 16
"""Chunks are multiples of this many tokens; the rate of smaller calls is not measured."""
ALONE_CALL_S = 4.0
"""Seconds that one decode call may take while nobody else waits for the engine."""


@dataclass(frozen=True)
class SlotShare:
    """One slot's share of a decode call: its number of tokens, and its rows with logits."""

    slot: Slot
    n: int
    rows: list[int]


class Batch:
    """Fills the batch of one context, call after call."""

    def __init__(self, context: Context, call_s: float) -> None:
        self._context = context
        self.pace = Pace(context.n_batch, call_s)
        self._reading_pace = Pace(context.n_batch, call_s)
        """The pace of calls with readings: many rows have logits, so a token takes longer."""

    def fill(self, slots: Sequence[Slot], *, may_prefill: bool, alone: bool) -> list[SlotShare]:
        """Fill the context's batch for the next call and return the shares of the slots.

        Every slot of `slots` must have work. `may_prefill`: whether this turn may decode prompt
        tokens. `alone`: nobody else waits for the engine. The prompts with the fewest tokens left
        are served first, and share the chunk equally.
        """
        self._context.clear_batch()
        decoding = [slot for slot in slots if not slot.is_prefilling]
        prefilling = [slot for slot in slots if slot.is_prefilling and may_prefill]
        parts = []
        for slot in decoding:
            row = self._context.add(slot.pending[0], len(slot.ids), slot.index, output=True)
            parts.append(SlotShare(slot, 1, [row]))
        alone = alone and len(prefilling) == 1 and not decoding
        budget = self.pace.chunk(len(decoding), alone=alone) if prefilling else 0
        spare_rows = self._context.n_outputs - len(decoding) - len(prefilling)
        for left, slot in zip(
            range(len(prefilling), 0, -1), sorted(prefilling, key=_remaining), strict=True
        ):
            flags = self._flags(slot, budget // left, 1 + spare_rows, alone)
            if flags:
                budget -= len(flags)
                spare_rows -= max(0, sum(flags) - 1)
                parts.append(SlotShare(slot, len(flags), self._add(slot, flags)))
        return parts

    def measured(self, parts: Sequence[SlotShare], duration_s: float) -> None:
        """Record the duration of the call. A call without prompt tokens is ignored, because it does
        not measure the prefill rate."""
        n_tokens = sum(part.n for part in parts)
        is_reading = any(isinstance(part.slot.work, Reading) for part in parts)
        if n_tokens > len(parts):
            (self._reading_pace if is_reading else self.pace).measured(n_tokens, duration_s)

    def _flags(self, slot: Slot, most: int, most_rows: int, alone: bool) -> list[bool]:
        """One flag for each of the slot's next ids that go into the call: does it need logits?"""
        if isinstance(slot.work, Reading):
            pace = self._reading_pace.chunk(0, alone=alone)
            return slot.work.chunk(min(most, pace), most_rows)
        n = min(len(slot.pending), most)
        flags = [False] * n
        if n and n == len(slot.pending):
            flags[-1] = True
        return flags

    def _add(self, slot: Slot, flags: Sequence[bool]) -> list[int]:
        """Add the slot's next ids to the batch. Returns the rows of those that need logits."""
        position = len(slot.ids)
        rows = [
            self._context.add(slot.pending[at], position + at, slot.index, output=flag)
            for at, flag in enumerate(flags)
        ]
        return [row for row, flag in zip(rows, flags, strict=True) if flag]


def _remaining(slot: Slot) -> int:
    return len(slot.pending)


class Pace:
    """Chunk sizes in tokens, from 1 to n_batch, after the measured prefill rate.

    >>> pace = Pace(512, call_s=0.5)
    >>> pace.chunk(0)
    64
    >>> pace.measured(64, duration_s=0.16)    # 400 tokens a second
    >>> pace.chunk(0), pace.chunk(0, alone=True)
    (128, 128)
    """

    def __init__(self, n_batch: int, call_s: float, first_chunk: int = 64) -> None:
        self._n_batch = n_batch
        self._call_s = call_s
        self._largest = first_chunk
        self.rate_tok_s: float | None = None

    def chunk(self, n_decoding: int, *, alone: bool = False) -> int:
        """Prompt tokens for the next call, in which `n_decoding` slots also decode one token each.

        A chunk is at most twice the largest one so far, so that the first calls stay short.
        """
        wanted = float(self._largest)
        if self.rate_tok_s is not None:
            limit_s = max(ALONE_CALL_S, self._call_s) if alone else self._call_s
            wanted = min(wanted, self.rate_tok_s * limit_s * _MARGIN)
        tokens = min(int(wanted), self._n_batch) - n_decoding
        if tokens > _GRAIN:
            tokens -= tokens % _GRAIN
        return max(1, tokens)

    def measured(self, n_tokens: int, duration_s: float) -> None:
        """Record that a call with `n_tokens` tokens took `duration_s` seconds.

        The rate follows a slower call at once and a faster one gradually, so that calls stay below
        `call_s`. Small calls are ignored: they do not reach the rate of a chunk.
        """
        if n_tokens < min(_GRAIN, self._largest) or duration_s <= 0.0:
            return
        rate = n_tokens / duration_s
        if self.rate_tok_s is None or rate < self.rate_tok_s:
            self.rate_tok_s = rate
        else:
            self.rate_tok_s += _SMOOTHING * (rate - self.rate_tok_s)
        self._largest = max(self._largest, min(self._n_batch, 2 * n_tokens))
