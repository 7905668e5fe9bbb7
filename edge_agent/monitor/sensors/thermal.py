"""Temperatures by zone, as the kernel's thermal framework gives them.

Flows in: a root. Flows out: Thermal, in degrees Celsius (the files hold thousandths of them;
Documentation/driver-api/thermal/sysfs-api.rst). Zones that report a constant, as the Nano's
PMIC-Die does with 100, are left out: they would be the hottest for ever. Not here: fans, throttling
(alarms).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edge_agent.monitor.sensors.kernel_file import listing, read_number, read_text
from edge_agent.monitor.sensors.readings import Looked, Thermal

ZONES = "sys/devices/virtual/thermal"
CONSTANT_ZONES = ("PMIC-Die",)
LOWEST_MC, HIGHEST_MC = -40_000.0, 150_000.0
"""A sensor that is off shows -256000, 0x7fffffff or the like."""
TRIP_TYPES = ("hot", "critical")


@dataclass
class ThermalSensor:
    """Paths of `temp` by zone."""

    zones: dict[str, str]
    critical_celsius: dict[str, float]
    looked: tuple[Looked, ...] = field(default=())

    def read(self) -> Thermal:
        values: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        for name, path in self.zones.items():
            value, reason = read_number(path, LOWEST_MC, HIGHEST_MC)
            values[name] = None if value is None else value / 1000
            if reason:
                reasons[f"zones_celsius.{name}"] = reason
        if not values:
            reasons["zones_celsius"] = "no thermal zone"
        return Thermal(values, self.critical_celsius, reasons)


def find(root: Path) -> ThermalSensor:
    zones: dict[str, str] = {}
    trips: dict[str, float] = {}
    for path in listing(root / ZONES, "thermal_zone*"):
        kind, _ = read_text(path / "type")
        if kind is None or kind in CONSTANT_ZONES:
            continue
        name = kind if kind not in zones else f"{kind}.{path.name.removeprefix('thermal_zone')}"
        zones[name] = str(path / "temp")
        trip = _lowest_trip(path)
        if trip is not None:
            trips[name] = trip
    where = str(root / ZONES / "thermal_zone*")
    found = f"{len(zones)} zones: {', '.join(zones)}" if zones else None
    return ThermalSensor(zones, trips, (Looked("thermal zones", where, found),))


def read(root: Path) -> Thermal:
    return find(root).read()


def _lowest_trip(zone: Path) -> float | None:
    """Where the kernel itself acts: the lowest hot or critical trip point of a zone."""
    found = []
    for path in listing(zone, "trip_point_*_type"):
        kind, _ = read_text(path)
        if kind in TRIP_TYPES:
            value, _ = read_number(str(path).removesuffix("type") + "temp", 1, HIGHEST_MC)
            found += [] if value is None else [value / 1000]
    return min(found, default=None)
