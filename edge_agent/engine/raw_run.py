"""One repetition of a benchmark: decode calls and nothing else, as llama-bench times them.

Why it exists: the figures are comparable with those of llama-bench because tokenizer, sampler and
text are left out. The tokens are arbitrary ids, on which speed does not depend; only the last row
of each batch has logits. Flows in: a RawRun, on an engine without requests. Flows out: RawDone, the
times (seconds of the monotonic clock) at which prefill and decode began and ended. The run uses
slot 0 and leaves its cache empty. Not here: repetitions and statistics (bench/trials.py).
"""

from __future__ import annotations

import random
import time
from typing import Protocol

from edge_agent.errors import RequestError
from edge_agent.records import RawDone, RawRun

SLOT = 0


class DecodeContext(Protocol):
    """The methods of llama/context.py that this module calls."""

    n_ctx: int
    n_batch: int

    def clear_batch(self) -> None: ...
    def add(self, token: int, position: int, slot: int, *, output: bool) -> int: ...
    def decode(self) -> bool: ...
    def synchronize(self) -> None: ...
    def truncate(self, slot: int, length: int) -> bool: ...


def raw_run(context: DecodeContext, n_vocab: int, run: RawRun) -> RawDone:
    """Decode n_depth tokens untimed, then n_prompt tokens in batches, then n_gen tokens singly.

    Raises RequestError when the three together do not fit in a slot's context.
    """
    n_tokens = run.n_depth + run.n_prompt + run.n_gen
    if n_tokens > context.n_ctx or min(run.n_depth, run.n_prompt, run.n_gen) < 0:
        raise RequestError(
            f"a benchmark of {n_tokens} tokens does not fit",
            f"a slot holds {context.n_ctx}",
            "give a larger --ctx, or smaller -p, -n, -d",
        )
    ids = random.Random(run.id)
    context.truncate(SLOT, 0)
    try:
        _put(context, ids, n_vocab, 0, run.n_depth, context.n_batch)
        prefill_start_s = time.monotonic()
        _put(context, ids, n_vocab, run.n_depth, run.n_prompt, context.n_batch)
        prefill_end_s = time.monotonic()
        _put(context, ids, n_vocab, run.n_depth + run.n_prompt, run.n_gen, 1)
        decode_end_s = time.monotonic()
    finally:
        context.truncate(SLOT, 0)
    return RawDone(run.id, prefill_start_s, prefill_end_s, decode_end_s)


def _put(
    context: DecodeContext, ids: random.Random, n_vocab: int, position: int, n: int, size: int
) -> None:
    """Decode `n` arbitrary tokens from `position` on, `size` tokens in each call."""
    for start in range(0, n, size):
        count = min(size, n - start)
        context.clear_batch()
        for offset in range(count):
            token, at = ids.randrange(n_vocab), position + start + offset
            context.add(token, at, SLOT, output=offset == count - 1)
        context.decode()
        context.synchronize()
