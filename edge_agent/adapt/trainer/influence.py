"""How much each block changes what passes through it: reported, never obeyed.

Block influence is 1 - cosine between what enters a block and what leaves it, averaged over tokens
(ShortGPT, arXiv 2403.03853). It does not choose layers: cost depends on the lowest trained block
only, and Gemma's most influential blocks are 0, 1 and 5. Flows in: a decoder and packed rows. Flows
out: one number a block. Not here: choosing blocks (the trainer's trials).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edge_agent.adapt.trainer.decoder.compute import Array
from edge_agent.adapt.trainer.decoder.decoder import Batch, Decoder


def block_influence(decoder: Decoder, batches: Iterable[Batch]) -> list[float]:
    """Of every block, 0 (passes its input on) to 2. Raises ValueError without a token."""
    sums, n_tokens = np.zeros(decoder.shape.n_layer), 0
    for batch in batches:
        n_tokens += len(batch.tokens)
        before = None
        for number, x in enumerate(decoder.blocks(batch)):
            after = decoder.compute.to_host(x).astype(np.float64)
            if before is not None:
                sums[number - 1] += (1.0 - cosines(before, after)).sum()
            before = after
    if not n_tokens:
        raise ValueError("block influence needs at least one token")
    return [float(value) for value in sums / n_tokens]


def cosines(a: Array, b: Array) -> Array:
    """Of each row of a with the same row of b (n, m)."""
    lengths = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    found: Array = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    return found
