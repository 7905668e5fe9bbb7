"""The daemon's senses put together: sampler, history, guard, and what one answer cost.

Flows in: settings, the store, the supervisor. Flows out: a `Measured` for every answer (joules,
heat, memory peak, throttling) and the sensors as JSON for /status. The sampler calls `_seen` once a
second in its own thread; everything else runs on the event loop. Not here: reading sensors
(sensors/, board_sampler.py), the arithmetic of joules (energy.py), what pressure leads to
(pressure_guard.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edge_agent.config import Settings
from edge_agent.monitor.board_sampler import BoardSampler, Snapshot
from edge_agent.monitor.energy import energy_of
from edge_agent.monitor.pressure_guard import PressureGuard, thresholds
from edge_agent.monitor.telemetry import Telemetry
from edge_agent.records import Done, Energy, Measured
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor

_LOG = logging.getLogger(__name__)

SEEN_S = 1800
"""Seconds of once-a-second observations kept: as long as the sampler keeps power."""


@dataclass(frozen=True)
class _Seen:
    """One second: monotonic time, hottest zone, the worker's RssAnon, active alarms."""

    at_s: float
    celsius: float | None
    rss_anon_bytes: int | None
    alarms: tuple[str, ...]


@dataclass
class TokenCount:
    """Tokens generated since the start; the history makes a rate of it."""

    total: int = 0


@dataclass(frozen=True)
class Monitor:
    """Made by `build`; `start` on the running loop, `close` before the store closes."""

    sampler: BoardSampler
    telemetry: Telemetry
    guard: PressureGuard | None
    tokens: TokenCount
    _history: deque[_Seen] = field(default_factory=lambda: deque(maxlen=SEEN_S))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Begin to sample; the guard's actions run on the loop this is called on."""
        loop = asyncio.get_running_loop()
        self.sampler.subscribe(self._note)
        if self.guard is not None:
            feed = self.guard.feed
            self.sampler.subscribe(lambda seen: _hand_over(loop, feed, seen))
        self.sampler.start()

    def close(self) -> None:
        """Stop sampling and store what is still in memory. Idempotent."""
        self.sampler.close()
        self.telemetry.close()

    def _note(self, snapshot: Snapshot) -> None:
        seen = _Seen(
            snapshot.at_s,
            snapshot.thermal.hottest_celsius,
            snapshot.rss_anon_bytes.get("worker"),
            snapshot.alarms.active,
        )
        with self._lock:
            self._history.append(seen)

    async def measure(self, done: Done) -> Measured:
        """What the sensors saw while a request ran. Never raises: an answer is not lost for it."""
        try:
            return await self._measure(done)
        except Exception as error:
            _LOG.exception("an answer could not be measured")
            return Measured(Energy(reason=f"the measurement failed: {type(error).__name__}"))

    async def _measure(self, done: Done) -> Measured:
        if not done.spans:
            return Measured(Energy(reason="the engine told no times for this request"))
        start_s, end_s = done.spans[0].start_s, done.spans[-1].end_s
        await self.sampler.covering(end_s)
        idle_w, _ = self.sampler.idle_w()
        trace = self.sampler.trace(start_s, end_s)
        energy = energy_of(done.spans, trace, idle_w, done.timings.completion_tokens)
        seen = self._between(start_s, end_s)
        temperatures = [one.celsius for one in seen if one.celsius is not None]
        peaks = [one.rss_anon_bytes for one in seen if one.rss_anon_bytes is not None]
        alarms = sorted({cause for one in seen for cause in one.alarms})
        return Measured(energy, max(temperatures, default=None), max(peaks, default=None), alarms)

    def _between(self, start_s: float, end_s: float) -> list[_Seen]:
        """Observations of a window; the latest before its end when it is shorter than a second."""
        with self._lock:
            earlier = [one for one in self._history if one.at_s <= end_s]
        inside = [one for one in earlier if one.at_s >= start_s]
        return inside or earlier[-1:]

    def as_json(self) -> dict[str, Any] | None:
        """The latest snapshot for /status; None before the first one."""
        seen = self.sampler.snapshot()
        return None if seen is None else {**snapshot_json(seen), "guard": self._guard_json()}

    def _guard_json(self) -> dict[str, Any]:
        if self.guard is None:
            return {"stage": None, "reason": "switched off by the setting guard"}
        return {"stage": self.guard.stage, "reason": self.guard.reason}


def _hand_over(
    loop: asyncio.AbstractEventLoop, feed: Callable[[Snapshot], None], snapshot: Snapshot
) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(feed, snapshot)


def build(settings: Settings, store: Store, supervisor: Supervisor) -> Monitor:
    """The senses of a daemon, not started yet."""
    tokens = TokenCount()
    sampler = BoardSampler(
        settings.sensors_root,
        source=settings.power_source,
        idle_hz=settings.sample_idle_hz,
        busy_hz=settings.sample_busy_hz,
        pids=lambda: _pids(supervisor),
    )
    telemetry = Telemetry(store, sampler, lambda: tokens.total)
    guard = PressureGuard(thresholds(settings), supervisor, store) if settings.guard else None
    return Monitor(sampler, telemetry, guard, tokens)


def _pids(supervisor: Supervisor) -> Mapping[str, int]:
    worker = supervisor.status().worker_pid
    return {"front": os.getpid()} | ({} if worker is None else {"worker": worker})


def snapshot_json(seen: Snapshot) -> dict[str, Any]:
    """The `sensors` object of GET /status."""
    power, gpu, cpu = seen.power, seen.gpu, seen.cpu
    return {
        "source": power.source,
        "total_rail": power.total_rail,
        "total_w": seen.total_w,
        "total_reason": seen.total_reason or None,
        "idle_w": seen.idle_w,
        "idle_reason": seen.idle_reason or None,
        "rails": _rails(seen),
        "temperatures_celsius": dict(seen.thermal.zones_celsius),
        "hottest_celsius": seen.thermal.hottest_celsius,
        "cpu": {
            "load": seen.cpu_load,
            "clock_hz": cpu.clock_hz,
            "max_clock_hz": cpu.max_clock_hz,
        },
        "gpu": {
            "name": gpu.name,
            "load": gpu.load,
            "clock_hz": gpu.clock_hz,
            "max_clock_hz": gpu.max_clock_hz,
            "reason": gpu.reasons.get("load"),
        },
        "memory": asdict(seen.memory),
        "throttle": list(seen.alarms.active),
        "board": asdict(seen.board),
        "sampler": {
            "ticks": seen.ticks,
            "missed_ticks": seen.missed_ticks,
            "rate_hz": seen.rate_hz,
            "blocked": dict(seen.blocked),
        },
    }


def _rails(seen: Snapshot) -> dict[str, dict[str, float | str | None]]:
    """Watts by rail; a counter's total is the sampler's, its other rails have none."""
    power = seen.power
    names = [*power.watts, *(name for name in power.joules if name not in power.watts)]
    rails: dict[str, dict[str, float | str | None]] = {}
    for name in names:
        watts = power.watts.get(name)
        if watts is None and name == power.total_rail:
            watts = seen.total_w
        reason = power.reasons.get(f"watts.{name}") or power.reasons.get(f"joules.{name}")
        rails[name] = {"watts": watts, "reason": reason}
    return rails
