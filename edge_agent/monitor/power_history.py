"""The last half hour of power samples, and the watts that the board takes when nothing runs.

Flows in: watts, or a counter's joules, each with its monotonic time, from the sampler's thread.
Flows out: copies of a window as energy.Trace, to any thread. Not here: reading sensors
(board_sampler.py), joules of a request (energy.py), one point a second (telemetry.py), what is kept
on disk (store/sample_table.py).
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from statistics import median
from typing import NamedTuple

from edge_agent.monitor.energy import Trace

KEEP_S = 1800.0
IDLE_NEEDED_S = 60.0
IDLE_WITHIN_S = 600.0
MEAN_OVER_S = 0.04
"""Shortest interval over which watts are computed from a counter. The counter changes about every
millisecond, so the mean over a shorter interval would be noise."""
_SLACK = 1.25
"""The arrays are cut back to the needed length when they have become this many times as long.
Cutting moves the whole array, so it is done rarely."""


class PowerSample(NamedTuple):
    """Watts of the total rail. From a counter: the mean of the interval that ends at `at_s`."""

    at_s: float
    watts: float


class PowerHistory:
    """Thread-safe. Two samples further apart than `max_gap_s` have a gap between them. An idle
    interval counts at most `idle_gap_s` seconds.

        history = PowerHistory(20.0, 0.3, 0.3)
        history.add_watts(time.monotonic(), 4.5, is_idle=False)
        history.trace(start_s, end_s, "ina3221", "VDD_IN").watts
    """

    def __init__(self, highest_hz: float, max_gap_s: float, idle_gap_s: float) -> None:
        self.max_gap_s = max_gap_s
        self._idle_gap_s = idle_gap_s
        self._keep = int(KEEP_S * highest_hz) + 1
        self._lock = threading.Lock()
        self._times, self._watts, self._joules = array("d"), array("d"), array("d")
        self._counter: tuple[float, float] | None = None
        """Time and joules of a counter's first reading, which has no watts yet."""
        self._idle: deque[tuple[PowerSample, float]] = deque()
        """The latest samples without work, each with the seconds that it stands for."""
        self._idle_s = 0.0
        self._idle_since_s: float | None = None
        """Time of the previous sample; None when the board was busy then."""

    def add_watts(self, at_s: float, watts: float, *, is_idle: bool) -> PowerSample:
        with self._lock:
            return self._add(PowerSample(at_s, watts), is_idle)

    def add_joules(self, at_s: float, joules: float, *, is_idle: bool) -> PowerSample | None:
        """None for a counter's first reading, because watts need two readings."""
        with self._lock:
            before = self._counted_before(at_s)
            if before is None or at_s <= before[0]:
                self._counter = self._counter or (at_s, joules)
                return None
            self._joules.append(joules)
            watts = (joules - before[1]) / (at_s - before[0])
            return self._add(PowerSample(at_s, watts), is_idle)

    def trace(self, start_s: float, end_s: float, source: str, rail: str | None) -> Trace:
        """A copy of the samples of a window, and of one sample before and after it."""
        with self._lock:
            first = max(0, bisect_left(self._times, start_s) - 1)
            last = bisect_right(self._times, end_s) + 1
            return Trace(
                self._times[first:last],
                self._watts[first:last],
                self._joules[first:last],
                source,
                rail,
                self.max_gap_s,
            )

    def idle_w(self, now_s: float) -> tuple[float | None, str]:
        """(watts, ""), or (None, reason) with too little idle time in the last IDLE_WITHIN_S.

        The watts are the median of the latest IDLE_NEEDED_S seconds without work.
        """
        with self._lock:
            while self._idle and self._idle[0][0].at_s < now_s - IDLE_WITHIN_S:
                self._forget_oldest_idle()
            watts = [sample.watts for sample, _ in self._idle]
            seconds = self._idle_s
        if seconds < IDLE_NEEDED_S - self._idle_gap_s or not watts:
            seen = f"only {seconds:.0f} s of idle time seen in the last 10 minutes"
            return None, f"{seen}, {IDLE_NEEDED_S:.0f} are needed"
        return median(watts), ""

    # ---- with the lock held ----

    def _counted_before(self, at_s: float) -> tuple[float, float] | None:
        """Time and joules of the newest reading at least MEAN_OVER_S before `at_s`."""
        for index in range(len(self._times) - 1, -1, -1):
            if at_s - self._times[index] >= MEAN_OVER_S:
                return self._times[index], self._joules[index]
        return self._counter

    def _add(self, sample: PowerSample, is_idle: bool) -> PowerSample:
        self._times.append(sample.at_s)
        self._watts.append(sample.watts)
        self._note_idle(sample, is_idle)
        if len(self._times) > self._keep * _SLACK:
            excess = len(self._times) - self._keep
            for values in (self._times, self._watts, self._joules):
                del values[:excess]
        return sample

    def _note_idle(self, sample: PowerSample, is_idle: bool) -> None:
        """A sample counts as idle when the one before was idle too, because the watts of the first
        sample after work still contain some of the work."""
        before, self._idle_since_s = self._idle_since_s, sample.at_s if is_idle else None
        if before is None or not is_idle:
            return
        seconds = min(sample.at_s - before, self._idle_gap_s)
        self._idle.append((sample, seconds))
        self._idle_s += seconds
        while self._idle_s - self._idle[0][1] >= IDLE_NEEDED_S:
            self._forget_oldest_idle()

    def _forget_oldest_idle(self) -> None:
        _, seconds = self._idle.popleft()
        self._idle_s = self._idle_s - seconds if self._idle else 0.0
