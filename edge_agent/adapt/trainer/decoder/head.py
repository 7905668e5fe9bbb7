"""Loss and gradient of the output head, at the supervised positions only, in one pass.

Why it exists: the logits of 512 tokens over Gemma's vocabulary of 262,144 are 537 MB, and a plain
implementation holds them three times; here the logits of one tile of the vocabulary exist at a
time. The softmax uses a running maximum (online normalizer, arXiv 1805.02867). The gradient is
accumulated in the same pass and rescaled when the maximum grows, so the head's weights are unpacked
once. Some positions may learn a stored distribution instead of a token: their gradient needs, after
the pass, the head's rows of the stored tokens only. Flows in: normed hidden states and the tokens
or distributions to predict. Flows out: losses and the gradient of the states. The head is frozen.
Not here: which positions are supervised (decoder.py), where distributions come from
(adapt/trainer/rehearsal_targets.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.trainer.decoder.compute import Array, Buffers, Scratch
from edge_agent.adapt.trainer.decoder.elementwise import add
from edge_agent.adapt.trainer.decoder.packed_weights import PackedMatrix

TAIL_FLOOR = 1e-6
"""The tail's probability now counts as at least this, because 1 - sum(p) in float32 can be 0."""
SOFT_ROWS = 32
"""Positions with a stored distribution whose head rows are unpacked at a time."""


@dataclass(frozen=True)
class SoftTargets:
    """The distributions to learn at P of the S supervised positions, instead of tokens.

    `places` (P) are indices into the S positions, ascending; `ids` (P, K) the likeliest tokens, and
    `q` (P, K) their probabilities. What is missing in a row of `q` to 1 is the probability of all
    other tokens together, the tail. The loss is KL(q || p) over these K + 1 outcomes: without the
    tail, a cached distribution is biased (arXiv 2503.16870).
    """

    places: NDArray[np.int64]
    ids: NDArray[np.int64]
    q: NDArray[np.float32]

    def beside(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """(S, 1 + K): the targets (S), then the stored tokens, -1 where none are stored."""
        found = np.full((len(targets), 1 + self.ids.shape[1]), -1, np.int64)
        found[:, 0] = targets
        found[self.places, 1:] = self.ids
        return found


@dataclass(frozen=True)
class HeadTargets:
    """What S positions shall predict: `tokens` (S), or what `soft` says; the `weights` (S) of their
    losses, None for ones."""

    tokens: NDArray[np.int64]
    soft: SoftTargets | None = None
    weights: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class HeadResult:
    """Results at S supervised positions.

    `losses` (S) are in nats, without weights; `gradient` (S, n_embd) is that of their weighted sum,
    zeros when none was asked for; `is_first` (S) says whether the target was the most likely token.
    """

    losses: Array
    gradient: Array
    is_first: NDArray[np.bool_]


class _Softmax:
    """Softmax over tiles: the running maximum, the sum of exponentials and, for the gradient, the
    sum of the head's rows weighted by the exponentials (`mean`, before its division by the sum)."""

    def __init__(self, head: PackedMatrix, states: Array, buffers: Buffers) -> None:
        xp, count = head.compute.xp, len(states)
        self._head = head
        self._compute, self._buffers, self._states = head.compute, buffers, states
        self.maximum = xp.full((count, 1), -xp.inf, states.dtype)
        self.total = xp.zeros((count, 1), states.dtype)
        self.mean = xp.zeros_like(states)

    def logits(self, tile: Array) -> Array:
        out = self._buffers.take("head.logits", len(self._states), len(tile))
        return self._compute.matmul(self._states, tile.T, out=out)

    def run(self, ids: NDArray[np.int64], with_gradient: bool) -> Array:
        """Pass over the whole vocabulary. Returns the logits of `ids` (S, N), undefined for -1."""
        xp = self._compute.xp
        found = self._compute.empty(*ids.shape)
        for place, tile in self._head.head_tiles():
            logits = self.logits(tile)
            rows, columns = np.nonzero((ids >= place.start) & (ids < place.stop))
            if len(rows):
                tokens = ids[rows, columns] - place.start
                at = xp.asarray(rows), xp.asarray(columns)
                found[at] = logits[at[0], xp.asarray(tokens)]
            self.take_in(logits, tile, with_gradient)
        return found

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


def head_loss(
    head: PackedMatrix,
    states: Array,
    targets: HeadTargets,
    buffers: Buffers | None = None,
    *,
    with_gradient: bool = True,
) -> HeadResult:
    """The loss of each row of `states`, and the gradient of the losses' weighted sum.

    `states` is (S, n_embd), W is the head's matrix (n_vocab, n_embd). A row's loss is
    -log softmax(states W^T)[token], or, for the rows that `targets.soft` names, the divergence from
    the stored distribution.
    """
    xp, tokens, soft = head.compute.xp, targets.tokens, targets.soft
    softmax = _Softmax(head, states, buffers or Buffers(head.compute))
    ids = tokens[:, None] if soft is None else soft.beside(tokens)
    logits = softmax.run(ids, with_gradient)
    normalizer = softmax.maximum + xp.log(softmax.total)
    losses, gradient = (normalizer - logits[:, :1])[:, 0], softmax.mean
    if with_gradient:
        gradient /= softmax.total
    if soft is None:
        hard = slice(None)
    else:
        places = xp.asarray(soft.places)
        log_p = logits[places, 1:] - normalizer[places]
        losses[places] = _divergence(head, soft, log_p, gradient if with_gradient else None)
        hard = xp.asarray(np.delete(np.arange(len(tokens)), soft.places))
    if with_gradient:
        gradient[hard] -= head.rows(tokens if soft is None else np.delete(tokens, soft.places))
        if targets.weights is not None:
            gradient *= head.compute.array(targets.weights)[:, None]
    return HeadResult(losses, gradient, (logits[:, :1] >= softmax.maximum)[:, 0])


def likeliest(
    head: PackedMatrix, states: Array, k: int, buffers: Buffers
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `k` likeliest tokens (S, k) of each row of `states`, the likeliest first, and their
    probabilities. `k` must not exceed the vocabulary."""
    softmax, to_host = _Softmax(head, states, buffers), head.compute.to_host
    ids = np.zeros((len(states), 0), np.int64)
    best = np.zeros((len(states), 0), np.float64)
    for place, tile in head.head_tiles():
        logits = softmax.logits(tile)
        found = to_host(logits)
        at = np.argpartition(found, -min(k, len(tile)), axis=1)[:, -k:]
        ids = np.concatenate([ids, at + place.start], axis=1)
        best = np.concatenate([best, np.take_along_axis(found, at, axis=1)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :k]
        ids = np.take_along_axis(ids, order, axis=1)
        best = np.take_along_axis(best, order, axis=1)
        softmax.take_in(logits, tile, with_gradient=False)
    normalizer = to_host(softmax.maximum + head.compute.xp.log(softmax.total))
    return ids, np.exp(best - normalizer).astype(np.float32)


def _divergence(
    head: PackedMatrix, soft: SoftTargets, log_p: Array, gradient: Array | None
) -> Array:
    """KL(q || p) over the stored tokens and the tail, (P) nats. `log_p` (P, K) are the tokens'
    log-probabilities now.

    With p_R and q_R for the tail's probabilities now and stored, and `mean` for the head's rows
    weighted by p, the gradient of a state is

        (1 - q_R / p_R) mean + sum over the stored tokens of (p q_R / p_R - q) W

    so the rows of `gradient` that hold `mean` need no second pass over the vocabulary.
    """
    xp, places = head.compute.xp, head.compute.xp.asarray(soft.places)
    q, p = head.compute.array(soft.q), xp.exp(log_p)
    q_rest = xp.maximum(1 - q.sum(axis=1, keepdims=True), 0)
    p_rest = xp.maximum(1 - p.sum(axis=1, keepdims=True), TAIL_FLOOR)
    least = xp.finfo(q.dtype).tiny
    losses = (q * (xp.log(xp.maximum(q, least)) - log_p)).sum(axis=1, keepdims=True)
    losses += q_rest * xp.log(xp.maximum(q_rest, least) / p_rest)
    if gradient is not None:
        ratio = q_rest / p_rest
        gradient[places] *= 1 - ratio
        coefficients = p * ratio - q
        for first in range(0, len(q), SOFT_ROWS):
            part = slice(first, first + SOFT_ROWS)
            rows = head.rows(soft.ids[part].ravel()).reshape(*coefficients[part].shape, -1)
            gradient[places[part]] += (coefficients[part][:, None, :] @ rows)[:, 0]
    found: Array = losses[:, 0]
    return found
