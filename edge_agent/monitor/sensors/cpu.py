"""The processor: core-seconds not idle, clocks, and how often it was throttled.

Flows in: the root directory that stands for /. Flows out: Cpu, from proc(5) (/proc/stat, in clock
ticks), Documentation/admin-guide/pm/cpufreq.rst (kHz) and the counters of x86's thermal_throttle
driver. Not here: the load, which needs two readings (monitor/board_sampler.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_agent.monitor.sensors.kernel_file import listing, read_number, read_text
from edge_agent.monitor.sensors.readings import Cpu, Looked

CPUS = "sys/devices/system/cpu"
MAX_KHZ = 1e7
IDLE_COLUMNS = (3, 4)
"""Columns `idle` and `iowait` of the first line of /proc/stat."""
TIME_COLUMNS = 8
"""The columns after these are guest time, which `user` and `nice` already contain."""


@dataclass
class CpuSensor:
    """Reads one file per clock domain, not per core: a Nano's four cores share one domain."""

    root: Path
    policies: tuple[Path, ...]
    throttle_counts: tuple[Path, ...]
    looked: tuple[Looked, ...]

    def read(self) -> Cpu:
        reasons: dict[str, str] = {}
        busy_s, total_s = self._times(reasons)
        return Cpu(
            busy_s=busy_s,
            total_s=total_s,
            clock_hz=self._highest("scaling_cur_freq", "clock_hz", reasons),
            max_clock_hz=self._highest("scaling_max_freq", "max_clock_hz", reasons),
            hardware_max_clock_hz=self._highest(
                "cpuinfo_max_freq", "hardware_max_clock_hz", reasons
            ),
            throttle_count=self._throttled(),
            reasons=reasons,
        )

    def _times(self, reasons: dict[str, str]) -> tuple[float | None, float | None]:
        path = self.root / "proc/stat"
        text, reason = read_text(path)
        columns = (text or "").partition("\n")[0].split()[1 : TIME_COLUMNS + 1]
        if not all(column.isdigit() for column in columns) or len(columns) < TIME_COLUMNS:
            reasons["busy_s"] = reason or f"{path}: the first line is no sum over the cores"
            return None, None
        ticks = [int(column) for column in columns]
        hz = os.sysconf("SC_CLK_TCK")
        return (sum(ticks) - sum(ticks[i] for i in IDLE_COLUMNS)) / hz, sum(ticks) / hz

    def _highest(self, name: str, field: str, reasons: dict[str, str]) -> float | None:
        found = []
        reason = f"no cpufreq policy below {self.root / CPUS}"
        for policy in self.policies:
            value, reason = read_number(policy / name, 1, MAX_KHZ)
            found += [] if value is None else [value * 1000]
        if not found:
            reasons[field] = reason
        return max(found, default=None)

    def _throttled(self) -> int | None:
        counts = [read_number(path, 0, 1e15)[0] for path in self.throttle_counts]
        known = [int(count) for count in counts if count is not None]
        return sum(known) if known else None


def find(root: Path) -> CpuSensor:
    """Look for clock domains and throttle counters below `root`."""
    policies = tuple(listing(root / CPUS, "cpufreq/policy*"))
    counts = tuple(listing(root / CPUS, "cpu[0-9]*/thermal_throttle/core_throttle_count"))
    found = f"{len(policies)} clock domains" if policies else None
    stat = "readable" if read_text(root / "proc/stat")[0] else None
    looked = (
        Looked("processor time", str(root / "proc/stat"), stat),
        Looked("processor clocks", str(root / CPUS / "cpufreq/policy*"), found),
    )
    return CpuSensor(root, policies, counts, looked)
