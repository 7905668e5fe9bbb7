"""What goes into one decode call: a token of each slot that decodes, and chunks of prompts.

Flows in: the slots whose adapter has its turn. Flows out: the context's batch, filled, and who
takes part with how many tokens and which rows of logits. Bounds: the pace (how long others may have
to wait for the call), the batch, and the rows of logits a call may make. Not here: whose turn it is
(adapter_turns.py), decoding and sampling (scheduler.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.engine.scoring import Reading
from edge_agent.engine.slots import Slot
from edge_agent.llama.context import Context

_MARGIN = 0.9
_SMOOTHING = 0.4
_GRAIN = 16
ALONE_CALL_S = 4.0


@dataclass(frozen=True)
class SlotShare:
    """One slot's share of a decode call: tokens put in, and the rows that make logits."""

    slot: Slot
    n: int
    rows: list[int]


class Batch:
    """Fills the batch of one context, call after call."""

    def __init__(self, context: Context, call_s: float) -> None:
        self._context = context
        self.pace = Pace(context.n_batch, call_s)
        self._reading_pace = Pace(context.n_batch, call_s)
        """Of calls with readings, whose many rows of logits make a token dearer."""

    def fill(self, slots: Sequence[Slot], *, may_prefill: bool, alone: bool) -> list[SlotShare]:
        """`slots` have work. `alone`: nobody else waits for the engine."""
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
        """The call took so long; calls without prompts tell nothing."""
        n_tokens = sum(part.n for part in parts)
        is_reading = any(isinstance(part.slot.work, Reading) for part in parts)
        if n_tokens > len(parts):
            (self._reading_pace if is_reading else self.pace).measured(n_tokens, duration_s)

    def _flags(self, slot: Slot, most: int, most_rows: int, alone: bool) -> list[bool]:
        """For each of the next ids of a slot: does it need logits?"""
        if isinstance(slot.work, Reading):
            pace = self._reading_pace.chunk(0, alone=alone)
            return slot.work.chunk(min(most, pace), most_rows)
        n = min(len(slot.pending), most)
        flags = [False] * n
        if n and n == len(slot.pending):
            flags[-1] = True
        return flags

    def _add(self, slot: Slot, flags: Sequence[bool]) -> list[int]:
        """Put the next ids of a slot in; the rows of those that need logits."""
        position = len(slot.ids)
        rows = [
            self._context.add(slot.pending[at], position + at, slot.index, output=flag)
            for at, flag in enumerate(flags)
        ]
        return [row for row, flag in zip(rows, flags, strict=True) if flag]


def _remaining(slot: Slot) -> int:
    return len(slot.pending)


class Pace:
    """Chunk sizes in tokens, between 1 and n_batch."""

    def __init__(self, n_batch: int, call_s: float, first_chunk: int = 64) -> None:
        self._n_batch = n_batch
        self._call_s = call_s
        self._largest = first_chunk
        self.rate_tok_s: float | None = None

    def chunk(self, n_decoding: int, *, alone: bool = False) -> int:
        """Prompt tokens for the next call, beside `n_decoding` slots that decode one token each."""
        wanted = float(self._largest)
        if self.rate_tok_s is not None:
            limit_s = max(ALONE_CALL_S, self._call_s) if alone else self._call_s
            wanted = min(wanted, self.rate_tok_s * limit_s * _MARGIN)
        tokens = min(int(wanted), self._n_batch) - n_decoding
        if tokens > _GRAIN:
            tokens -= tokens % _GRAIN
        return max(1, tokens)

    def measured(self, n_tokens: int, duration_s: float) -> None:
        """A call with `n_tokens` tokens took `duration_s`; small calls tell nothing."""
        if n_tokens < min(_GRAIN, self._largest) or duration_s <= 0.0:
            return
        rate = n_tokens / duration_s
        if self.rate_tok_s is None or rate < self.rate_tok_s:
            self.rate_tok_s = rate
        else:
            self.rate_tok_s += _SMOOTHING * (rate - self.rate_tok_s)
        self._largest = max(self._largest, min(self._n_batch, 2 * n_tokens))
