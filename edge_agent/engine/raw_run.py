"""One repetition of a benchmark: decode calls and nothing else, as llama-bench times them.

Flows in: RawRun, on an engine without requests. Flows out: RawDone, the times at which prefill and
decode began and ended. No tokenizer, no sampler, no text: the tokens are arbitrary ids (speed does
not depend on them). Only each batch's last row makes logits. The caches of all slots are empty
afterwards. Not here: repetitions, statistics (bench/trials.py).
"""

from __future__ import annotations

import random
import time
from typing import Protocol

from edge_agent.errors import RequestError
from edge_agent.records import RawDone, RawRun

SLOT = 0


class DecodeContext(Protocol):
    """The part of llama/context.py that is needed."""

    n_ctx: int
    n_batch: int

    def clear_batch(self) -> None: ...
    def add(self, token: int, position: int, slot: int, *, output: bool) -> int: ...
    def decode(self) -> bool: ...
    def synchronize(self) -> None: ...
    def truncate(self, slot: int, length: int) -> bool: ...


def raw_run(context: DecodeContext, n_vocab: int, run: RawRun) -> RawDone:
    """Run it. Raises RequestError when it does not fit in a slot's context."""
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
    return RawDone(run.id, prefill_start_s, prefill_end_s, prefill_end_s, decode_end_s)


def _put(
    context: DecodeContext, ids: random.Random, n_vocab: int, position: int, n: int, size: int
) -> None:
    """Decode `n` tokens from `position` on, `size` of them in a call."""
    for start in range(0, n, size):
        count = min(size, n - start)
        context.clear_batch()
        for offset in range(count):
            token, at = ids.randrange(n_vocab), position + start + offset
            context.add(token, at, SLOT, output=offset == count - 1)
        context.decode()
        context.synchronize()
