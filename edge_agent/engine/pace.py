"""How many prompt tokens go into one decode call.

Why it exists: everybody waits for the call in flight: a neighbour's next token, a ping. So a call
shall take at most `call_s` seconds, whatever the board: the number of tokens follows the prefill
rate measured in this process. Small chunks cost speed (16 tokens a call: 0.8 of the rate of 512,
measured), so a prompt that has the engine for itself gets ALONE_CALL_S; the scheduler aborts such a
call as soon as somebody else arrives. Pure: times are handed in.
"""

from __future__ import annotations

_MARGIN = 0.9
_SMOOTHING = 0.4
_GRAIN = 16
ALONE_CALL_S = 4.0


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
