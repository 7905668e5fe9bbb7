"""Forward passes with the weights of the later quantized file, while float weights learn.

Why it exists: training sees the weights that will be served only if the rounding is ggml's own, so
the same two calls that write and read a GGUF file (edge_agent/llama/ggml.py) make the weights of a
forward pass. The gradient goes unchanged to the latent float32 weights (straight-through estimator,
Bengio et al. 2013, arXiv:1308.3432). Flows in: tensors and the type of each. Flows out: tensors of
the same shape whose values that type can store. All weights that have changed are quantized
together, a slab of rows at a time on several threads; unchanged weights are not quantized again
(accumulation of gradients, evaluation). Not here: which type (qat.py), the activations, which
llama.cpp quantizes too. Needs torch; the quantizer runs on the processor, on whatever device the
weights are. Sharded weights (FSDP) are not possible: a process would have parts of the rows only.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from converters.quantizer import SLAB_ELEMENTS
from converters.rows import F32, check_finite
from edge_agent.llama import ggml

SAMPLED = 512
"""Elements compared to detect a change that torch's version counter misses (through `.data`)."""


@dataclass(frozen=True)
class Grid:
    """The values that a weight may have: a ggml type and, where one is used, its importance."""

    type: str
    importance: F32 | None = None


def round_trip(rows: F32, grid: Grid, out: F32) -> None:
    """dequantize(quantize(rows)) into `out`; both are contiguous float32 (n_rows, n_columns).

    Raises ValueError when a row does not divide into the type's blocks.
    """
    packed = np.empty(len(rows) * ggml.row_bytes(grid.type, rows.shape[1]), np.uint8)
    ggml.quantize(grid.type, rows, packed, grid.importance)
    ggml.dequantize(grid.type, packed, out)


class StraightThrough(torch.autograd.Function):  # type: ignore[misc]
    """Forward: the quantized values. Backward: the gradient, unchanged, to the latent weight."""

    @staticmethod
    def forward(ctx: Any, latent: Any, values: Any) -> Any:
        return values.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, None]:
        return gradient, None


@dataclass
class _Entry:
    """One weight. ggml writes to `host`, float32 on the processor; `values` is that on the weight's
    device."""

    name: str
    module: Any
    grid: Grid
    state: tuple[Any, ...] | None = None
    host: Any = None
    values: Any = None

    @property
    def latent(self) -> Any:
        return self.module._parameters["weight"]


class FakeQuantizer:
    """The quantized weights of one model."""

    def __init__(self, threads: int | None = None) -> None:
        """`threads` None: as many as torch uses."""
        self._threads = threads or torch.get_num_threads()
        self._entries: dict[str, _Entry] = {}

    def add(self, name: str, module: Any, grid: Grid) -> None:
        """Take over the parameter `weight` of `module`, a float32 matrix."""
        self._entries[name] = _Entry(name, module, grid)

    @property
    def grids(self) -> dict[str, Grid]:
        return {name: entry.grid for name, entry in self._entries.items()}

    def weight(self, name: str) -> Any:
        """The quantized weight; its gradient goes to the latent weight.

        Raises ConversionError when a latent weight is not finite.
        """
        entry = self._entries[name]
        if entry.state != _state(entry.latent):
            # An evaluation may call this, and training uses the result later, so the result must
            # not be an inference tensor.
            with torch.inference_mode(False), torch.no_grad():
                self._refresh()
        return StraightThrough.apply(entry.latent, entry.values)

    def _refresh(self) -> None:
        """Quantize all changed weights together, because an optimizer step changes all of them."""
        jobs, changed = [], []
        for entry in self._entries.values():
            state = _state(entry.latent)
            if entry.state == state:
                continue
            if entry.values is None or entry.values.shape != entry.latent.shape:
                _allocate(entry)
            changed.append((entry, state))
            jobs += list(_slabs(entry, self._threads))
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(_run, jobs):
                pass
        for entry, state in changed:
            _publish(entry)
            entry.state = state


def _state(latent: Any) -> tuple[Any, ...]:
    """A value that changes with the weight, in whatever way the weight was written."""
    flat = latent.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLED)].cpu().numpy().tobytes()
    return latent.data_ptr(), latent._version, sample


def _allocate(entry: _Entry) -> None:
    latent = entry.latent
    entry.host = torch.empty(latent.shape, dtype=torch.float32)
    entry.values = entry.host if latent.device.type == "cpu" else torch.empty_like(latent)


def _publish(entry: _Entry) -> None:
    """Make new values visible. A graph that still holds the old ones then fails in its backward
    pass instead of computing with wrong values."""
    if entry.values is entry.host:
        torch.autograd.graph.increment_version(entry.values)
    else:
        entry.values.copy_(entry.host)


@dataclass(frozen=True)
class _Slab:
    name: str
    rows: F32
    grid: Grid
    out: F32


def _slabs(entry: _Entry, threads: int) -> Iterator[_Slab]:
    rows = entry.latent.detach().cpu().contiguous().numpy()
    out = entry.host.numpy()
    step = max(1, min(SLAB_ELEMENTS // rows.shape[1], -(-len(rows) // threads)))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        yield _Slab(entry.name, rows[part], entry.grid, out[part])


def _run(slab: _Slab) -> None:
    check_finite(slab.name, slab.rows)
    round_trip(slab.rows, slab.grid, slab.out)
