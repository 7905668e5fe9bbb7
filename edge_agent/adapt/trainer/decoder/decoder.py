"""A whole model for training: embeddings, blocks, head; loss and LoRA gradients of one packed row.

Why it exists: a board has neither autograd nor the memory for it. Flows in: packed weights,
adapters, token ids of one or more texts packed into one row. Flows out: losses, and gradients added
to the adapters. Memory: the input of each trained block is kept; everything else is computed again
in backward (gradient checkpointing). `keep_within` spends more memory on speed, in the order that
kept_activations.py gives. The blocks below the lowest adapter are frozen, so their output for a
text never changes: it can be computed once and passed in as `start`. Not here: data, optimizer
steps, checkpoints (adapt/trainer/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.trainer.decoder.attention import Places, RowTexts
from edge_agent.adapt.trainer.decoder.compute import Array, Buffers, Compute
from edge_agent.adapt.trainer.decoder.elementwise import rms_norm, rms_norm_backward
from edge_agent.adapt.trainer.decoder.head import (
    HeadResult,
    HeadTargets,
    SoftTargets,
    head_loss,
    likeliest,
)
from edge_agent.adapt.trainer.decoder.kept_activations import KeptActivations, choose
from edge_agent.adapt.trainer.decoder.layer import BlockPass, Layer
from edge_agent.adapt.trainer.decoder.lora import Dropout, Loras
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.decoder.shape import DecoderShape, read_shape
from edge_agent.errors import ModelFormatError

PLACES = 64
"""Rotations and masks are made for a number of positions that is a multiple of this."""


@dataclass(frozen=True)
class PackedRow:
    """One packed row of T tokens. `targets` (T) has the token to predict at each position, -1 where
    none is learned; `lengths` has the number of tokens of each text, in order.

    `weights` (S) are those of the losses at the S supervised positions; None: 1. `soft` has the
    distributions to predict instead of tokens at some of them.
    """

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    lengths: tuple[int, ...]
    weights: NDArray[np.float32] | None = None
    soft: SoftTargets | None = None

    @property
    def supervised(self) -> NDArray[np.int64]:
        """The supervised positions (S), ascending."""
        return np.flatnonzero(self.targets >= 0)

    @property
    def wanted(self) -> HeadTargets:
        """What the supervised positions shall predict."""
        return HeadTargets(self.targets[self.supervised], self.soft, self.weights)


def pack(sequences: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> PackedRow:
    """Pack several texts, (tokens, is_learned) each, into one row. A text never sees another.

    A position is supervised when the next token of the same text is learned.

    >>> pack([([5, 6, 7], [False, True, True])]).targets.tolist()
    [6, 7, -1]
    """
    tokens: list[int] = []
    targets: list[int] = []
    for ids, learned in sequences:
        tokens += ids
        follows = zip(ids[1:], learned[1:], strict=True)
        targets += [token if is_learned else -1 for token, is_learned in follows] + [-1]
    lengths = tuple(len(ids) for ids, _ in sequences)
    return PackedRow(np.array(tokens, np.int64), np.array(targets, np.int64), lengths)


class Decoder:
    """The model of `weights` with adapters. The dtype is that of `weights.compute`.

    For example, the gradients of the mean loss of one text:

        decoder = Decoder(PackedWeights(path), loras)
        batch = pack([(ids, learned)])
        losses = decoder.step(batch, weight=1 / len(batch.supervised)).losses
    """

    def __init__(self, weights: PackedWeights, loras: Loras) -> None:
        """Raises ModelFormatError for a model variant that the decoder does not know, and for a
        missing tensor."""
        self.shape: DecoderShape = read_shape(weights.gguf)
        if self.shape.logit_softcap:
            raise ModelFormatError(
                f"cannot train on {weights.gguf.path}",
                "its logits are soft-capped",
                "take a model without final_logit_softcapping",
            )
        self.compute: Compute = weights.compute
        self._embedding = weights.matrix("token_embd.weight")
        untied = "output.weight" in weights
        self.head = weights.matrix("output.weight") if untied else self._embedding
        self._norm = weights.vector("output_norm.weight")
        factors = "rope_freqs.weight"
        self._factors = weights.vector(factors) if factors in weights else None
        self.layers = [
            Layer(number, self.shape, weights, loras) for number in range(self.shape.n_layer)
        ]
        self._places = Places(self.compute, self.shape, PLACES, self._factors)
        self._shared, self._spare = Buffers(self.compute), Buffers(self.compute)
        self._states = Buffers(self.compute)
        self._tapes: dict[int, Buffers] = {}
        self._feds: dict[int, Buffers] = {}

    @property
    def lowest(self) -> int:
        """Index of the first block with an adapter; n_layer without adapters. The blocks below it
        are frozen."""
        trained = (layer.number for layer in self.layers if layer.is_trained)
        return min(trained, default=self.shape.n_layer)

    def keep_within(self, n_bytes: int, lengths: Sequence[int]) -> KeptActivations:
        """Keep up to `n_bytes`, beyond what a step needs, to save computing; 0 frees everything.

        `lengths`: tokens of each text of the largest row that will be trained. Results of a step
        stay the same to the bit, except where a kept matrix was unpacked in several tiles before:
        there the last bits of sums may change.
        """
        trained = self.layers[self.lowest :]
        kept = choose(n_bytes, trained, self.head, self.shape, lengths)
        self._tapes = {number: Buffers(self.compute) for number in kept.tapes}
        self._feds = {number: Buffers(self.compute) for number in kept.feds}
        wanted = set(kept.matrices)
        matrices = [linear.weight for layer in self.layers for linear in layer.linears.values()]
        for matrix in [*matrices, self.head]:
            if matrix.name in wanted:
                matrix.keep()
            else:
                matrix.forget()
        return kept

    def embed(self, tokens: NDArray[np.int64]) -> Array:
        """The embeddings of `tokens` (T): (T, n_embd)."""
        rows = self._embedding.rows(tokens)
        rows *= self.shape.embedding_scale
        return rows

    def blocks(
        self, batch: PackedRow, first: int = 0, start: Array | None = None
    ) -> Iterator[Array]:
        """Yield the hidden states (T, n_embd) that enter block `first`, those that enter each later
        block, then those that leave the last block.

        `start` are the states that enter `first`; None: the embeddings. Each yielded array is
        overwritten when the second one after it is taken.
        """
        x = self.embed(batch.tokens) if start is None else self.compute.array(start)
        yield x
        run = self._run(self._row(batch), None)
        for layer in self.layers[first:]:
            out = self._states.take(f"walk{layer.number % 2}", *x.shape)
            layer.forward(x, out, run)
            x = out
            yield x

    def states(self, batch: PackedRow, until: int | None = None) -> Array:
        """Hidden states (T, n_embd) that enter block `until`; None: those that leave the last one.

        Raises ValueError for a block that does not exist.
        """
        last = self.shape.n_layer if until is None else until
        for number, x in enumerate(self.blocks(batch)):
            if number == last:
                return x.copy()
        raise ValueError(f"until is {until}, but there are {self.shape.n_layer} blocks")

    def evaluate(self, batch: PackedRow, start: Array | None = None) -> HeadResult:
        """Losses at the supervised positions, without gradients. `start`: hidden states that enter
        block `lowest`; None: they are computed."""
        normed = self._supervised(batch, start)
        return head_loss(self.head, normed, batch.wanted, self._spare, with_gradient=False)

    def likeliest(
        self, batch: PackedRow, k: int, start: Array | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `k` likeliest tokens (S, k) at the supervised positions, and their probabilities."""
        return likeliest(self.head, self._supervised(batch, start), k, self._spare)

    def _supervised(self, batch: PackedRow, start: Array | None) -> Array:
        """The normed last states (S, n_embd) of the supervised positions."""
        first = self.lowest if start is not None else 0
        for x in self.blocks(batch, first, start):  # noqa: B007 - the last one is wanted
            pass
        return self._normed(x[self.compute.xp.asarray(batch.supervised)])[0]

    def logits(self, batch: PackedRow) -> Array:
        """All logits (T, n_vocab), for comparison with llama.cpp. Training never holds so many."""
        normed, _ = self._normed(self.states(batch))
        out = self.compute.empty(len(normed), self.head.n_out)
        self.head.forward(normed, out)
        return out

    def step(
        self,
        batch: PackedRow,
        weight: float,
        start: Array | None = None,
        *,
        keep_tapes: bool | None = None,
        dropout_seed: int = 0,
    ) -> HeadResult:
        """Add the gradients of weight * (weighted sum of losses) to the adapters and return the
        losses.

        `keep_tapes`: keep the tapes of all blocks, or of none; None: as `keep_within` decided.
        `dropout_seed` determines the dropout masks, so with lora_dropout each micro-batch of a run
        needs another number.
        """
        layers, row = self.layers[self.lowest :], self._row(batch)
        dropout = Dropout(self.compute, dropout_seed, self._spare)
        runs = [self._run(row, dropout, layer.number, keep_tapes) for layer in layers]
        inputs = self._forward_trained(batch, start, layers, runs)
        d, result = self._head_backward(inputs[-1], batch, weight)
        newest = True
        for layer, run, x in zip(layers[::-1], runs[::-1], inputs[-2::-1], strict=True):
            is_shared = run.tape is self._shared
            if is_shared and not newest:
                layer.again(x, run, is_fed_kept=run.fed is not self._shared)
            layer.backward(x, d, run, is_product_ready=is_shared or newest)
            newest = False
        return result

    def _forward_trained(
        self, batch: PackedRow, start: Array | None, layers: list[Layer], runs: list[BlockPass]
    ) -> list[Array]:
        """Forward through the trained blocks. Returns the states that enter each block, then those
        that leave the last."""
        first = self.states(batch, self.lowest) if start is None else self.compute.array(start)
        size = len(batch.tokens), self.shape.n_embd
        inputs = [self._states.take(f"input{n}", *size) for n in range(len(layers) + 1)]
        inputs[0][:] = first
        for number, (layer, run) in enumerate(zip(layers, runs, strict=True)):
            layer.forward(inputs[number], inputs[number + 1], run)
        return inputs

    def _head_backward(self, x: Array, batch: PackedRow, weight: float) -> tuple[Array, HeadResult]:
        """(gradient of `x`, the states that leave the last block; losses)."""
        supervised = batch.supervised
        places = self.compute.xp.asarray(supervised)
        chosen = x[places]
        normed, inverse = self._normed(chosen)
        result = head_loss(self.head, normed, batch.wanted, self._spare)
        d_normed = result.gradient * self.compute.dtype.type(weight)
        rms_norm_backward(self.compute, chosen, self._norm, inverse, d_normed, None)
        d = self._states.take("gradient", *x.shape)
        d[:] = 0
        d[places] = d_normed
        return d, result

    def _normed(self, x: Array) -> tuple[Array, Array]:
        """`x` through the output norm, and 1 / rms (n, 1) for backward."""
        out, inverse = self.compute.empty(*x.shape), self.compute.empty(len(x), 1)
        rms_norm(self.compute, x, self._norm, self.shape.norm_epsilon, out, inverse)
        return out, inverse

    def _row(self, batch: PackedRow) -> RowTexts:
        longest = max(batch.lengths)
        if longest > self._places.longest:
            n = -(-longest // PLACES) * PLACES
            self._places = Places(self.compute, self.shape, n, self._factors)
        return RowTexts(batch.lengths, self.shape, self._places)

    def _run(
        self,
        row: RowTexts,
        dropout: Dropout | None,
        number: int | None = None,
        keep_tapes: bool | None = None,
    ) -> BlockPass:
        """The buffers for a pass through block `number`: the shared tape, unless the block has a
        tape of its own."""
        tape, fed = self._shared, self._shared
        if number is not None:
            if keep_tapes:
                self._tapes.setdefault(number, Buffers(self.compute))
            if keep_tapes is not False:
                tape = self._tapes.get(number, self._shared)
            fed = self._feds.get(number, tape) if tape is self._shared else tape
        return BlockPass(row, tape, fed, self._spare, dropout)
