"""LoRA matrices of a run: y += scale * dropout(x) A^T B^T beside a frozen weight.

Names and scaling are PEFT's: r, lora_alpha, target_modules, use_rslora; scale is lora_alpha / r, or
lora_alpha / sqrt(r) (arXiv 2106.09685, 2312.03732). A is drawn as PEFT draws it (Kaiming uniform
with a = sqrt(5): bound 1 / sqrt(n_in)), B is zero, so a new adapter changes nothing. Flows in:
settings and sizes. Flows out: `LoraWeight`s whose gradients add up until they are cleared. Not
here: the frozen weights (packed.py), steps (optimizer.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TARGETS = {
    **{"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"},
    **{"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"},
}
"""PEFT's target_modules and the GGUF name of each."""


@dataclass(frozen=True)
class LoraSettings:
    """What a user chooses about the adapter."""

    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: tuple[str, ...] = tuple(TARGETS)
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        root = self.r**0.5 if self.use_rslora else self.r
        return float(self.lora_alpha / root)


class LoraWeight:
    """A (r, n_in), B (n_out, r) and their gradients, in the trainer's dtype."""

    def __init__(self, a: Array, b: Array, scale: float) -> None:
        self.a, self.b = a, b
        self.scale = scale
        self.grad_a, self.grad_b = np.zeros_like(a), np.zeros_like(b)

    def forward(self, x: Array) -> tuple[Array, Array]:
        """x (T, n_in) -> what is added to x W^T (T, n_out), and x A^T for the way back."""
        down = x @ self.a.T
        return (down @ self.b.T) * self.scale, down

    def backward(self, x: Array, down: Array, dy: Array) -> Array:
        """Adds to the gradients; returns the part of dx that goes through A and B (T, n_in)."""
        self.grad_b += self.scale * (dy.T @ down)
        d_down = self.scale * (dy @ self.b)
        self.grad_a += d_down.T @ x
        return d_down @ self.a

    def clear(self) -> None:
        self.grad_a[:] = 0
        self.grad_b[:] = 0


Loras = Mapping[str, LoraWeight]
"""By the GGUF name of the weight."""


def new_loras(
    sizes: Mapping[str, tuple[int, int]], settings: LoraSettings, seed: int, dtype: Any = np.float32
) -> dict[str, LoraWeight]:
    """A fresh adapter for weights given as name -> (n_out, n_in). The same seed, the same bits."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in sorted(sizes):
        n_out, n_in = sizes[name]
        bound = n_in**-0.5
        a = rng.uniform(-bound, bound, (settings.r, n_in)).astype(dtype)
        found[name] = LoraWeight(a, np.zeros((n_out, settings.r), dtype), settings.scale)
    return found


def parameters(loras: Loras) -> Iterator[tuple[str, Array, Array]]:
    """(name, value, gradient) of every matrix, in a fixed order."""
    for name in sorted(loras):
        weight = loras[name]
        yield f"{name}.lora_a", weight.a, weight.grad_a
        yield f"{name}.lora_b", weight.b, weight.grad_b
