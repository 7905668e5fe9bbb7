"""AdamW over LoRA matrices, and the clipping of their gradients.

Flows in: (name, value, gradient) of every matrix in a fixed order (lora.parameters). Flows out:
values changed in place; `state` for a checkpoint. Decoupled weight decay and bias correction are
those of arXiv 1711.05101 as torch.optim.AdamW computes them, in the gradients' own precision. Not
here: the learning rate (schedule.py), files (checkpoint.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Parameter = tuple[str, Array, Array]
"""Name, value, gradient."""

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""torch's and PEFT's defaults."""
CLIP_EPSILON = 1e-6
"""torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6."""


class AdamW:
    """Moments `m` and `v` of each parameter by name, and the number of steps taken, `t`."""

    def __init__(self, parameters: Iterable[Parameter], weight_decay: float = 0.0) -> None:
        self.weight_decay = weight_decay
        self.t = 0
        self.m: dict[str, Array] = {}
        self.v: dict[str, Array] = {}
        for name, value, _ in parameters:
            self.m[name], self.v[name] = np.zeros_like(value), np.zeros_like(value)

    def step(self, parameters: Iterable[Parameter], learning_rate: float) -> None:
        """Change every value in place by one step along its gradient."""
        self.t += 1
        step_size = learning_rate / (1.0 - BETA1**self.t)
        root = (1.0 - BETA2**self.t) ** 0.5
        for name, value, gradient in parameters:
            m, v = self.m[name], self.v[name]
            m *= BETA1
            m += (1.0 - BETA1) * gradient
            v *= BETA2
            v += (1.0 - BETA2) * (gradient * gradient)
            if self.weight_decay:
                value *= 1.0 - learning_rate * self.weight_decay
            denominator = np.sqrt(v)
            denominator /= root
            denominator += EPSILON
            value -= step_size * (m / denominator)


def clip(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients so that their common norm is at most `max_norm` (0: never).

    Returns the norm before. It is summed in double precision, matrix by matrix in the given order,
    so that the same gradients give the same bits.
    """
    gradients = [gradient for _, _, gradient in parameters]
    square = 0.0
    for gradient in gradients:
        square += float(np.sum(np.square(gradient, dtype=np.float64)))
    norm = math.sqrt(square)
    if 0.0 < max_norm < norm + CLIP_EPSILON:
        for gradient in gradients:
            gradient *= max_norm / (norm + CLIP_EPSILON)
    return norm


def factor(step: int, n_steps: int, warmup_ratio: float) -> float:
    """Of step 0 .. n_steps - 1, in (0, 1].

    >>> [round(factor(step, 5, 0.4), 3) for step in range(5)]
    [0.5, 1.0, 1.0, 0.75, 0.25]
    """
    warmup = round(warmup_ratio * n_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, n_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * done))
