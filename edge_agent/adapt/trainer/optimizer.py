"""AdamW over LoRA matrices, the clipping of their gradients, and the learning rate's schedule.

Why it exists: the trainer has no torch, and its steps must equal torch's. Flows in: (name, value,
gradient) of every matrix in a fixed order (decoder/lora.py, `parameters`), the number of a step.
Flows out: values changed in place, the moments `m` and `v` for a checkpoint, a factor of the
learning rate. Decoupled weight decay and bias correction are those of arXiv 1711.05101 as
torch.optim.AdamW computes them, in the precision of the gradients. The schedule is a linear warm-up
and then half a cosine down to zero (arXiv 1608.03983 without restarts). Not here: when training
ends (training_loop.py), files (checkpoint.py).
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
"""The defaults of torch.optim.AdamW."""
CLIP_EPSILON = 1e-6
"""torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6."""


class AdamW:
    """The moments `m` and `v` of each parameter by name, and `t`, the number of steps so far.

    >>> value, gradient = np.array([1.0]), np.array([2.0])
    >>> AdamW([("a", value, gradient)]).step([("a", value, gradient)], learning_rate=0.1)
    >>> round(float(value[0]), 6)
    0.9
    """

    def __init__(self, parameters: Iterable[Parameter], weight_decay: float = 0.0) -> None:
        self.weight_decay = weight_decay
        self.t = 0
        self.m: dict[str, Array] = {}
        self.v: dict[str, Array] = {}
        for name, value, _ in parameters:
            self.m[name], self.v[name] = np.zeros_like(value), np.zeros_like(value)

    def step(self, parameters: Iterable[Parameter], learning_rate: float) -> None:
        """Change every value in place by one step against its gradient."""
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
    """Scale all gradients, in place, so that their common norm is at most `max_norm` (0: no limit).

    Returns the norm before scaling. The norm is summed in double precision, matrix by matrix in the
    given order, so that the same gradients give the same bits.
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
    """The factor of the highest learning rate in step 0 .. n_steps - 1; in (0, 1].

    The factor rises linearly over warmup_ratio * n_steps steps, from above 0, so that the first
    step learns already. Then it falls by half a cosine towards 0 (arXiv 1608.03983).

    >>> [round(factor(step, 5, 0.4), 3) for step in range(5)]
    [0.5, 1.0, 1.0, 0.75, 0.25]
    """
    warmup = round(warmup_ratio * n_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, n_steps - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * done))
