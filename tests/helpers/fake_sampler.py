"""A FAKE sampler: tests state the snapshots, and subscribers are called in the test's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from edge_agent.monitor.sensors.readings import Alarms, Board, Cpu, Gpu, Memory, Power, Thermal


@dataclass(frozen=True)
class FakeSnapshot:
    """The fields of edge_agent/monitor/snapshot.py's Snapshot, with figures of no real board."""

    at_s: float = 100.0
    power: Power = Power("ina3221", "VDD_IN", {"VDD_IN": 4.5, "VDD_SOC": 1.25})
    total_w: float | None = 4.5
    total_reason: str = ""
    thermal: Thermal = Thermal({"CPU-therm": 45.5, "GPU-therm": 47.25})
    memory: Memory = Memory(total_bytes=4 * 10**9, available_bytes=10**9)
    cpu: Cpu = Cpu(clock_hz=1.5e9, max_clock_hz=2e9)
    cpu_load: float | None = 0.75
    gpu: Gpu = Gpu("gpu", 0.5, 3e8, 9e8)
    alarms: Alarms = Alarms()
    board: Board = Board()
    idle_w: float | None = None
    idle_reason: str = "no idle minute yet"
    rss_anon_bytes: dict[str, int | None] = field(
        default_factory=lambda: {"front": 37_000_000, "worker": 90_000_000}
    )
    ticks: int = 10
    missed_ticks: int = 3
    rate_hz: float = 10.0
    blocked: dict[str, str] = field(default_factory=dict)


NOTHING = FakeSnapshot(
    power=Power("none", None, reasons={"watts": "no sensor"}), total_w=None, thermal=Thermal(),
    memory=Memory(), cpu=Cpu(), cpu_load=None, gpu=Gpu(),
    rss_anon_bytes={"front": None, "worker": None},
)  # fmt: skip
"""A machine on which nothing can be read."""


class FakeSampler:
    """`tell` plays one second of a real sampler; power samples are (monotonic seconds, watts)."""

    def __init__(self) -> None:
        self.latest: FakeSnapshot | None = None
        self.power: list[tuple[float, float]] = []
        self._callbacks: list[Callable[[Any], None]] = []

    def subscribe(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def snapshot(self) -> Any:
        return self.latest

    def trace(self, start_s: float, end_s: float) -> Any:
        """Includes one sample before and one after the window, as BoardSampler.trace does."""
        inside = [n for n, (at_s, _) in enumerate(self.power) if start_s <= at_s <= end_s]
        chosen = self.power[max(0, inside[0] - 1) : inside[-1] + 2] if inside else []
        return SimpleNamespace(
            times_s=tuple(at_s for at_s, _ in chosen), watts=tuple(watts for _, watts in chosen)
        )

    def tell(self, at_s: float, watts: Sequence[float] = (), **changed: Any) -> None:
        """A snapshot at `at_s`; `watts` are spread over the second before it."""
        count = len(watts)
        self.power += [(at_s - 1 + (n + 1) / count, value) for n, value in enumerate(watts)]
        self.latest = replace(FakeSnapshot(at_s=at_s), **changed)
        for callback in self._callbacks:
            callback(self.latest)
