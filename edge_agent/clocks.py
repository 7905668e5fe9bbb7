"""The two clocks every timed part is given, so that tests can own the time.

Flows in: nothing. Flows out: two functions. Leaf file. Boards without a battery-backed clock start
in 1970 and jump: durations therefore never come from `unix`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clocks:
    """Unix seconds for what people read, monotonic seconds for what is measured."""

    unix: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
