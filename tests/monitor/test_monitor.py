"""What an answer cost comes from the seconds in which the engine worked on it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from fake_sampler import FakeSampler

from edge_agent.measured import Measured, Span, Timings
from edge_agent.monitor.board_sampler import BoardSampler
from edge_agent.monitor.energy import Trace
from edge_agent.monitor.monitor import Monitor, TokenCount
from edge_agent.monitor.sensors.readings import Alarms, Thermal
from edge_agent.monitor.telemetry import Telemetry
from edge_agent.records import Done
from edge_agent.store.store import Store

NO_STORE = cast(Store, None)
"""Rows are written once a minute: these tests play a few seconds."""


class PoweredSampler(FakeSampler):
    """With 4 W on the only rail, sampled ten times a second."""

    async def covering(self, at_s: float) -> None:
        pass

    def idle_w(self) -> tuple[float | None, str]:
        return 1.0, ""

    def trace(self, start_s: float, end_s: float) -> Any:
        times = [start_s + 0.1 * n for n in range(round((end_s - start_s) * 10) + 1)]
        return Trace(times, [4.0] * len(times), [], "ina3221", "VDD_IN", 0.3)


def monitor_of(sampler: FakeSampler) -> Monitor:
    board = cast(BoardSampler, sampler)
    return Monitor(board, Telemetry(NO_STORE, board, lambda: 0), None, TokenCount())


def measure(monitor: Monitor, *spans: Span) -> Measured:
    done = Done(1, "", "stop", Timings(1, 0, 10, 0.0, 0.0, 1.0, 0.0), spans=list(spans))
    return asyncio.run(monitor.measure(done))


def test_an_answer_gets_the_heat_the_memory_and_the_alarms_of_its_seconds() -> None:
    sampler = PoweredSampler()
    monitor = monitor_of(sampler)
    for second, celsius in enumerate((90.0, 50.0, 60.0, 95.0), 1):
        sampler.tell(
            float(second),
            thermal=Thermal({"CPU": celsius}),
            rss_anon_bytes={"worker": int(celsius)},
            alarms=Alarms((f"thermal:{celsius:.0f}",)),
        )
    found = measure(monitor, Span(1.5, 3.5, "decode", 1.0, 10))
    assert (found.temperature_celsius, found.memory_peak_bytes) == (60.0, 60)
    assert found.throttle == ["thermal:50", "thermal:60"]
    assert found.energy.total_j == pytest.approx(8.0)


def test_an_answer_before_the_first_second_has_energy_alone() -> None:
    found = measure(monitor_of(PoweredSampler()), Span(1.5, 3.5, "decode", 1.0, 10))
    assert (found.temperature_celsius, found.memory_peak_bytes, found.throttle) == (None, None, [])
    assert found.energy.marginal_j == pytest.approx(6.0)


def test_an_answer_without_spans_says_why_it_has_no_figures() -> None:
    found = measure(monitor_of(PoweredSampler()))
    assert found.energy.total_j is None and found.energy.reason
