"""The vocabulary of the sensors: one frozen reading per subsystem.

It imports nothing of ours. A value that could not be read is None, and `reasons` says why under the
value's own name ("watts.VDD_IN", "load", ...). Nothing is ever 0 or -1 for "unknown", because such
a number would falsify every mean. Units are suffixes of the names. Not here: reading (the other
files), history (monitor/board_sampler.py), joules of an answer (monitor/energy.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

PowerSource = Literal["ina3221", "rapl", "jtop", "none"]
Reasons = Mapping[str, str]

TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN")
"""Rails that feed a whole module: TX2, Xavier NX, Orin Nano and Orin NX; Nano; AGX Thor (its
INA238). A board without one has no total, because rails feed each other and a sum would count some
of them twice. VIN_SYS_5V0 of the AGX boards is none: it feeds memory and input/output alone."""
MAX_W = 500.0
"""Above it a value is an error: an AGX Thor is limited to about 170 W at its input."""


@dataclass(frozen=True)
class Looked:
    """One place where a sensor was looked for, as `doctor` lists it."""

    what: str
    """"power rails (INA3221, JetPack 4)" ..."""
    where: str
    """The path or pattern, root included."""
    found: str | None
    """What is there ("3 rails: POM_5V_IN, ..."); None: nothing."""
    reason: str = ""
    """Why the sensor cannot be used although it is there (permission, driver, ...)."""


@dataclass(frozen=True)
class Power:
    """Watts by rail; the total rail covers the whole board input and is never a sum of rails.

    A counter (RAPL) measures no watts: `joules` is the energy counted since `find`, with
    wrap-around resolved, and the holder of two readings computes the watts.
    """

    source: PowerSource
    total_rail: str | None
    """Key into `watts` or `joules`; None when no rail measures the whole board (or package)."""
    watts: Mapping[str, float | None] = field(default_factory=dict)
    joules: Mapping[str, float | None] = field(default_factory=dict)
    reasons: Reasons = field(default_factory=dict)


@dataclass(frozen=True)
class Thermal:
    """Zones by the kernel's own type name; zones that report a constant (PMIC-Die) are left out."""

    zones_celsius: Mapping[str, float | None] = field(default_factory=dict)
    critical_celsius: Mapping[str, float] = field(default_factory=dict)
    """Lowest hot or critical trip point by zone, where the kernel states one."""
    reasons: Reasons = field(default_factory=dict)

    @property
    def hottest_celsius(self) -> float | None:
        known = [value for value in self.zones_celsius.values() if value is not None]
        return max(known, default=None)


@dataclass(frozen=True)
class Memory:
    """/proc/meminfo, zram and pressure-stall information (PSI), system-wide.

    In a container with a limit, `total_bytes` is the limit and `available_bytes` what it leaves."""

    total_bytes: int | None = None
    available_bytes: int | None = None
    swap_total_bytes: int | None = None
    swap_used_bytes: int | None = None
    zram_used_bytes: int | None = None
    """Memory of the compressed pages (mm_stat, mem_used_total), all zram devices together."""
    psi_some_percent: float | None = None
    """Share of the last 10 s in which some task waited for memory ('some avg10')."""
    psi_full_percent: float | None = None
    reasons: Reasons = field(default_factory=dict)


@dataclass(frozen=True)
class Cpu:
    """Counters over all cores, and the clocks of the fastest clock domain."""

    busy_s: float | None = None
    """Core-seconds not idle since boot; two readings give the load."""
    total_s: float | None = None
    clock_hz: float | None = None
    max_clock_hz: float | None = None
    """The highest clock the governor may use now (scaling_max_freq); throttling lowers it."""
    hardware_max_clock_hz: float | None = None
    throttle_count: int | None = None
    """core_throttle_count of all cores (x86 only). None: the kernel has no such counter."""
    reasons: Reasons = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """The GPU that shares memory with the processor; all None where there is none."""

    name: str | None = None
    load: float | None = None
    """Share of time busy, 0 to 1."""
    clock_hz: float | None = None
    max_clock_hz: float | None = None
    reasons: Reasons = field(default_factory=dict)


@dataclass(frozen=True)
class Alarms:
    """Causes that slow the board now, as "over_current:VDD_IN" or "thermal:cpufreq"."""

    active: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    """The kernel's event counters by cause, since boot (JetPack 5 and 6: oc*_event_cnt)."""
    reasons: Reasons = field(default_factory=dict)


@dataclass(frozen=True)
class Board:
    """Facts that do not change while a benchmark runs, but must stand in its document."""

    model: str | None = None
    l4t: str | None = None
    """"36.4.3" as /etc/nv_tegra_release gives it; None off Jetson."""
    jetpack: str | None = None
    kernel: str | None = None
    os: str | None = None
    cpu: str | None = None
    cores: int | None = None
    power_mode: str | None = None
    """nvpmodel's mode, "0 MAXN", read from its files."""
    governor: str | None = None
    reasons: Reasons = field(default_factory=dict)
