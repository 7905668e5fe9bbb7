"""When a trainer must pause: for a request, heat, too little memory, a battery.

`PauseConditions` reads the board: the daemon's Monitor, or, in a command without a daemon, /proc
and /sys once a second. It also tells the joules since it was last asked, which only a Monitor
knows. `PausePolicy` is a pure function of what was read, with hysteresis, so that a trainer does
not stop and start all the time: a pause for a request ends QUIET_S after the last request, any
other pause ends CALM_S after its cause is gone. A missing sensor never pauses a trainer. Flows in:
settings, sensors, the number of requests. Flows out: the reason to pause, or None. Not here: the
pause itself (trainer_control.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import Settings
from edge_agent.monitor.energy import integrate
from edge_agent.monitor.monitor import Monitor
from edge_agent.monitor.pressure_guard import AVAILABLE_SHARE
from edge_agent.monitor.sensors import memory, thermal
from edge_agent.monitor.sensors.kernel_file import in_time
from edge_agent.monitor.sensors.supply import on_battery

HEAT_MARGIN_CELSIUS = 5.0
"""Training pauses this far below the pressure guard's threshold, so that the heat of training never
makes the guard refuse requests."""
MEMORY_MARGIN = 1.5
"""Training pauses when less than this many times the guard's memory threshold is available, for the
same reason."""
QUIET_S = 3.0
CALM_S = 15.0
AMPLE_BYTES = 6 << 30
"""With this much memory available, the worker keeps its repacked copy of the weights (on ARM a copy
of a whole Q4_0 model) beside a trainer. No board of 8 GB has as much available."""
MIB = 1 << 20


@dataclass(frozen=True)
class PauseLimits:
    """None: no such limit. Celsius of the hottest zone, bytes of MemAvailable."""

    celsius: float | None = None
    available_bytes: int | None = None


@dataclass(frozen=True)
class BoardConditions:
    """What was read at one moment; None: not known. `now_s` is monotonic, `in_flight` counts
    requests that are answered or wait."""

    now_s: float
    in_flight: int = 0
    celsius: float | None = None
    available_bytes: int | None = None
    on_battery: bool | None = None
    guard_reason: str = ""

    @property
    def is_short_of_memory(self) -> bool:
        """The worker must give up its repacked weights while a trainer runs."""
        return self.available_bytes is not None and self.available_bytes < AMPLE_BYTES


class PausePolicy:
    """Give it the conditions once a second. `policy`: idle (pauses for requests), always,
    exclusive."""

    def __init__(self, policy: str, limits: PauseLimits) -> None:
        self._is_idle_only = policy == "idle"
        self._limits = limits
        self._reason: str | None = None
        self._until_s = 0.0

    def decide(self, now: BoardConditions) -> str | None:
        """Why the trainer must not compute now; None: it may."""
        found = self._found(now)
        if found is not None:
            self._reason, wait_s = found
            self._until_s = now.now_s + wait_s
        elif now.now_s >= self._until_s:
            self._reason = None
        return self._reason

    def _found(self, now: BoardConditions) -> tuple[str, float] | None:
        celsius, available = self._limits.celsius, self._limits.available_bytes
        if now.guard_reason:
            return f"the guard acts: {now.guard_reason}", CALM_S
        if now.celsius is not None and celsius is not None and now.celsius >= celsius:
            return f"heat: {now.celsius:.1f} C, training pauses at {celsius:.1f} C", CALM_S
        free = now.available_bytes
        if free is not None and available is not None and free < available:
            limit = f"training pauses below {available // MIB} MiB"
            return f"memory: {free // MIB} MiB available, {limit}", CALM_S
        if now.on_battery:
            return "the board runs on battery", CALM_S
        if self._is_idle_only and now.in_flight:
            return "a request is being answered", QUIET_S
        return None


class PauseConditions:
    """The conditions of this board. Without a monitor, the sensors below `settings.sensors_root`
    are read."""

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
        self._thermal = in_time(lambda: thermal.find(self._root))
        self._memory = in_time(lambda: memory.find(self._root))

    def limits(self) -> PauseLimits:
        """Those of the pressure guard with the margins above, so that training pauses first."""
        settings = self._settings
        available = settings.guard_available_bytes
        total = in_time(self._memory.read).total_bytes
        if available is None and total is not None:
            available = round(AVAILABLE_SHARE * total)
        return PauseLimits(
            settings.guard_celsius - HEAT_MARGIN_CELSIUS,
            None if available is None else round(MEMORY_MARGIN * available),
        )

    def conditions(self, in_flight: int) -> BoardConditions:
        """What is known now; never raises."""
        seen = self._monitor.sampler.snapshot() if self._monitor else None
        guard = self._monitor.guard if self._monitor else None
        heat = seen.thermal if seen else in_time(self._thermal.read)
        free = seen.memory if seen else in_time(self._memory.read)
        return BoardConditions(
            now_s=self._monotonic(),
            in_flight=in_flight,
            celsius=heat.hottest_celsius,
            available_bytes=free.available_bytes,
            on_battery=in_time(lambda: on_battery(self._root)),
            guard_reason=guard.reason if guard and guard.stage else "",
        )

    def joules_since_last(self) -> float | None:
        """Energy of the whole board since the last call. None at the first call, without a power
        sensor, or when samples cover less than 90 % of the time."""
        now_s, since_s = self._monotonic(), self._asked_s
        self._asked_s = now_s
        if self._monitor is None or since_s is None or now_s <= since_s:
            return None
        trace = self._monitor.sampler.trace(since_s, now_s)
        found = integrate(trace, since_s, now_s)
        return found.joules if found.covered_s >= 0.9 * (now_s - since_s) else None
