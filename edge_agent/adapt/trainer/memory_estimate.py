"""Bytes that a run will take of its own, from the header of the model and the sizes of the rows.

Why it exists: on a board with 4 GB a run that does not fit must be refused before it starts, not
killed in its third hour. Every buffer of adapt/trainer/decoder/decoder.py,
adapt/trainer/decoder/layer.py, adapt/trainer/decoder/attention.py, adapt/trainer/decoder/head.py
and optimizer.py has its term here; tests compare the sum with what a real run takes. Flows in: a
checked GGUF file, `RowSizes`, settings, the trained blocks. Flows out: bytes by part. Pure. Not
here: what follows from them (plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.adapt.messages import RunSettings
from edge_agent.adapt.trainer.dataset import Sample
from edge_agent.adapt.trainer.decoder.compute import BLOCK_ELEMENTS, SCRATCH_ARRAYS
from edge_agent.adapt.trainer.decoder.decoder import PLACES
from edge_agent.adapt.trainer.decoder.layer import LINEARS
from edge_agent.adapt.trainer.decoder.lora import TARGETS
from edge_agent.adapt.trainer.decoder.packed_weights import HEAD_TILE_BYTES, TILE_BYTES
from edge_agent.adapt.trainer.decoder.shape import read_shape
from edge_agent.adapt.trainer.packed_samples import PackedSamples, bins, supervised
from edge_agent.adapt.trainer.stored_states import StateStore
from edge_agent.gguf.model_file import GgufFile

FLOAT = 4
PROCESS_BYTES = 29 << 20
"""Python with NumPy, msgspec and the libraries of llama.cpp loaded (measured: x86-64, 3.11)."""
BLAS_THREAD_BYTES = 1 << 20
"""What OpenBLAS touches of a thread's packing buffer (measured)."""
SAMPLE_TOKEN_BYTES = 4 + 8
"""Of a sample's token: its id, and its place in a list of flags."""
OPTIMIZER_ARRAYS = 5
"""Value, gradient, two moments, and the best value so far."""


@dataclass(frozen=True)
class RowSizes:
    """The largest of the packed rows: tokens, supervised ones, the longest text, and the sum of
    the squares of a row's texts."""

    tokens: int
    supervised: int
    longest: int
    squares: int
    all_tokens: int
    """Of the whole lesson."""


def row_sizes(packed: PackedSamples, batch_tokens: int) -> RowSizes:
    """Of all rows that will occur; those of an epoch are cut alike in any order."""
    rows: list[list[Sample]] = []
    for part in (packed.train, packed.validation):
        samples = [packed.samples[n] for n in part]
        in_rows = bins(samples, batch_tokens, range(len(samples)))
        rows += [[samples[n] for n in row] for row in in_rows]
    return RowSizes(
        tokens=max(sum(map(len, row)) for row in rows),
        supervised=max(sum(map(supervised, row)) for row in rows),
        longest=max(len(sample) for sample in packed.samples),
        squares=max(sum(len(sample) ** 2 for sample in row) for row in rows),
        all_tokens=packed.n_tokens,
    )


class MemoryEstimate:
    """Of one model, one lesson and one set of settings; `bytes_of` for the blocks to train."""

    def __init__(
        self, gguf: GgufFile, sizes: RowSizes, settings: RunSettings, n_threads: int
    ) -> None:
        self._gguf, self._sizes, self._settings = gguf, sizes, settings
        self._n_threads = n_threads
        self._shape = read_shape(gguf)
        shapes = {t.name: t.shape for t in gguf.tensors if len(t.shape) == 2}
        self._head = shapes.get("output.weight", shapes["token_embd.weight"])
        self._linears = {name: shapes[f"blk.0.{name}.weight"] for name in LINEARS}

    def bytes_of(self, layers: Sequence[int], keep_bytes: int = 0) -> dict[str, int]:
        """By part, as messages.Planned has it; `total` is what is the process's own (RssAnon)."""
        own = {
            "process": self._process(),
            "tile_cache": self._tiles() + keep_bytes,
            "layer_inputs": self._states(len(layers), min(layers)) + self._tape() + self._spare(),
            "head": self._head_buffers(),
            "optimizer": self._optimizer(len(layers)),
        }
        stored = StateStore.file_bytes(self._sizes.all_tokens, self._shape.n_embd)
        return {
            "weights_mapped": self._gguf.tensor_bytes,
            **own,
            "prefix_store": stored if min(layers) > 0 else 0,
            "total": sum(own.values()),
        }

    # ---- terms, in bytes ----------------------------------------------------------------------

    @property
    def _width(self) -> int:
        """Of the hidden states."""
        return self._shape.n_embd

    @property
    def _ff(self) -> int:
        return self._linears["ffn_gate"][1]

    def _process(self) -> int:
        scratch = self._n_threads * SCRATCH_ARRAYS * BLOCK_ELEMENTS * FLOAT
        norms = FLOAT * sum(t.n_elements for t in self._gguf.tensors if len(t.shape) == 1)
        samples = self._sizes.all_tokens * SAMPLE_TOKEN_BYTES
        places = -(-self._sizes.longest // PLACES) * PLACES
        rotations = 2 * places * self._shape.head_dim * len(set(self._shape.ropes))
        masks = places * places * len(set(self._shape.windows))
        return (
            PROCESS_BYTES
            + self._n_threads * BLAS_THREAD_BYTES
            + scratch
            + norms
            + samples
            + FLOAT * (rotations + masks)
        )

    def _tiles(self) -> int:
        """The widest tile, and a product that is added to another."""
        matrices = list(self._linears.values())
        tile = max(min(FLOAT * n_in * n_out, TILE_BYTES) for n_in, n_out in matrices)
        tile = max(tile, HEAD_TILE_BYTES)
        added = [self._width]
        added += [n_in for n_in, n_out in matrices if FLOAT * n_in * n_out > TILE_BYTES]
        return tile + FLOAT * self._sizes.tokens * max(added)

    def _states(self, n_trained: int, lowest: int) -> int:
        """Inputs of the trained blocks, their gradient, the walk of a validation; what is read of
        the prefix store, twice (its parts, and all of them in one)."""
        arrays = n_trained + 1 + 1 + 2 + 2
        return FLOAT * self._sizes.tokens * self._width * arrays

    def _tape(self) -> int:
        """Of one block."""
        shape, tokens = self._shape, self._sizes.tokens
        q, kv = self._linears["attn_q"][1], self._linears["attn_k"][1]
        width = self._width + 2 * self._ff + kv + q + (q + kv)
        if shape.has_post_norms:
            width += 2 * self._width
        if shape.has_qk_norm:
            width += q + kv + shape.n_head + shape.n_head_kv
        width += len(self._settings.target_modules) * self._settings.r + 4
        return FLOAT * (tokens * width + shape.n_head * self._sizes.squares)

    def _spare(self) -> int:
        """Buffers that all blocks share, and the attention of the longest text."""
        shape, tokens, longest = self._shape, self._sizes.tokens, self._sizes.longest
        q, kv = self._linears["attn_q"][1], self._linears["attn_k"][1]
        width = (
            2 * self._width + self._ff + q + 2 * kv + (self._width if shape.has_post_norms else 0)
        )
        text = longest * (q + kv) + shape.n_head * longest * longest
        dropped = 0
        if self._settings.lora_dropout:
            # A masked copy, and while it is made: drawn floats, flags, doubles, floats.
            dropped = tokens * max(n_in for n_in, _ in self._linears.values()) * 21
        return FLOAT * (tokens * width + text) + dropped

    def _head_buffers(self) -> int:
        """Logits of a tile; six arrays of the supervised states."""
        n_in, n_out = self._head
        tile_rows = min(n_out, max(1, HEAD_TILE_BYTES // (FLOAT * n_in)))
        return FLOAT * self._sizes.supervised * (tile_rows + 7 * n_in)

    def _optimizer(self, n_trained: int) -> int:
        chosen = [self._linears[TARGETS[module]] for module in self._settings.target_modules]
        r = self._settings.r
        matrices = [r * size for shape in chosen for size in shape]
        working = 3 * max(matrices)
        return FLOAT * (OPTIMIZER_ARRAYS * n_trained * sum(matrices) + working)
