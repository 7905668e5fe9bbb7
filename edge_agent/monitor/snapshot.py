"""The board at one moment, and the sensors that are read once a second for it.

Flows in: sensor files through sensor_watch.py, and the sampler's state of power. Flows out:
Snapshot. Not here: power samples and their rate (board_sampler.py), the point that is kept of a
second (telemetry.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from edge_agent.monitor.sensor_watch import SensorWatch, WatchedSensor
from edge_agent.monitor.sensors import alarms, board, cpu, gpu, memory, thermal
from edge_agent.monitor.sensors.readings import (
    Alarms,
    Board,
    Cpu,
    Gpu,
    Looked,
    Memory,
    Power,
    Thermal,
)

_Plain = TypeVar("_Plain", Thermal, Memory, Cpu, Gpu, Alarms, Board)
Pids = Callable[[], Mapping[str, int]]


@dataclass(frozen=True)
class PowerState:
    """The latest power reading, the total watts and the idle watts; each None has its reason."""

    reading: Power
    total_w: float | None
    total_reason: str
    idle_w: float | None
    idle_reason: str


@dataclass(frozen=True)
class Pulse:
    """Counters of the sampler itself."""

    ticks: int
    missed_ticks: int
    rate_hz: float
    """Ticks a second that are due now, at the idle or the busy rate."""
    blocked: Mapping[str, str]
    """Files and subsystems that are left out because a read did not return, each with a reason."""


@dataclass(frozen=True)
class Snapshot:
    """Everything that is known of the board. `at_s` is monotonic seconds."""

    at_s: float
    power: Power
    total_w: float | None
    total_reason: str
    thermal: Thermal
    memory: Memory
    cpu: Cpu
    cpu_load: float | None
    """Share of core-seconds since the snapshot before that were not idle, 0 to 1."""
    gpu: Gpu
    alarms: Alarms
    board: Board
    idle_w: float | None
    idle_reason: str
    rss_anon_bytes: Mapping[str, int | None]
    """Anonymous memory by process, under the names that `pids` gives."""
    ticks: int
    missed_ticks: int
    rate_hz: float
    blocked: Mapping[str, str]


class SlowSensors:
    """Reads every subsystem except power. One thread at a time may use it."""

    def __init__(self, watch: SensorWatch, pids: Pids) -> None:
        self._watch = watch
        self._thermal = WatchedSensor("thermal", thermal.find, _without(Thermal))
        self._memory = WatchedSensor("memory", memory.find, _without(Memory))
        self._cpu = WatchedSensor("cpu", cpu.find, _without(Cpu))
        self._gpu = WatchedSensor("gpu", gpu.find, _without(Gpu))
        self._alarms = WatchedSensor("alarms", alarms.find, _without(Alarms))
        self._board = WatchedSensor("board", board.find, _without(Board))
        self._processes: WatchedSensor[Mapping[str, int | None]] = WatchedSensor(
            "processes", lambda root: _Processes(root, pids), lambda _: {}
        )
        self._known_board: Board | None = None
        self._last_cpu = Cpu()

    def read(
        self, turn: int, at_s: float, state: PowerState, pulse: Callable[[], Pulse]
    ) -> Snapshot:
        """The snapshot of now. Raises GivenUp when a read hung and another thread took over.

        `pulse` is called last, so that it includes a subsystem that was left out during this read.
        """
        watch = self._watch
        thermal_now = watch.read(self._thermal, turn)
        memory_now = watch.read(self._memory, turn)
        cpu_now = watch.read(self._cpu, turn)
        gpu_now = watch.read(self._gpu, turn)
        alarms_now = watch.read(self._alarms, turn)
        board_now = self._read_board(turn)
        processes = watch.read(self._processes, turn)
        load, self._last_cpu = _load(self._last_cpu, cpu_now), cpu_now
        now = pulse()
        return Snapshot(
            at_s=at_s,
            power=state.reading,
            total_w=state.total_w,
            total_reason=state.total_reason,
            thermal=thermal_now,
            memory=memory_now,
            cpu=cpu_now,
            cpu_load=load,
            gpu=gpu_now,
            alarms=alarms_now,
            board=board_now,
            idle_w=state.idle_w,
            idle_reason=state.idle_reason,
            rss_anon_bytes=processes,
            ticks=now.ticks,
            missed_ticks=now.missed_ticks,
            rate_hz=now.rate_hz,
            blocked=now.blocked,
        )

    def looked(self) -> list[Looked]:
        """The places that were searched; empty before the first read."""
        watched = (
            self._thermal, self._memory, self._cpu, self._gpu, self._alarms, self._board
        )  # fmt: skip
        return [place for one in watched if one.sensor for place in one.sensor.looked]

    def _read_board(self, turn: int) -> Board:
        """Read the board's facts once: they change only by a restart or an administrator."""
        if self._known_board is not None:
            return self._known_board
        found = self._watch.read(self._board, turn)
        if not self._board.reason:
            self._known_board = found
        return found


class _Processes:
    """RssAnon of each process, with the interface of a sensor."""

    looked: tuple[Looked, ...] = ()

    def __init__(self, root: Path, pids: Pids) -> None:
        self._root, self._pids = root, pids

    def read(self) -> Mapping[str, int | None]:
        pids = self._pids()
        return {name: memory.rss_anon_bytes(self._root, pid) for name, pid in pids.items()}


def _without(kind: type[_Plain]) -> Callable[[str], _Plain]:
    """A function that makes a reading in which every value is missing for one reason."""
    names = [one.name for one in fields(kind) if one.name != "reasons"]
    return lambda reason: kind(reasons=dict.fromkeys(names, reason))


def _load(before: Cpu, now: Cpu) -> float | None:
    """Share of the core-seconds since `before` that were not idle, 0 to 1; None without two
    readings."""
    if before.busy_s is None or before.total_s is None:
        return None
    if now.busy_s is None or now.total_s is None or now.total_s <= before.total_s:
        return None
    load = (now.busy_s - before.busy_s) / (now.total_s - before.total_s)
    return min(1.0, max(0.0, load))
