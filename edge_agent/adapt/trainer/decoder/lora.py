"""LoRA matrices of a run: y += scale * dropout(x) A^T B^T beside a frozen weight.

Why it exists: an adapter is all that a lesson changes. Names and scaling are PEFT's: r, lora_alpha,
lora_dropout, target_modules, layers_to_transform, use_rslora; the scale is lora_alpha / r (arXiv
2106.09685), or lora_alpha / sqrt(r) with use_rslora (arXiv 2312.03732). A is initialized as in PEFT
(Kaiming uniform with a = sqrt(5), so the bound is 1 / sqrt(n_in)), and B is zero, so a new adapter
changes nothing. Flows in: settings and sizes. Flows out: `LoraWeight`s, whose gradients add up
until they are cleared. Not here: the frozen weights (packed_weights.py), optimizer steps
(adapt/trainer/optimizer.py).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.adapt.trainer.decoder.compute import Buffers, Compute, Scratch
from edge_agent.gguf.model_file import GgufFile

Array = NDArray[Any]

TARGETS = {
    **{"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"},
    **{"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"},
}
"""PEFT's name of each target module -> its GGUF name."""


@dataclass(frozen=True)
class LoraSettings:
    """The user's choices about an adapter, by PEFT's names. `layers_to_transform` None: every
    block.

    >>> LoraSettings(r=4).scale, LoraSettings(r=4, use_rslora=True).scale
    (4.0, 8.0)
    """

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = tuple(TARGETS)
    use_rslora: bool = False
    layers_to_transform: tuple[int, ...] | None = None

    @property
    def scale(self) -> float:
        """lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora."""
        root = self.r**0.5 if self.use_rslora else self.r
        return float(self.lora_alpha / root)


class LoraWeight:
    """The matrices A (r, n_in) and B (n_out, r) of one weight and their gradients."""

    def __init__(self, a: Array, b: Array, scale: float, dropout: float = 0.0) -> None:
        self.a, self.b = a, b
        self.scale = scale
        self.dropout = dropout
        self.grad_a, self.grad_b = np.zeros_like(a), np.zeros_like(b)

    @property
    def r(self) -> int:
        return len(self.a)

    def forward(self, compute: Compute, x: Array, down: Array, y: Array) -> None:
        """Write x A^T to `down` (T, r), then add scale * down B^T to y (T, n_out). x: (T, n_in)."""
        compute.matmul(x, self.a.T, out=down)
        up = compute.xp.ascontiguousarray(self.b.T)
        up *= self.scale

        def work(rows: slice, scratch: Scratch) -> None:
            part = y[rows]
            added = scratch.take(0, *part.shape)
            compute.xp.matmul(down[rows], up, out=added)
            part += added

        compute.split(y.shape, work)

    def backward(self, compute: Compute, x: Array, down: Array, dy: Array) -> Array:
        """Add to the gradients of A and B. Returns the gradient of `down` (T, r).

        `x` (T, n_in) and `down` are those of `forward`; `dy` (T, n_out) is the gradient of y.
        """
        d_down = compute.matmul(dy, self.b, out=compute.empty(len(dy), self.r))
        d_down *= self.scale
        self.grad_a += compute.matmul(d_down.T, x, out=compute.empty(*self.a.shape))
        # Computed as (r, n_out) and transposed, so that BLAS reads the large dy row by row.
        d_up = compute.matmul(down.T, dy, out=compute.empty(self.r, len(self.b)))
        d_up *= self.scale
        self.grad_b += d_up.T
        return d_down

    def add_input_gradient(self, compute: Compute, d_down: Array, to: Array) -> None:
        """Add d_down A to `to` (T, n_in): the adapter's part of the gradient of x."""

        def work(rows: slice, scratch: Scratch) -> None:
            part = to[rows]
            added = scratch.take(0, *part.shape)
            compute.xp.matmul(d_down[rows], self.a, out=added)
            part += added

        compute.split(to.shape, work)

    def clear(self) -> None:
        """Set both gradients to 0."""
        self.grad_a[:] = 0
        self.grad_b[:] = 0


Loras = Mapping[str, LoraWeight]
"""Adapters by the GGUF name of their weight."""


class Dropout:
    """lora_dropout of one step. The mask follows from the seed and the matrix's name, so forward
    and backward draw the same one and none is stored."""

    def __init__(self, compute: Compute, seed: int, spare: Buffers) -> None:
        """`seed`: a different number for each micro-batch of a run."""
        self._compute, self._seed, self._spare = compute, seed, spare

    def scales(self, name: str, p: float, shape: tuple[int, ...]) -> Array:
        """Factors for the inputs of the matrix `name`: 0 where dropped, else 1 / (1 - p)."""
        key = [self._seed, zlib.crc32(name.encode())]
        drawn = np.random.default_rng(key).random(shape, np.float32)
        kept: Array = self._compute.array((drawn >= p) / (1.0 - p))
        return kept

    def apply(self, name: str, p: float, x: Array) -> Array:
        """x times `scales`, as a copy that is valid until the next call."""
        out = self._spare.take("dropped", *x.shape)
        self._compute.xp.multiply(x, self.scales(name, p, x.shape), out=out)
        return out


def target_sizes(gguf: GgufFile, settings: LoraSettings) -> dict[str, tuple[int, int]]:
    """The weights that get an adapter: name -> (n_out, n_in).

    Raises ValueError for an unknown target module and for a block that does not exist.
    """
    unknown = set(settings.target_modules) - set(TARGETS)
    if unknown:
        raise ValueError(f"target_modules {sorted(unknown)} are not among {list(TARGETS)}")
    chosen = settings.layers_to_transform
    layers = range(gguf.n_layer) if chosen is None else chosen
    sizes = {tensor.name: (tensor.shape[1], tensor.shape[0]) for tensor in gguf.tensors
             if len(tensor.shape) == 2}  # fmt: skip
    modules = [TARGETS[module] for module in settings.target_modules]
    names = [f"blk.{layer}.{module}.weight" for layer in layers for module in modules]
    missing = [name for name in names if name not in sizes]
    if missing:
        raise ValueError(f"{gguf.path} has no {missing[0]}; it has {gguf.n_layer} blocks")
    return {name: sizes[name] for name in names}


def new_loras(
    sizes: Mapping[str, tuple[int, int]],
    settings: LoraSettings,
    seed: int,
    dtype: Any = np.float32,
    xp: Any = np,
) -> dict[str, LoraWeight]:
    """A new adapter for weights given as name -> (n_out, n_in). The same seed gives the same bits.

    >>> new = new_loras({"blk.0.attn_q.weight": (3, 2)}, LoraSettings(r=1), seed=0)
    >>> new["blk.0.attn_q.weight"].b.tolist()
    [[0.0], [0.0], [0.0]]
    """
    rng = np.random.default_rng(seed)
    found = {}
    for name in sorted(sizes):
        n_out, n_in = sizes[name]
        bound = n_in**-0.5
        a = rng.uniform(-bound, bound, (settings.r, n_in)).astype(dtype)
        b = xp.zeros((n_out, settings.r), dtype)
        found[name] = LoraWeight(xp.asarray(a), b, settings.scale, settings.lora_dropout)
    return found


def parameters(loras: Loras) -> Iterator[tuple[str, Array, Array]]:
    """(name, value, gradient) of every matrix, in the order of the weights' names."""
    for name in sorted(loras):
        weight = loras[name]
        yield f"{name}.lora_a", weight.a, weight.grad_a
        yield f"{name}.lora_b", weight.b, weight.grad_b
