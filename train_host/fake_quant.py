"""Weights as the quantized file will have them, while the float weights behind them learn.

Why it exists: training sees what serving will see only if the rounding is ggml's own, so the same
two calls that write and read a GGUF file (edge_agent/llama/ggml.py) make the weights of a forward
pass. The gradient passes straight through to the latent float32 weights (straight-through
estimator, Bengio et al. 2013, arXiv:1308.3432). Flows in: tensors and the type each one gets.
Flows out: tensors of the same shape on the grid of that type. All weights that changed are
quantized together, a slab of rows at a time on several threads; what did not change since the last
time (accumulation of gradients, evaluation) is not touched. Not here: which type (qat.py), the
activations that llama.cpp quantizes too. Needs torch; the quantizer runs on the processor wherever
the weights lie. Sharded weights (FSDP) are not possible: a rank would see a part of the rows.
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
"""Elements that are compared to see a change that torch's version counter misses (`.data`)."""


@dataclass(frozen=True)
class Grid:
    """Where a weight's values may lie: a ggml type and, if it was used, its imatrix entry."""

    type: str
    importance: F32 | None = None


def round_trip(rows: F32, grid: Grid, out: F32) -> None:
    """dequantize(quantize(rows)) into `out`; both (n_rows, n_columns), contiguous.

    Raises ValueError when the rows do not divide into blocks.
    """
    packed = np.empty(len(rows) * ggml.row_bytes(grid.type, rows.shape[1]), np.uint8)
    ggml.quantize(grid.type, rows, packed, grid.importance)
    ggml.dequantize(grid.type, packed, out)


class StraightThrough(torch.autograd.Function):  # type: ignore[misc]
    """Forward: the values on the grid. Backward: the gradient, unchanged, to the latent weight."""

    @staticmethod
    def forward(ctx: Any, latent: Any, values: Any) -> Any:
        return values.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> tuple[Any, None]:
        return gradient, None


@dataclass
class _Entry:
    """One weight. `host` is float32 memory that ggml writes to, `values` the same on its device."""

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
    """The weights of one model on their grids."""

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
        """The weight on its grid; its gradient goes to the latent weight.

        Raises ConversionError when a latent weight is not finite.
        """
        entry = self._entries[name]
        if entry.state != _state(entry.latent):
            # What is made in an evaluation must be of use to the training after it.
            with torch.inference_mode(False), torch.no_grad():
                self._refresh()
        return StraightThrough.apply(entry.latent, entry.values)

    def _refresh(self) -> None:
        """All that changed, together: an optimizer step changes everything at once."""
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
    """Differs from the last one when the weight does, however it was written to."""
    flat = latent.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // SAMPLED)].cpu().numpy().tobytes()
    return latent.data_ptr(), latent._version, sample


def _allocate(entry: _Entry) -> None:
    latent = entry.latent
    entry.host = torch.empty(latent.shape, dtype=torch.float32)
    entry.values = entry.host if latent.device.type == "cpu" else torch.empty_like(latent)


def _publish(entry: _Entry) -> None:
    """Where a graph still holds the old values, its backward pass now fails instead of lying."""
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
