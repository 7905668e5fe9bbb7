"""The board as a run sees it: heat, memory, battery, joules.

Flows in: the daemon's Monitor, or none (a command line without a daemon reads /proc and /sys by
itself once a second and knows no joules). Flows out: policy.Conditions, and the joules since it was
last asked. Not here: the decision to pause (pause_policy.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from edge_agent.adapt.pause_policy import HEAT_MARGIN_CELSIUS, MEMORY_MARGIN, Conditions, Limits
from edge_agent.config import Settings
from edge_agent.monitor.energy import integrate
from edge_agent.monitor.monitor import Monitor
from edge_agent.monitor.pressure_guard import AVAILABLE_SHARE
from edge_agent.monitor.sensors import memory, thermal
from edge_agent.monitor.sensors.supply import on_battery


class Board:
    """One per run owner. Without a monitor the sensors below `settings.sensors_root` are read."""

    def __init__(
        self,
        settings: Settings,
        monitor: Monitor | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._root: Path = settings.sensors_root
        self._monitor = monitor
        self._monotonic = monotonic
        self._asked_s: float | None = None
        self._thermal = thermal.find(self._root)
        self._memory = memory.find(self._root)

    def limits(self) -> Limits:
        """A little before the guard's own."""
        settings = self._settings
        available = settings.guard_available_bytes
        total = self._memory.read().total_bytes
        if available is None and total is not None:
            available = round(AVAILABLE_SHARE * total)
        return Limits(
            settings.guard_celsius - HEAT_MARGIN_CELSIUS,
            None if available is None else round(MEMORY_MARGIN * available),
        )

    def conditions(self, in_flight: int) -> Conditions:
        """What is known now; never raises."""
        seen = self._monitor.sampler.snapshot() if self._monitor else None
        guard = self._monitor.guard if self._monitor else None
        heat = seen.thermal if seen else self._thermal.read()
        free = seen.memory if seen else self._memory.read()
        return Conditions(
            now_s=self._monotonic(),
            in_flight=in_flight,
            celsius=heat.hottest_celsius,
            available_bytes=free.available_bytes,
            on_battery=on_battery(self._root),
            guard_reason=guard.reason if guard and guard.stage else "",
        )

    def joules_since_last(self) -> float | None:
        """Of the board since the last call; None at first, without a sensor, or with gaps."""
        now_s, since_s = self._monotonic(), self._asked_s
        self._asked_s = now_s
        if self._monitor is None or since_s is None or now_s <= since_s:
            return None
        trace = self._monitor.sampler.trace(since_s, now_s)
        found = integrate(trace, since_s, now_s)
        return found.joules if found.covered_s >= 0.9 * (now_s - since_s) else None
