"""Two small-sample tests, so that chance does not decide: an exact sign test, a paired bootstrap.

Why it exists: the gate asks some 30 questions, and with so few a difference is often chance. Flows
in: results of the same questions before and after. Flows out: probabilities and bounds. The module
is pure, and deterministic because the bootstrap's seed is fixed. Not here: what is compared
(checks.py).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

_Row = TypeVar("_Row")
RESAMPLES = 1000
"""Resamples of the bootstrap. With so many, another seed changes the bound by less than one unit of
its second digit."""


def sign_test(worse: int, better: int) -> float:
    """Probability that chance alone turns `worse` or more of the changed pairs bad (one-sided p).

    Under chance a changed pair is worse or better with equal probability (exact binomial test). For
    yes/no pairs this is McNemar's exact test. 1.0 when nothing changed.

    >>> sign_test(worse=5, better=0)
    0.03125
    """
    changed = worse + better
    return math.fsum(math.comb(changed, k) for k in range(worse, changed + 1)) / 2.0**changed


def bootstrap_lower(
    groups: Sequence[Sequence[_Row]],
    statistic: Callable[[Sequence[Sequence[_Row]]], float],
    level: float,
) -> float:
    """Lower bound of `statistic`: its `level` quantile over resamples within each group.

    This is the percentile bootstrap (Efron 1979). A row holds both sides of a pair, so that pairs
    stay together. Empty groups are left out.
    """
    draw = random.Random(0)
    values = sorted(
        statistic([draw.choices(group, k=len(group)) for group in groups if group])
        for _ in range(RESAMPLES)
    )
    return values[int(level * RESAMPLES)]
