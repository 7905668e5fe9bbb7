"""The learning rate of each step: linear warm-up, then a half cosine down to zero.

Flows in: the number of a step and how many there will be. Flows out: a factor of the highest rate.
The shape is that of arXiv 1608.03983 without restarts; the first step already learns. Not here:
when training ends (training_loop.py), which may be before the last step of the schedule.
"""

from __future__ import annotations

import math


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
