"""Loss and gradient of the output head, at the supervised positions only, in one pass.

Why it exists: the logits of 512 tokens over Gemma's vocabulary of 262,144 are 537 MB, and a plain
implementation holds them three times; here the logits of one tile of the vocabulary exist at a
time. The softmax uses a running maximum (online normalizer, arXiv 1805.02867). The gradient is
accumulated in the same pass and rescaled when the maximum grows, so the head's weights are unpacked
once. Flows in: normed hidden states and the tokens to predict. Flows out: losses and the gradient
of the states. The head is frozen. Not here: which positions are supervised (decoder.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.trainer.decoder.compute import Array, Buffers, Scratch
from edge_agent.adapt.trainer.decoder.elementwise import add
from edge_agent.adapt.trainer.decoder.packed_weights import PackedMatrix


@dataclass(frozen=True)
class HeadResult:
    """Results at S supervised positions.

    `losses` (S) are in nats; `gradient` (S, n_embd) is that of their sum, zeros when none was asked
    for; `is_first` (S) says whether the target was the most likely token.
    """

    losses: Array
    gradient: Array
    is_first: NDArray[np.bool_]


class _Softmax:
    """Softmax over tiles: the running maximum, the sum of exponentials and, for the gradient, the
    sum of the head's rows weighted by the exponentials (`mean`, before its division by the sum)."""

    def __init__(self, head: PackedMatrix, states: Array, buffers: Buffers) -> None:
        xp, count = head.compute.xp, len(states)
        self._compute, self._buffers, self._states = head.compute, buffers, states
        self.maximum = xp.full((count, 1), -xp.inf, states.dtype)
        self.total = xp.zeros((count, 1), states.dtype)
        self.mean = xp.zeros_like(states)

    def logits(self, tile: Array) -> Array:
        out = self._buffers.take("head.logits", len(self._states), len(tile))
        return self._compute.matmul(self._states, tile.T, out=out)

    def take_in(self, logits: Array, tile: Array, with_gradient: bool) -> None:
        """Add a tile's logits to the running sums. `logits` is overwritten."""
        xp = self._compute.xp

        def work(rows: slice, scratch: Scratch) -> None:
            part, maximum, total = logits[rows], self.maximum[rows], self.total[rows]
            highest = xp.maximum(maximum, part.max(axis=1, keepdims=True))
            rescale = xp.exp(maximum - highest)
            part -= highest
            xp.exp(part, out=part)
            total *= rescale
            total += part.sum(axis=1, keepdims=True)
            maximum[:] = highest
            if with_gradient and bool((rescale != 1.0).any()):
                self.mean[rows] *= rescale

        self._compute.split(logits.shape, work)
        if with_gradient:
            product = self._buffers.take("head.product", *self.mean.shape)
            self._compute.matmul(logits, tile, out=product)
            add(self._compute, product, to=self.mean)


def cross_entropy(
    head: PackedMatrix,
    states: Array,
    targets: NDArray[np.int64],
    buffers: Buffers | None = None,
    *,
    with_gradient: bool = True,
) -> HeadResult:
    """The loss -log softmax(states W^T)[target] of each row of `states`, and its gradient.

    `states` is (S, n_embd), `targets` (S) has the token ids to predict, and W is the head's matrix
    (n_vocab, n_embd).
    """
    xp = head.compute.xp
    buffers = buffers or Buffers(head.compute)
    softmax = _Softmax(head, states, buffers)
    target = xp.empty((len(states), 1), states.dtype)
    for place, tile in head.head_tiles():
        logits = softmax.logits(tile)
        inside = np.flatnonzero((targets >= place.start) & (targets < place.stop))
        if len(inside):
            columns = targets[inside] - place.start
            target[xp.asarray(inside), 0] = logits[xp.asarray(inside), xp.asarray(columns)]
        softmax.take_in(logits, tile, with_gradient)
    losses = (softmax.maximum + xp.log(softmax.total) - target)[:, 0]
    gradient = softmax.mean
    if with_gradient:
        gradient /= softmax.total
        gradient -= head.rows(targets)
    return HeadResult(losses, gradient, (target >= softmax.maximum)[:, 0])
