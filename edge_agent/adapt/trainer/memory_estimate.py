"""Bytes that a run will take of its own, from the header of the model and the sizes of the rows.

Why it exists: on a board with 4 GB a run that does not fit must be refused before it starts, not
killed in its third hour. Every buffer of decoder/decoder.py, decoder/layer.py,
decoder/attention.py, decoder/head.py and optimizer.py has a term here; tests compare the sum with
the memory of a real run. Flows in: a checked GGUF file, `RowSizes`, settings, the trained blocks.
Flows out: bytes of each part. The module is pure. Not here: what follows from the bytes (plan.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.adapt.run_settings import RunSettings
from edge_agent.adapt.trainer.dataset import Sample
from edge_agent.adapt.trainer.decoder.compute import BLOCK_ELEMENTS, SCRATCH_ARRAYS
from edge_agent.adapt.trainer.decoder.decoder import PLACES
from edge_agent.adapt.trainer.decoder.head import SOFT_ROWS
from edge_agent.adapt.trainer.decoder.layer import LINEARS
from edge_agent.adapt.trainer.decoder.lora import TARGETS
from edge_agent.adapt.trainer.decoder.packed_weights import HEAD_TILE_BYTES, TILE_BYTES
from edge_agent.adapt.trainer.decoder.shape import read_shape
from edge_agent.adapt.trainer.packed_samples import PackedSamples, bins, supervised
from edge_agent.adapt.trainer.rehearsal import Rehearsal, RehearsalPool
from edge_agent.adapt.trainer.rehearsal_targets import K
from edge_agent.adapt.trainer.stored_states import StateStore
from edge_agent.gguf.model_file import GgufFile

FLOAT = 4
"""Bytes of a float32."""
PROCESS_BYTES = 29 << 20
"""Python with NumPy, msgspec and llama.cpp's libraries (measured on x86-64 with Python 3.11)."""
BLAS_THREAD_BYTES = 1 << 20
"""The part of a thread's packing buffer that OpenBLAS uses (measured)."""
SAMPLE_TOKEN_BYTES = 4 + 8
"""Bytes of one token of a sample: its id, and a pointer in the list of flags."""
TARGET_BYTES = 8 + 4
"""Bytes of one stored token of a distribution: its id as int64, its probability."""
OPTIMIZER_ARRAYS = 5
"""Arrays for each LoRA matrix: value, gradient, two moments, and the best value so far."""


@dataclass(frozen=True)
class RowSizes:
    """Maxima over the packed rows: tokens, supervised tokens, tokens of the longest text, and the
    sum of the squared lengths of a row's texts."""

    tokens: int
    supervised: int
    longest: int
    squares: int
    all_tokens: int
    """Tokens of the whole lesson, rehearsal included."""
    soft: int = 0
    """Rehearsal positions of a row with a stored distribution, at most."""
    all_soft: int = 0
    """Such positions of the whole run."""


def row_sizes(packed: PackedSamples, rehearsal: Rehearsal, batch_tokens: int) -> RowSizes:
    """The sizes of all rows that will occur. The order of the samples, which differs between
    epochs, does not change the lengths in a row (first-fit decreasing). The largest row of each
    rehearsal pool counts as if it stood beside the largest row of the lesson."""
    rows: list[list[Sample]] = []
    for part in (packed.train, packed.validation):
        samples = [packed.samples[n] for n in part]
        in_rows = bins(samples, batch_tokens, range(len(samples)))
        rows += [[samples[n] for n in row] for row in in_rows]
    beside = [_largest(_rows_of(pool)) for pool in rehearsal.pools]
    sizes = [_largest(rows), *beside]
    is_soft = [pool.is_soft for pool in rehearsal.pools]
    soft = rehearsal.soft(packed.rehearsal.start)
    return RowSizes(
        tokens=sum(tokens for tokens, _, _ in sizes),
        supervised=sum(count for _, count, _ in sizes),
        longest=max(len(sample) for sample in packed.samples),
        squares=sum(squares for _, _, squares in sizes),
        all_tokens=packed.n_tokens,
        soft=sum(size[1] for size, one in zip(beside, is_soft, strict=True) if one),
        all_soft=packed.supervised(soft),
    )


def _rows_of(pool: RehearsalPool) -> list[list[Sample]]:
    rows = bins(pool.samples, pool.row_tokens, range(len(pool.samples)))
    return [[pool.samples[n] for n in row] for row in rows]


def _largest(rows: Sequence[Sequence[Sample]]) -> tuple[int, int, int]:
    """Maxima over the rows: tokens, supervised tokens, sum of the squared lengths."""
    return (
        max(sum(map(len, row)) for row in rows),
        max(sum(map(supervised, row)) for row in rows),
        max(sum(len(sample) ** 2 for sample in row) for row in rows),
    )


class MemoryEstimate:
    """The estimate for one model, one lesson and one set of settings.

    For example, for training the blocks 16 and 17:

        MemoryEstimate(gguf, row_sizes(packed, 512), settings, n_threads=2).bytes_of([16, 17])
    """

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
        """Bytes of each part, by the names of messages.Planned, for training the blocks `layers`.

        `total` is the process's own memory (RssAnon in /proc/PID/status). `weights_mapped` (pages
        of the file) and `prefix_store` (a file on the disk) are not part of it.
        """
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
        """Elements of a token's hidden state."""
        return self._shape.n_embd

    @property
    def _ff(self) -> int:
        return self._linears["ffn_gate"][1]

    def _process(self) -> int:
        scratch = self._n_threads * SCRATCH_ARRAYS * BLOCK_ELEMENTS * FLOAT
        norms = FLOAT * sum(t.n_elements for t in self._gguf.tensors if len(t.shape) == 1)
        samples = self._sizes.all_tokens * SAMPLE_TOKEN_BYTES
        samples += self._sizes.all_soft * K * TARGET_BYTES
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
        """The largest tile, and the largest product that is added to another one."""
        matrices = list(self._linears.values())
        tile = max(min(FLOAT * n_in * n_out, TILE_BYTES) for n_in, n_out in matrices)
        tile = max(tile, HEAD_TILE_BYTES)
        added = [self._width]
        added += [n_in for n_in, n_out in matrices if FLOAT * n_in * n_out > TILE_BYTES]
        return tile + FLOAT * self._sizes.tokens * max(added)

    def _states(self, n_trained: int, lowest: int) -> int:
        """The inputs of the trained blocks and the last output; their gradient; two states of a
        validation's pass; and the states read from the prefix store, twice (as parts, and
        joined)."""
        arrays = n_trained + 1 + 1 + 2 + 2
        return FLOAT * self._sizes.tokens * self._width * arrays

    def _tape(self) -> int:
        """The tape of one block."""
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
        """The buffers that all blocks share, and those of attention for the longest text."""
        shape, tokens, longest = self._shape, self._sizes.tokens, self._sizes.longest
        q, kv = self._linears["attn_q"][1], self._linears["attn_k"][1]
        width = (
            2 * self._width + self._ff + q + 2 * kv + (self._width if shape.has_post_norms else 0)
        )
        text = longest * (q + kv) + shape.n_head * longest * longest
        dropped = 0
        if self._settings.lora_dropout:
            # A masked copy, and the arrays to make it: random floats, flags, doubles, floats.
            dropped = tokens * max(n_in for n_in, _ in self._linears.values()) * 21
        return FLOAT * (tokens * width + text) + dropped

    def _head_buffers(self) -> int:
        """The logits of a tile, and the arrays of the supervised states."""
        n_in, n_out = self._head
        tile_rows = min(n_out, max(1, HEAD_TILE_BYTES // (FLOAT * n_in)))
        soft = min(SOFT_ROWS, self._sizes.soft) * K * n_in + 8 * self._sizes.soft * K
        return FLOAT * (self._sizes.supervised * (tile_rows + 7 * n_in) + soft)

    def _optimizer(self, n_trained: int) -> int:
        chosen = [self._linears[TARGETS[module]] for module in self._settings.target_modules]
        r = self._settings.r
        matrices = [r * size for shape in chosen for size in shape]
        working = 3 * max(matrices)
        return FLOAT * (OPTIMIZER_ARRAYS * n_trained * sum(matrices) + working)
