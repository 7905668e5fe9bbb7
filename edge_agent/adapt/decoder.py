"""A whole model for training: embeddings, blocks, head; loss and LoRA gradients of one sequence.

Flows in: packed weights, adapters, token ids of one or more sequences packed into one row. Flows
out: losses, and gradients added to the adapters. Memory: each trained block's input is kept, the
rest of it is computed again on the way back, unless `keep_tapes` says there is room. Blocks below
the lowest adapter are frozen: their outputs can be computed once and handed in (`start`). Not here:
data, steps, checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.head import HeadResult, cross_entropy
from edge_agent.adapt.layer import Array, Layer, Positions, Tape, Turn, rms_norm, rms_norm_backward
from edge_agent.adapt.lora import Loras
from edge_agent.adapt.packed import PackedWeights
from edge_agent.adapt.shape import DecoderShape, Rope, read_shape
from edge_agent.errors import ModelFormatError


@dataclass(frozen=True)
class Batch:
    """One packed row. `targets` (T): the token to predict at each position, -1 where none is."""

    tokens: NDArray[np.int64]
    positions: Positions
    targets: NDArray[np.int64]

    @property
    def supervised(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.targets >= 0)


def pack(sequences: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> Batch:
    """(tokens, is_learned) of several texts in one row; a text never sees another.

    A position is supervised when the token that follows it in its own text is to be learned.
    """
    tokens, places, numbers, targets = [], [], [], []
    for number, (ids, learned) in enumerate(sequences):
        tokens += list(ids)
        places += range(len(ids))
        numbers += [number] * len(ids)
        follows = zip(ids[1:], learned[1:], strict=True)
        targets += [token if is_learned else -1 for token, is_learned in follows] + [-1]
    arrays = [np.array(values, np.int64) for values in (tokens, places, numbers, targets)]
    return Batch(arrays[0], Positions(arrays[1], arrays[2]), arrays[3])


class Decoder:
    """The model of `weights` with adapters. dtype float32, or float64 to check gradients."""

    def __init__(self, weights: PackedWeights, loras: Loras, dtype: Any = np.float32) -> None:
        """Raises ModelFormatError for variants the decoder does not know."""
        self.shape: DecoderShape = read_shape(weights.gguf)
        if self.shape.logit_softcap:
            raise ModelFormatError(
                f"cannot train on {weights.gguf.path}",
                "its logits are soft-capped",
                "take a model without final_logit_softcapping",
            )
        self._dtype = dtype
        self._embedding = weights.matrix("token_embd.weight")
        untied = "output.weight" in weights
        self._head = weights.matrix("output.weight") if untied else self._embedding
        self._norm = weights.vector("output_norm.weight")
        factors = "rope_freqs.weight"
        self._factors = weights.vector(factors) if factors in weights else None
        self.layers = [
            Layer(number, self.shape, weights, loras) for number in range(self.shape.n_layer)
        ]

    @property
    def lowest(self) -> int:
        """The first block with an adapter; everything below is frozen."""
        trained = (
            layer.number
            for layer in self.layers
            if any(linear.lora is not None for linear in layer.linears().values())
        )
        return min(trained, default=self.shape.n_layer)

    def embed(self, tokens: NDArray[np.int64]) -> Array:
        """(T, n_embd)."""
        rows = self._embedding.rows(tokens)
        return rows * np.asarray(self.shape.embedding_scale, self._dtype)

    def states(self, batch: Batch, until: int | None = None) -> Array:
        """Hidden states that enter block `until`, all blocks when None. Nothing is kept."""
        x = self.embed(batch.tokens)
        turns, masks = self._turns(batch.positions), self._masks(batch.positions)
        for layer in self.layers[:until]:
            x = layer.forward(x, turns, masks)
        return x

    def evaluate(self, batch: Batch, start: Array | None = None) -> HeadResult:
        """Losses at the supervised positions. `start`: states that enter block `lowest`."""
        x = self._from(start, batch)
        turns, masks = self._turns(batch.positions), self._masks(batch.positions)
        for layer in self.layers[self.lowest if start is not None else 0 :]:
            x = layer.forward(x, turns, masks)
        supervised = batch.supervised
        normed, _ = rms_norm(x[supervised], self._norm, self.shape.norm_epsilon)
        return cross_entropy(self._head, normed, batch.targets[supervised])

    def logits(self, batch: Batch) -> Array:
        """(T, n_vocab), to compare with llama.cpp; training never makes so many at once."""
        normed, _ = rms_norm(self.states(batch), self._norm, self.shape.norm_epsilon)
        return self._head.forward(normed)

    def step(
        self, batch: Batch, weight: float, start: Array | None = None, *, keep_tapes: bool = False
    ) -> HeadResult:
        """Add the gradients of weight * (sum of losses) to the adapters and return the losses."""
        lowest = self.lowest
        turns, masks = self._turns(batch.positions), self._masks(batch.positions)
        x = start if start is not None else self.states(batch, lowest)
        inputs: list[Array] = []
        tapes: list[Tape] = []
        for layer in self.layers[lowest:]:
            inputs.append(x)
            tapes.append({})
            x = layer.forward(x, turns, masks, tapes[-1] if keep_tapes else None)
        supervised = batch.supervised
        normed, inverse = rms_norm(x[supervised], self._norm, self.shape.norm_epsilon)
        result = cross_entropy(self._head, normed, batch.targets[supervised])
        d_normed = result.gradient * np.asarray(weight, self._dtype)
        dx = np.zeros_like(x)
        dx[supervised] = rms_norm_backward(x[supervised], self._norm, inverse, d_normed)
        for layer in reversed(self.layers[lowest:]):
            tape, entered = tapes.pop(), inputs.pop()
            if not keep_tapes:
                layer.forward(entered, turns, masks, tape)
            dx = layer.backward(dx, turns, tape)
        return result

    def _from(self, start: Array | None, batch: Batch) -> Array:
        return self.embed(batch.tokens) if start is None else start

    def _turns(self, positions: Positions) -> dict[Rope, Turn]:
        head = self.shape.head_dim
        return {
            rope: Turn(rope, positions.place, head, self._factors, self._dtype)
            for rope in set(self.shape.ropes)
        }

    def _masks(self, positions: Positions) -> dict[int, Array]:
        return {window: positions.mask(window, self._dtype) for window in set(self.shape.windows)}
