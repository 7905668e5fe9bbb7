"""The two clocks that every timed part is given, so that a test can set the time.

Flows in: nothing. Flows out: two functions. It imports nothing of ours. A board without a
battery-backed clock starts in 1970 and its Unix time jumps when the network sets it, so durations
are always differences of `monotonic`. Not here: sleeping.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clocks:
    """`unix` gives the seconds that are shown and stored, `monotonic` those that are measured.

    Clocks(monotonic=lambda: 5.0)    # in a test
    """

    unix: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
