"""Two small-sample tests, so that chance does not decide: an exact sign test, a paired bootstrap.

Flows in: the same questions judged before and after. Flows out: probabilities and bounds. Pure and
deterministic: the bootstrap's seed is fixed. Not here: what is compared (checks.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

_Row = TypeVar("_Row")
RESAMPLES = 1000
"""The bound moves by less than its second digit from seed to seed."""


def sign_test(worse: int, better: int) -> float:
    """One-sided p of `worse` or more among the pairs that changed, were both equally likely.

    Exact binomial; for yes/no pairs this is McNemar's exact test. 1.0 when nothing changed.
    """
    changed = worse + better
    return math.fsum(math.comb(changed, k) for k in range(worse, changed + 1)) / 2.0**changed


def bootstrap_lower(
    groups: Sequence[Sequence[_Row]],
    statistic: Callable[[Sequence[Sequence[_Row]]], float],
    level: float,
) -> float:
    """Lower bound of the statistic: its `level` quantile over resamples within each group.

    Percentile bootstrap (Efron). Rows hold both sides of a pair, so that the pairs stay together.
    """
    draw = random.Random(0)
    values = sorted(
        statistic([draw.choices(group, k=len(group)) for group in groups if group])
        for _ in range(RESAMPLES)
    )
    return values[int(level * RESAMPLES)]
