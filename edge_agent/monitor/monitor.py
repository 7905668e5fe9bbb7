"""What the daemon measures: the sampler, the telemetry, the guard, and what one answer cost.

Flows in: settings, the store, the supervisor. Flows out: a `Measured` for every answer (joules,
temperature, memory peak, throttling) and the sensors as JSON for GET /status. The sampler calls its
subscribers once a second in its own thread; everything else runs on the event loop. Not here:
reading sensors (sensors/, board_sampler.py), the second's points (telemetry.py), the arithmetic of
joules (energy.py), what pressure leads to (pressure_guard.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge_agent.config import Settings
from edge_agent.measured import Energy, Measured
from edge_agent.monitor.board_sampler import BoardSampler, Snapshot
from edge_agent.monitor.energy import energy_of
from edge_agent.monitor.pressure_guard import PressureGuard, thresholds
from edge_agent.monitor.telemetry import Telemetry
from edge_agent.records import Done
from edge_agent.store.rows import alarm_list
from edge_agent.store.store import Store
from edge_agent.supervisor.supervisor import Supervisor

_LOG = logging.getLogger(__name__)


@dataclass
class TokenCount:
    """Tokens generated since the daemon's start; telemetry.py makes tokens per second of it."""

    total: int = 0


@dataclass(frozen=True)
class Monitor:
    """The parts that measure, made by `build`.

    Call `start` on the running event loop and `close` before the store is closed.

        monitor = build(settings, store, supervisor)
        monitor.start()
        measured = await monitor.measure(done)
    """

    sampler: BoardSampler
    telemetry: Telemetry
    guard: PressureGuard | None
    tokens: TokenCount

    def start(self) -> None:
        """Begin to sample; the guard's actions run on the loop this is called on."""
        loop = asyncio.get_running_loop()
        if self.guard is not None:
            feed = self.guard.feed
            self.sampler.subscribe(lambda seen: _hand_over(loop, feed, seen))
        self.sampler.start()

    def close(self) -> None:
        """Stop sampling and store what is still in memory. Idempotent."""
        self.sampler.close()
        self.telemetry.close()

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
        points = self.telemetry.between(start_s, end_s)
        celsius = [point.celsius for point in points if point.celsius is not None]
        rss = [n for n in (point.worker_rss_anon_bytes for point in points) if n is not None]
        alarms = alarm_list(point.throttle for point in points)
        return Measured(
            energy,
            max(celsius, default=None),
            max(rss, default=None),
            alarms.split(",") if alarms else [],
        )

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
    """The monitor of a daemon, not started yet."""
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
    worker = supervisor.worker_pid
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
        "temperature_reasons": {
            key.removeprefix("zones_celsius."): reason
            for key, reason in seen.thermal.reasons.items()
        },
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
