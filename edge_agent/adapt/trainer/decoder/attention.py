"""Causal attention of packed texts: each text alone, so no mask of the whole row exists.

Why it exists: the texts of one packed row must not see each other, and a mask of the whole row
would need T * T numbers per head. Flows in: projected queries, keys and values of all tokens, (T,
heads * head_dim) each, and the lengths of the texts. Flows out: the attention's output, and in
backward the gradients of queries, keys and values. The probabilities are kept for backward: heads *
n * n numbers for a text of n tokens. The queries of the heads that share a key head are stored one
below the other, so that one matrix product serves them all. Not here: projections and norms
(layer.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_agent.adapt.trainer.decoder.compute import Array, Buffers, Compute, Scratch
from edge_agent.adapt.trainer.decoder.elementwise import Rotation
from edge_agent.adapt.trainer.decoder.shape import DecoderShape, Rope


@dataclass(frozen=True)
class Rotations:
    """Rotary embeddings of queries, multiplied by 1 / sqrt(head_dim), and of keys."""

    queries: Rotation
    keys: Rotation


class Places:
    """Rotations and masks for positions in a text, up to `longest` tokens."""

    def __init__(self, compute: Compute, shape: DecoderShape, longest: int, factors: Any) -> None:
        self.longest = longest
        self.rotations = {
            rope: Rotations(
                Rotation(compute, rope, shape.head_dim, longest, factors, shape.attention_scale),
                Rotation(compute, rope, shape.head_dim, longest, factors, 1.0),
            )
            for rope in set(shape.ropes)
        }
        self.masks = {window: mask(compute, window, longest) for window in set(shape.windows)}

    def at(self, rope: Rope, window: int) -> tuple[Rotations, Array]:
        """The rotations and the mask (longest, longest) of one kind of layer."""
        return self.rotations[rope], self.masks[window]


def mask(compute: Compute, window: int, n: int) -> Array:
    """(n, n): 0 where the row's token may attend to the column's token, -inf elsewhere.

    A token attends to itself and to earlier tokens; with a window, only to those less than `window`
    positions behind it (llama.cpp masks p1 - p0 >= n_swa). `window` 0: no window.
    """
    behind = np.arange(n)[:, None] - np.arange(n)[None, :]
    allowed = behind >= 0
    if window:
        allowed &= behind < window
    return compute.array(np.where(allowed, 0.0, -np.inf))


@dataclass(frozen=True)
class RowText:
    """One text of a packed row: the slice of its tokens, and the slice of its probabilities in the
    row's buffer of probabilities."""

    tokens: slice
    scores: slice

    @property
    def n(self) -> int:
        return int(self.tokens.stop - self.tokens.start)


def texts(lengths: tuple[int, ...], n_head: int) -> Iterator[RowText]:
    """The texts of a packed row with these lengths in tokens."""
    token = score = 0
    for n in lengths:
        yield RowText(slice(token, token + n), slice(score, score + n_head * n * n))
        token, score = token + n, score + n_head * n * n


class Attention:
    """The attention of one block.

    `forward` leaves on `tape`, for `backward`, the rotated queries and keys and the probabilities
    ("attn.q", "attn.k", "attn.p").
    """

    def __init__(self, compute: Compute, shape: DecoderShape, rope: Rope, window: int) -> None:
        self._compute, self._shape = compute, shape
        self._rope, self._window = rope, window

    def forward(self, qkv: Sequence[Array], out: Array, tape: Buffers, row: RowTexts) -> None:
        """Write the attention's output to `out`; `qkv` are queries, keys and values.

        Queries and `out` are (T, n_head * head_dim), keys and values (T, n_head_kv * head_dim).
        """
        q, k, v = qkv
        rotations, masked = row.places.at(self._rope, self._window)
        for text in row.texts:
            queries, keys, p = self._kept(tape, row, text)
            rotations.queries.forward(self._heads(q, text), self._flat_heads(queries, text.n))
            rotations.keys.forward(self._heads(k, text), keys)
            self._compute.matmul(queries, keys.transpose(0, 2, 1), out=p)
            self._softmax(p.reshape(-1, text.n, text.n), masked[: text.n, : text.n])
            n_kv, groups = self._shape.n_head_kv, self._shape.groups
            mixed = self._grouped(out, text)
            values = self._heads(v, text)[:, None]
            self._compute.matmul(p.reshape(n_kv, groups, text.n, text.n), values, out=mixed)

    def backward(
        self, d: Array, v: Array, grads: tuple[Array, Array, Array], tape: Buffers, row: RowTexts,
        spare: Buffers,
    ) -> None:  # fmt: skip
        """Write the gradients of queries, keys and values to `grads`.

        `d` is the gradient of `forward`'s `out`; `v` are the values that `forward` was given.
        """
        dq, dk, dv = grads
        rotations, _ = row.places.at(self._rope, self._window)
        for text in row.texts:
            queries, keys, p = self._kept(tape, row, text)
            rows = spare.take("attn.d", *queries.shape)
            self._rows(rows, text.n)[:] = self._grouped(d, text)
            ds = spare.take("attn.ds", *p.shape)
            values = self._heads(v, text)
            self._compute.matmul(p.transpose(0, 2, 1), rows, out=self._heads(dv, text))
            self._compute.matmul(rows, values.transpose(0, 2, 1), out=ds)
            self._softmax_backward(p.reshape(-1, text.n), ds.reshape(-1, text.n))
            self._compute.matmul(ds, keys, out=rows)
            rotations.queries.backward(self._flat_heads(rows, text.n), self._heads(dq, text))
            d_keys = spare.take("attn.dk", *keys.shape)
            self._compute.matmul(ds.transpose(0, 2, 1), queries, out=d_keys)
            rotations.keys.backward(d_keys, self._heads(dk, text))

    def _kept(self, tape: Buffers, row: RowTexts, text: RowText) -> tuple[Array, Array, Array]:
        """Arrays on the tape for one text: rotated queries (n_head_kv, groups * n, head_dim),
        rotated keys (n_head_kv, n, head_dim), probabilities (n_head_kv, groups * n, n)."""
        n, n_kv, groups, width = text.n, *self._sizes()
        tokens = text.tokens
        q = tape.take("attn.q", row.n_tokens, n_kv * groups * width)[tokens]
        k = tape.take("attn.k", row.n_tokens, n_kv * width)[tokens]
        p = tape.take("attn.p", row.n_scores)[text.scores]
        return (
            q.reshape(n_kv, groups * n, width),
            k.reshape(n_kv, n, width),
            p.reshape(n_kv, groups * n, n),
        )

    def _sizes(self) -> tuple[int, int, int]:
        return self._shape.n_head_kv, self._shape.groups, self._shape.head_dim

    def _heads(self, x: Array, text: RowText) -> Array:
        """A view of one text in `x`: (T, heads * head_dim) -> (heads, n, head_dim)."""
        part = x[text.tokens]
        return part.reshape(text.n, -1, self._shape.head_dim).transpose(1, 0, 2)

    def _grouped(self, x: Array, text: RowText) -> Array:
        """A view of one text: (T, n_head * head_dim) -> (n_head_kv, groups, n, head_dim)."""
        n_kv, groups, width = self._sizes()
        return self._heads(x, text).reshape(n_kv, groups, text.n, width)

    def _rows(self, x: Array, n: int) -> Array:
        n_kv, groups, width = self._sizes()
        return x.reshape(n_kv, groups, n, width)

    def _flat_heads(self, x: Array, n: int) -> Array:
        return x.reshape(-1, n, self._shape.head_dim)

    def _softmax(self, scores: Array, masked: Array) -> None:
        """Softmax along the last axis of `scores` (heads, n, n), in place."""
        xp = self._compute.xp

        def work(heads: slice, scratch: Scratch) -> None:
            part = scores[heads]
            part += masked
            part -= part.max(axis=-1, keepdims=True)
            xp.exp(part, out=part)
            part /= part.sum(axis=-1, keepdims=True)

        self._compute.split(scores.shape, work)

    def _softmax_backward(self, p: Array, d: Array) -> None:
        """Softmax's gradient, in place: d (rows, n) becomes p * (d - sum(d * p))."""
        xp = self._compute.xp

        def work(rows: slice, scratch: Scratch) -> None:
            p_, d_ = p[rows], d[rows]
            product = scratch.take(0, *d_.shape)
            xp.multiply(d_, p_, out=product)
            d_ -= product.sum(axis=-1, keepdims=True)
            d_ *= p_

        self._compute.split(p.shape, work)


class RowTexts:
    """The texts of one packed row, with the rotations and masks for their positions."""

    def __init__(self, lengths: tuple[int, ...], shape: DecoderShape, places: Places) -> None:
        self.places = places
        self.texts = list(texts(lengths, shape.n_head))
        self.n_tokens = sum(lengths)
        self.n_scores = shape.n_head * sum(n * n for n in lengths)
